"""Networks that runtimes name in each call: made by the first call that does, unless they are there already."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from netplug.engine import Engine
from netplug.engine.records import NetworkRecord, NetworkSpec
from netplug.errors import NetplugError
from netplug.frontends.cni.checks import refuse_disagreement
from netplug.frontends.cni.wire import CniError
from netplug.tasks.locks import Locks


class NamedNetworks:
    """Finds networks by name, and makes those that there are not."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._making = Locks()

    def find(self, name: str) -> NetworkRecord | None:
        """Return the network of this very name."""
        return next((one for one in self._engine.registry.networks() if one.network.name == name), None)

    @asynccontextmanager
    async def joined(self, spec: NetworkSpec) -> AsyncIterator[NetworkRecord]:
        """Yield the network; one that was made for this goes again when the block fails.

        Raises:
            CniError: it is there, and not as asked for.
            NetplugError, DriverError, IpamError: it cannot be made.
        """
        async with self.one_at_a_time(spec.name):
            record = self.find(spec.name)
            if record is not None:
                record = await self._agreeing(record, spec)
            made = record is None
            if record is None:
                record = await self._engine.networks.create(spec)
        try:
            yield record
        except BaseException:
            if made:
                with suppress(NetplugError):  # another call may have come to use it
                    await self._engine.networks.delete(record.network.id, by=spec.front_end)
            raise

    async def _agreeing(self, record: NetworkRecord, spec: NetworkSpec) -> NetworkRecord | None:
        """Return the network if it is as asked for; one that was made like this, and nobody is in, is made anew."""
        try:
            refuse_disagreement(self._engine, record, spec)
        except CniError:
            if record.front_end is not spec.front_end or self._engine.registry.endpoints(record.network.id):
                raise
            await self._engine.networks.delete(record.network.id, by=spec.front_end)
            return None
        return record

    def one_at_a_time(self, name: str) -> AbstractAsyncContextManager[None]:
        """Let the first of several make a network, and the others find it."""
        return self._making.hold(name)
