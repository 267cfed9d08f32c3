"""What is on other hosts: keeps the kernel in step with the endpoints that they tell of.

Level-triggered: whoever knows the peers of a network says each time all of them, and the difference to what was applied
last is brought about. So a message that got lost, came twice or came late does no lasting harm. Nothing of it is
stored, for whoever tells has it; after a start the kernel's entries stay as they are until the first word about each
network.
"""

from collections.abc import Iterable, Mapping, Sequence

import structlog

from netplug.drivers.api import Driver, Meshed, Network, Peer
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Step
from netplug.drivers.tunnel import Fdb, Neighbour, Vtep
from netplug.engine.registry import Registry
from netplug.engine.shared import Shared
from netplug.engine.whole import whole
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel
from netplug.kernel.executor import Executor

log = structlog.get_logger(__name__)


class Peers:
    """The peers of all networks that have some on other hosts."""

    def __init__(
        self,
        registry: Registry,
        shared: Shared,
        kernel: Kernel,
        executor: Executor,
        drivers: Mapping[str, Driver],
    ) -> None:
        self._registry = registry
        self._shared = shared
        self._kernel = kernel
        self._executor = executor
        self._drivers = drivers
        self._plans: dict[str, Plan] = {}
        self._refused: dict[str, frozenset[Peer]] = {}
        self._changing: dict[str, frozenset[str]] = {}

    @whole
    async def apply(self, ref: str, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        """Reach just these endpoints on other hosts; return those that were refused, which keep no other out.

        Args:
            ref: the network's id or name.
            peers: all there are, less this host's own, in the order in which they were published.

        Raises:
            NetplugError: "not_found"; "invalid", the network is of this host alone; what the kernel refused. The next
                call tries again.
        """
        ident = self._registry.network(ref).network.id
        async with self._registry.lock(ident):
            net = self._registry.network(ident).network
            driver = self._meshed(net)
            refused = self._refuse(driver, net, peers)
            wanted = driver.peers(net, [peer for peer in peers if peer not in refused])
            await self._move(net, self._plans.get(ident, Plan()), wanted)
        return tuple(refused)

    async def mend(self, ident: str) -> None:
        """Apply again what was applied last; the caller holds the network's lock."""
        await self._executor.apply(self.plan(ident))

    async def forget(self, ident: str) -> None:
        """Take down what leads to the peers of a network that is about to go; the caller holds its lock."""
        self._refused.pop(ident, None)
        if plan := self._plans.pop(ident, None):
            try:
                await self._executor.revert(plan)
            except ExceptionGroup as group:  # what is left belongs to nobody then, and is swept
                for error in group.exceptions:
                    log.warning("revert.failed", what="peers", error=str(error))

    def plan(self, ident: str) -> Plan:
        """Return what reaching a network's peers takes, as last applied."""
        return self._plans.get(ident, Plan())

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted right now."""
        return frozenset().union(*self._changing.values())

    def unknown(self, steps: Iterable[Step]) -> list[Step]:
        """Return the steps less those that may be of a network whose peers nobody has told of yet."""
        meshed = {
            net.id for net in self._registry.all_networks() if isinstance(self._drivers[net.options.mode], Meshed)
        }
        if meshed <= self._plans.keys():
            return list(steps)
        return [step for step in steps if not isinstance(step, Fdb | Neighbour | Vtep)]

    async def _move(self, net: Network, before: Plan, wanted: Plan) -> None:
        """Bring about what is new, then take away what is no longer wanted: who moved is reachable throughout."""
        there, keys = frozenset(before), frozenset(step.key for step in wanted)
        new = Plan(tuple(step for step in wanted if step not in there))
        old = Plan(tuple(step for step in before if step.key not in keys))
        if net.id not in self._plans:
            # What an earlier life left is known as such only now.
            self._kernel.changes().set()
        if not new and not old:
            self._plans[net.id] = wanted
            return
        self._changing[net.id] = frozenset(step.key for step in new + old)
        # Half done it is neither: what the next call finds equal is passed over by the kernel.
        self._plans[net.id] = before.without(self._changing[net.id])
        try:
            await self._executor.apply(new)
            await self._executor.revert(old)
        finally:
            del self._changing[net.id]
        self._plans[net.id] = wanted
        log.info("peers.changed", network=short(net.id), steps=len(wanted), new=len(new), gone=len(old))

    def _meshed(self, net: Network) -> Meshed:
        driver = self._drivers[net.options.mode]
        if not isinstance(driver, Meshed):
            words = f"network {net.name!r} of mode {net.options.mode!r} has no endpoints on other hosts"
            raise NetplugError("invalid", words)
        return driver

    def _refuse(self, driver: Meshed, net: Network, peers: Sequence[Peer]) -> frozenset[Peer]:
        """Return the peers that say what they may not, and log those that are new among them."""
        refused = {}
        for peer in peers:
            try:
                driver.check_peer(net, peer, self._shared.host)
            except DriverError as error:
                refused[peer] = error
        for peer in refused.keys() - self._refused.get(net.id, frozenset()):
            log.warning("peer.refused", network=short(net.id), peer=peer.endpoint, error=str(refused[peer]))
        self._refused[net.id] = frozenset(refused)
        return self._refused[net.id]
