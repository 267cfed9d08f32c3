"""Networks that runtimes name in each call (CNI, netavark): made by the first call that does, unless they exist."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from netplug.drivers.registry import Drivers
from netplug.engine.disagreement import NetworkDiffersError, refuse_disagreement
from netplug.engine.networks import Networks
from netplug.engine.records import NetworkRecord, NetworkSpec
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.ipam.allocator import Allocator
from netplug.tasks.locks import Locks


class ImplicitNetworks:
    """Finds networks by name, and makes those that do not exist.

    Of several calls that name a network at once, one makes it. A call that fails leaves no network behind.
    """

    def __init__(self, registry: Registry, networks: Networks, allocator: Allocator, drivers: Drivers) -> None:
        self._drivers = drivers
        self._registry = registry
        self._networks = networks
        self._allocator = allocator
        self._making = Locks()
        self._joining = Counter[str]()

    def find(self, name: str) -> NetworkRecord | None:
        """Return the network of this very name."""
        return next((one for one in self._registry.networks() if one.network.name == name), None)

    @asynccontextmanager
    async def joined(self, spec: NetworkSpec) -> AsyncIterator[NetworkRecord]:
        """Yield the network; one that was made for this goes again when the block fails.

        Raises:
            NetworkDiffersError: it exists, and not as asked for.
            NetplugError, DriverError, IpamError: it cannot be made.
        """
        async with self.one_at_a_time(spec.name):
            record = self.find(spec.name)
            if record is not None:
                record = await self._agreeing(record, spec)
            made = record is None
            if record is None:
                record = await self._networks.create(spec)
            self._joining[spec.name] += 1
        try:
            yield record
        except BaseException:
            if made:
                with suppress(NetplugError):  # another call may have come to use it
                    await self._networks.delete(record.network.id, by=spec.front_end)
            raise
        finally:
            self._joining -= Counter([spec.name])

    @asynccontextmanager
    async def unjoined(self, name: str) -> AsyncIterator[None]:
        """Let nobody join the network of this name during the block.

        Raises:
            NetplugError: "forbidden": a container is just joining it.
        """
        async with self.one_at_a_time(name):
            if self._joining[name]:
                raise NetplugError("forbidden", "a container is just joining it")
            yield

    def refuse_disagreement(self, record: NetworkRecord, spec: NetworkSpec) -> None:
        """Refuse a specification that wants a network otherwise than it is.

        Raises:
            NetworkDiffersError: with all differences.
        """
        refuse_disagreement(record, spec, self._registry, self._allocator, self._drivers)

    async def _agreeing(self, record: NetworkRecord, spec: NetworkSpec) -> NetworkRecord | None:
        """Return the network if it is as asked for; one that was made like this, and nobody is in, is made anew."""
        try:
            self.refuse_disagreement(record, spec)
        except NetworkDiffersError:
            if record.front_end is not spec.front_end or self._registry.endpoints(record.network.id):
                raise
            await self._networks.delete(record.network.id, by=spec.front_end)
            return None
        return record

    def one_at_a_time(self, name: str) -> AbstractAsyncContextManager[None]:
        """Let the first of several calls make a network, and the others find it."""
        return self._making.hold(name)
