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
    return str(config.get("ipam", {}).get("daemonSocketPath") or _SOCKET)


class DhcpPlugin:
    """The client of `DhcpLeases`: reads what `kept` wrote."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def socket_of(self, built: EndpointRecord) -> str:
        return socket_of(json.loads(built.ipam)["config"])

    async def ask(self, built: EndpointRecord) -> Collection[IPAddress]:
        said = json.loads(built.ipam)
        env = {"CNI_COMMAND": "ADD", **said["env"]}
        try:
            request = read(Call(said["name"], env, json.dumps(said["config"]).encode()))
            answer = await Delegate(request, self._plugins).add()
        except CniError as exc:
            raise NetplugError("unavailable", str(exc)) from exc
        return [ip.address.ip for ip in answer.ips]
