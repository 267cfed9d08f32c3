"""Leases of DHCP servers: asked for again, as anything else of ours is looked at again.

The reference dhcp plugin's daemon keeps them in memory; one that starts anew has forgotten them, and the server may
give the address to somebody else. So whenever that daemon is another one, the plugin's ADD asks it for the lease. Not
more often, since before release 1.2 each ADD makes one more lease there: also when the server gave another address,
which the container cannot take up while it runs. Which daemon there is its socket does not say alone: systemd keeps one
that it listens at for a daemon over that daemon's restarts.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog

from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.records import EndpointRecord
from netplug.engine.sandboxes import is_there
from netplug.frontends.cni.delegate import Delegate
from netplug.frontends.cni.wire import Call, CniError, Request, read
from netplug.kernel.host.socket_owner import answering_process
from netplug.tasks.locks import Locks

log = structlog.get_logger(__name__)

INTERVAL_S = 30.0
_SOCKET = "/run/cni/dhcp.sock"
_SOURCE = "dhcp"
_GREETING = b"CONNECT /_goRPC_ HTTP/1.0\r\n\r\n"
"""Answered by who serves Go's net/rpc by HTTP, as that daemon does; nothing is asked of it."""
_Daemon = tuple[int, int, str]
"""A socket's inode and change, and the process that answers there."""
_KEPT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


def kept(request: Request) -> str:
    """Return what has to be remembered of an ADD to ask its IPAM plugin again."""
    env = {key: request.env[key] for key in _KEPT if key in request.env}
    config = {key: value for key, value in request.raw.items() if key.lower() not in {"prevresult", "runtimeconfig"}}
    return json.dumps({"name": request.me, "env": env, "config": config})


class Leases:
    """Asks again for the leases of all endpoints that have one of a DHCP server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = Locks()
        self._asked: dict[str, tuple[_Daemon, str]] = {}
        """By endpoint: the daemon that gave a lease, and what is wrong with that."""

    def exclusive(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Let one call at a time be about an interface: of two at once the plugin's daemon would lose a lease."""
        return self._turns.hold(f"{request.container} {request.ifname}")

    def know(self, built: EndpointRecord, daemon: _Daemon | None) -> None:
        """Note that an endpoint has its lease from a daemon, as it was found before it was asked."""
        if daemon is not None:
            self._asked[built.key] = daemon, ""

    async def run(self) -> None:
        """Ask now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Ask for all once, and report what is wrong."""
        leased = [built for built in self._engine.registry.endpoints() if built.ipam]
        self._asked = {built.key: self._asked[built.key] for built in leased if built.key in self._asked}
        daemons: dict[str, _Daemon | None] = {}
        found = [(built, await self._wrong(built, daemons)) for built in leased]
        self._engine.conditions.report(
            _SOURCE, [Difference(f"endpoint {short(built.endpoint.id)}", "lease", why) for built, why in found if why]
        )

    async def _wrong(self, built: EndpointRecord, daemons: dict[str, _Daemon | None]) -> str:
        """Return what is wrong with a lease; it is asked for unless this daemon has given it.

        `daemons`: those that were found in this look, by socket.
        """
        if not await is_there(self._engine.kernel, built):
            return ""
        path = socket_of(json.loads(built.ipam)["config"])
        if path not in daemons:
            daemons[path] = await daemon_at(path)
        if (daemon := daemons[path]) is None:
            return f"the lease of {_listed(built)} may not be kept: the daemon of the dhcp plugin hangs ({path})"
        asked = self._asked.get(built.key)
        return asked[1] if asked and asked[0] == daemon else await self._ask(built, daemon)

    async def _ask(self, built: EndpointRecord, daemon: _Daemon) -> str:
        """Ask for one, and return what is wrong with it."""
        ours = {interface.ip for interface in built.endpoint.addresses}
        listed = _listed(built)
        try:
            request = _request(json.loads(built.ipam))
            async with self.exclusive(request):
                if self._engine.registry.find(built.endpoint.network, built.endpoint.id) is None:
                    return ""  # it has gone meanwhile
                theirs = {ip.address.ip for ip in (await Delegate(request).add()).ips}
        except CniError as exc:
            return f"the lease of {listed} is not kept: {exc}"
        given = ", ".join(map(str, sorted(theirs, key=str)))
        other = f"the DHCP server gives {given} now; the container has {listed} until it is started anew"
        self._asked[built.key] = daemon, "" if ours <= theirs else other
        return self._asked[built.key][1]


def socket_of(config: Mapping[str, Any]) -> str:
    """Return the path of the socket of the plugin's daemon that a network's configuration names."""
    return str(config.get("ipam", {}).get("daemonSocketPath") or _SOCKET)


async def daemon_at(path: str) -> _Daemon | None:
    """Return which daemon of the plugin there is, as far as it shows; None when it hangs."""
    return await asyncio.to_thread(_daemon_at, path)


def _daemon_at(path: str) -> _Daemon | None:
    inode, changed, process = 0, 0, ""
    try:
        status = Path(path).stat()
        inode, changed = status.st_ino, status.st_ctime_ns
        process = answering_process(path, _GREETING)
    except TimeoutError:
        return None
    except OSError:
        pass  # asked for a lease, the plugin says why not
    return inode, changed, process


def _listed(built: EndpointRecord) -> str:
    return ", ".join(sorted(str(interface.ip) for interface in built.endpoint.addresses))


def _request(said: Mapping[str, Any]) -> Request:
    env = {"CNI_COMMAND": "ADD", **said["env"]}
    return read(Call(said["name"], env, json.dumps(said["config"]).encode()))
