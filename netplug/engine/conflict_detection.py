"""Address conflict detection (RFC 5227): probes a shared segment before an endpoint gets an address."""

from collections.abc import Collection, Mapping

import structlog

from netplug.drivers.api import Network
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.ipam.lease import Lease, Owner
from netplug.kernel.api import Kernel
from netplug.kernel.links.api import ConflictProbe

log = structlog.get_logger(__name__)

_TRIES = 16
"""Probes that find a conflict before the request fails. They take three seconds."""


class ConflictDetection:
    """Leases addresses that no other station on the segment uses.

    An address in use goes to the end of the queue. If the segment cannot be probed, the address counts as free.
    """

    def __init__(
        self, allocator: Allocator, registry: Registry, kernel: Kernel, probe: ConflictProbe, drivers: Drivers
    ) -> None:
        self._allocator = allocator
        self._registry = registry
        self._kernel = kernel
        self._probe = probe
        self._drivers = drivers

    async def request(
        self, pool: str, address: IPAddress | None, owner: Owner, mac: str = "", *, net: Network | None = None
    ) -> Lease:
        """Lease an address for an endpoint: this one, or any that no station on the segment uses.

        `net`: the endpoint's network, if it is known.

        Raises:
            IpamError: as `Allocator.request_address`.
            NetplugError: "unavailable": another station has this address, or all that were tried.
        """
        passed_over: list[Lease] = []
        try:
            while True:
                lease = await self._allocator.request_address(pool, address=address, owner=owner, mac=mac)
                if lease.owner != owner:
                    return lease  # after a restart Docker confirms what an endpoint has
                passed_over.append(lease)
                try:
                    await self.refuse_taken([net] if net else self._on(pool), lease.address)
                except NetplugError as exc:
                    if address is not None or exc.kind != "exists":
                        raise
                    log.warning("address.taken", address=str(lease.address), error=str(exc))
                    if len(passed_over) == _TRIES:
                        words = f"the first {_TRIES} free addresses are all in use by others on the segment"
                        raise NetplugError("unavailable", words, hint="narrow the network with --ip-range") from exc
                else:
                    passed_over.pop()
                    return lease
        finally:
            for lease in passed_over:
                await self._allocator.release_address(pool, lease.address, forget=True)

    async def refuse_taken(self, nets: Collection[Network], address: IPAddress) -> None:
        """Refuse an address that the host itself, or a station on the segment of one of these networks, has.

        A link that is down gets no answer, so its addresses count as free.

        Raises:
            NetplugError: "exists", with the station's MAC.
        """
        for link in {self._drivers.of(net).segment(net) for net in nets} - {""}:
            if any(address == mine.ip for mine, _ in (await self._kernel.facts()).addresses):
                raise NetplugError("exists", f"address {address} is the host's own", hint="choose another address")
            taken = await self._ask(link, address)
            if address in taken:
                raise NetplugError(
                    "exists",
                    f"address {address} is in use on the segment of {link!r} by {taken[address]}",
                    hint="choose another address, or none",
                )

    async def _ask(self, link: str, address: IPAddress) -> Mapping[IPAddress, str]:
        try:
            return await self._probe.addresses_in_use(link, (address,))
        except NetplugError as exc:
            log.warning("address.unasked", address=str(address), error=str(exc))
            return {}

    def _on(self, pool: str) -> list[Network]:
        held = self._allocator.pool(pool)
        holders = held.holders if held is not None else ()
        return [record.network for record in self._registry.networks() if record.network.id in holders]
