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
from netplug.tasks.uncancellable import uncancellable


class ImplicitNetworks:
    """Finds networks by name, and makes those that do not exist.

    Of several calls that name a network at once, one makes it, and all join it. If all of them fail, the last one
    deletes it, so that a call that fails leaves no network behind, and takes none from the others.
    """

    def __init__(self, registry: Registry, networks: Networks, allocator: Allocator, drivers: Drivers) -> None:
        self._drivers = drivers
        self._registry = registry
        self._networks = networks
        self._allocator = allocator
        self._making = Locks()
        self._joining = Counter[str]()
        self._unused: set[str] = set()
        """Ids of networks that were made for calls of which none has succeeded yet."""

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
            if record is None:
                record = await self._networks.create(spec)
                self._unused.add(record.network.id)
            self._joining[spec.name] += 1
        try:
            yield record
        except BaseException:
            await self._leave(spec, record)
            raise
        self._joining -= Counter([spec.name])
        self._unused.discard(record.network.id)

    @uncancellable
    async def _leave(self, spec: NetworkSpec, record: NetworkRecord) -> None:
        """End a call that has failed. The last one to join a network that was made for them deletes it."""
        async with self.one_at_a_time(spec.name):
            self._joining -= Counter([spec.name])
            if self._joining[spec.name] or record.network.id not in self._unused:
                return
            self._unused.discard(record.network.id)
            with suppress(NetplugError):  # somebody else has come to use it
                await self._networks.delete(record.network.id, by=spec.front_end)

    def is_joined(self, name: str) -> bool:
        """Tell whether a container is just joining the network of this name."""
        return self._joining[name] > 0

    @asynccontextmanager
    async def unjoined(self, name: str) -> AsyncIterator[None]:
        """Let nobody join the network of this name during the block.

        Raises:
            NetplugError: "forbidden": a container is just joining it.
        """
        async with self.one_at_a_time(name):
            if self.is_joined(name):
                raise NetplugError("forbidden", "a container is just joining it", hint="try again")
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
            if self.is_joined(spec.name):
                raise
            await self._networks.delete(record.network.id, by=spec.front_end)
            return None
        return record

    def one_at_a_time(self, name: str) -> AbstractAsyncContextManager[None]:
        """Let the first of several calls make a network, and the others find it."""
        return self._making.hold(name)
