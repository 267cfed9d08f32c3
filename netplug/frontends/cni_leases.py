"""Leases of DHCP servers: asked for again, as anything else of ours is looked at again.

The reference dhcp plugin's daemon keeps them in memory; one that starts anew has forgotten them, and the server may
give the address to somebody else. So whenever that daemon is another one, the plugin's ADD asks it for the lease. Not
more often, since before release 1.2 each ADD makes one more lease there: also when the server gave another address,
which the container cannot take up while it runs.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import structlog

from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.locks import Locks
from netplug.engine.records import EndpointRecord
from netplug.engine.sandboxes import is_there
from netplug.frontends.cni_delegate import Delegate
from netplug.frontends.cni_wire import Call, CniError, Request, read

log = structlog.get_logger(__name__)

INTERVAL_S = 30.0
_SOCKET = "/run/cni/dhcp.sock"
_SOURCE = "dhcp"
_Daemon = tuple[int, int]
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

    def turn(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Let one call at a time be about an interface: of two at once the plugin's daemon would lose a lease."""
        return self._turns.hold(f"{request.container} {request.ifname}")

    def know(self, built: EndpointRecord) -> None:
        """Note that an endpoint has its lease from the daemon that there is now."""
        self._asked[built.key] = _daemon(built), ""

    async def run(self) -> None:
        """Ask now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Ask for all once, and report what is wrong."""
        leased = [built for built in self._engine.registry.endpoints() if built.ipam]
        self._asked = {built.key: self._asked[built.key] for built in leased if built.key in self._asked}
        found = [(built, await self._wrong(built)) for built in leased]
        self._engine.conditions.report(
            _SOURCE, [Difference(f"endpoint {short(built.endpoint.id)}", "lease", why) for built, why in found if why]
        )

    async def _wrong(self, built: EndpointRecord) -> str:
        """Return what is wrong with a lease; it is asked for unless this daemon has given it."""
        if not await is_there(self._engine.kernel, built):
            return ""
        daemon = _daemon(built)
        asked = self._asked.get(built.key)
        return asked[1] if asked and asked[0] == daemon else await self._ask(built, daemon)

    async def _ask(self, built: EndpointRecord, daemon: _Daemon) -> str:
        """Ask for one, and return what is wrong with it."""
        ours = {interface.ip for interface in built.endpoint.addresses}
        listed = ", ".join(map(str, sorted(ours, key=str)))
        try:
            request = _request(json.loads(built.ipam))
            async with self.turn(request):
                if self._engine.registry.find(built.endpoint.network, built.endpoint.id) is None:
                    return ""  # it has gone meanwhile
                theirs = {ip.address.ip for ip in (await Delegate(request).add()).ips}
        except CniError as exc:
            return f"the lease of {listed} is not kept: {exc}"
        given = ", ".join(map(str, sorted(theirs, key=str)))
        other = f"the DHCP server gives {given} now; the container has {listed} until it is started anew"
        self._asked[built.key] = daemon, "" if ours <= theirs else other
        return self._asked[built.key][1]


def _daemon(built: EndpointRecord) -> _Daemon:
    """Return which daemon of the plugin there is, by its socket; its beginning makes a new one."""
    ipam = json.loads(built.ipam)["config"].get("ipam", {})
    with suppress(OSError):
        status = Path(str(ipam.get("daemonSocketPath") or _SOCKET)).stat()
        return status.st_ino, status.st_ctime_ns
    return 0, 0


def _request(said: Mapping[str, Any]) -> Request:
    env = {"CNI_COMMAND": "ADD", **said["env"]}
    return read(Call(said["name"], env, json.dumps(said["config"]).encode()))
