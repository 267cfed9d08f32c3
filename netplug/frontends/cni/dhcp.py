"""Asks the reference dhcp plugin for a lease again, by the ADD that the endpoint was made with."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.dhcp_leases import DhcpLeases
from netplug.engine.host_services import Plugins
from netplug.engine.records import EndpointRecord
from netplug.errors import NetplugError
from netplug.frontends.cni.delegate import Delegate
from netplug.frontends.cni.wire import Call, CniError, Request, read

_SOCKET = "/run/cni/dhcp.sock"
_KEPT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


def dhcp_leases(engine: Engine) -> DhcpLeases:
    """Return the keeper of leases of all endpoints whose CNI configuration names the dhcp plugin."""
    return engine.dhcp_leases(DhcpPlugin(engine.services.plugins))


def kept(request: Request) -> str:
    """Return the parts of an ADD that are needed to ask its IPAM plugin again."""
    env = {key: request.env[key] for key in _KEPT if key in request.env}
    config = {key: value for key, value in request.raw.items() if key.lower() not in {"prevresult", "runtimeconfig"}}
    return json.dumps({"name": request.me, "env": env, "config": config})


def socket_of(config: Mapping[str, Any]) -> str:
    """Return the path of the socket of the plugin's daemon that a network's configuration names."""
    ipam = config.get("ipam")
    return str((isinstance(ipam, dict) and ipam.get("daemonSocketPath")) or _SOCKET)


def _said(built: EndpointRecord) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return name, environment and configuration that `kept` wrote.

    Raises:
        NetplugError: "unavailable", the record has something else.
    """
    try:
        said = json.loads(built.ipam)
        name, env, config = str(said["name"]), dict(said["env"]), dict(said["config"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NetplugError("unavailable", "its record does not say how the dhcp plugin is asked") from None
    return name, {str(key): str(value) for key, value in env.items()}, config


class DhcpPlugin:
    """The client of `DhcpLeases`: reads what `kept` wrote."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def socket_of(self, built: EndpointRecord) -> str:
        return socket_of(_said(built)[2])

    async def ask(self, built: EndpointRecord) -> Collection[IPAddress]:
        name, env, config = _said(built)
        try:
            request = read(Call(name, {"CNI_COMMAND": "ADD", **env}, json.dumps(config).encode()))
            answer = await Delegate(request, self._plugins).add()
        except CniError as exc:
            raise NetplugError("unavailable", str(exc)) from exc
        return [ip.address.ip for ip in answer.ips]
