"""Leases of DHCP servers: when the reference dhcp plugin is asked for them again.

Its daemon keeps them in memory; one that starts anew has forgotten them, and the server may give the address to
somebody else. So whenever that daemon is another one, the plugin's ADD asks it for the lease. Not more often, since
before release 1.2 each ADD makes one more lease there: also when the server gave another address, which the container
cannot take up while it runs. Which daemon there is its socket does not say alone: systemd keeps one that it listens at
for a daemon over that daemon's restarts.
"""

import asyncio
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.host_services import SocketOwners
from netplug.engine.records import EndpointRecord
from netplug.engine.registry import Registry
from netplug.engine.sandboxes import is_there
from netplug.errors import NetplugError
from netplug.kernel.sandbox.api import Sandboxes
from netplug.tasks.locks import Locks

INTERVAL_S = 30.0
_SOURCE = "dhcp"
_GREETING = b"CONNECT /_goRPC_ HTTP/1.0\r\n\r\n"
"""Answered by who serves Go's net/rpc by HTTP, as that daemon does; nothing is asked of it."""
Daemon: TypeAlias = tuple[int, int, str]
"""A socket's inode and change, and the process that answers there."""


class DhcpClient(Protocol):
    """Speaks with the dhcp plugin."""

    def socket_of(self, built: EndpointRecord) -> str:
        """Return the path of the socket of the plugin's daemon that has a lease; raises `NetplugError`."""

    async def ask(self, built: EndpointRecord) -> Collection[IPAddress]:
        """Ask for an endpoint's lease again, and return the addresses; raises `NetplugError`."""


class DhcpLeases:
    """Asks again for the leases of all endpoints that have one of a DHCP server.

    Each daemon of the plugin is asked once for each endpoint. What is wrong with a lease is a condition as long as it
    lasts.
    """

    def __init__(
        self,
        registry: Registry,
        sandboxes: Sandboxes,
        conditions: Conditions,
        socket_owners: SocketOwners,
        client: DhcpClient,
    ) -> None:
        self._registry = registry
        self._sandboxes = sandboxes
        self._conditions = conditions
        self._socket_owners = socket_owners
        self._client = client
        self._turns = Locks()
        self._asked: dict[str, tuple[Daemon, str]] = {}
        """By endpoint: the daemon that gave a lease, and what is wrong with that."""

    def exclusive(self, container: str, ifname: str) -> AbstractAsyncContextManager[None]:
        """Let one call at a time be about an interface: of two at once the plugin's daemon would lose a lease."""
        return self._turns.hold(f"{container} {ifname}")

    def know(self, built: EndpointRecord, daemon: Daemon | None) -> None:
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
        leased = [built for built in self._registry.endpoints() if built.ipam]
        self._asked = {built.key: self._asked[built.key] for built in leased if built.key in self._asked}
        daemons: dict[str, Daemon | None] = {}
        found = [(built, await self._wrong(built, daemons)) for built in leased]
        self._conditions.report(
            _SOURCE, [Difference(f"endpoint {short(built.endpoint.id)}", "lease", why) for built, why in found if why]
        )

    async def _wrong(self, built: EndpointRecord, daemons: dict[str, Daemon | None]) -> str:
        """Return what is wrong with a lease; it is asked for unless this daemon has given it.

        `daemons`: those that were found in this look, by socket.
        """
        if not await is_there(self._sandboxes, built):
            return ""
        try:
            path = self._client.socket_of(built)
        except NetplugError as exc:
            return f"the lease of {_listed(built)} is not kept: {exc}"
        if path not in daemons:
            daemons[path] = await self.daemon_at(path)
        if (daemon := daemons[path]) is None:
            return f"the lease of {_listed(built)} may not be kept: the daemon of the dhcp plugin hangs ({path})"
        asked = self._asked.get(built.key)
        return asked[1] if asked and asked[0] == daemon else await self._ask(built, daemon)

    async def _ask(self, built: EndpointRecord, daemon: Daemon) -> str:
        """Ask for one, and return what is wrong with it."""
        ours = {interface.ip for interface in built.endpoint.addresses}
        listed = _listed(built)
        try:
            async with self.exclusive(built.container, built.ifname):
                if self._registry.find(built.endpoint.network, built.endpoint.id) is None:
                    return ""  # it has gone meanwhile
                theirs = set(await self._client.ask(built))
        except NetplugError as exc:
            return f"the lease of {listed} is not kept: {exc}"
        given = ", ".join(map(str, sorted(theirs, key=str)))
        other = f"the DHCP server gives {given} now; the container has {listed} until it is started anew"
        self._asked[built.key] = daemon, "" if ours <= theirs else other
        return self._asked[built.key][1]

    async def daemon_at(self, path: str) -> Daemon | None:
        """Return which daemon of the plugin there is, as far as it shows; None when it hangs."""
        return await asyncio.to_thread(self._daemon_at, path)

    def _daemon_at(self, path: str) -> Daemon | None:
        inode, changed, process = 0, 0, ""
        try:
            status = Path(path).stat()
            inode, changed = status.st_ino, status.st_ctime_ns
            process = self._socket_owners.answering_process(path, _GREETING)
        except TimeoutError:
            return None
        except OSError:
            pass  # asked for a lease, the plugin says why not
        return inode, changed, process


def _listed(built: EndpointRecord) -> str:
    return ", ".join(sorted(str(interface.ip) for interface in built.endpoint.addresses))
