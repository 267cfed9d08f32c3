"""What is on other hosts: keeps the kernel in step with the endpoints that they tell of.

Level-triggered: whoever knows the peers of a network says each time all of them, and the difference to what was applied
last is brought about. So a message that got lost, came twice or came late does no lasting harm. Nothing of it is
stored, for whoever tells has it; after a start the kernel's entries stay as they are until the first word about each
network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from netplug.drivers.api import HostFacts, Meshed, Network, Peer, meshed
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Step
from netplug.drivers.tunnel import Fdb, Neighbour, Remote, Vtep
from netplug.engine.base_plan import BasePlan
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel
from netplug.kernel.executor import Executor
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """What was told of a network last, and what was done about it.

    `steps`: applied, by key. `refused`: of `peers`. `whole`: False after a failure, when it is not known of all.
    """

    net: Network
    host: HostFacts
    peers: Sequence[Peer] = ()
    refused: frozenset[Peer] = frozenset()
    steps: dict[str, Step] = field(default_factory=dict)
    whole: bool = False


class Peers:
    """The peers of all networks that have some on other hosts.

    Word comes with each endpoint that comes or goes, and of a thousand others it says the same as before. So only what
    differs from the last word is computed, and of the others what has a MAC, an address or a VTEP in common with it.
    """

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        kernel: Kernel,
        executor: Executor,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._base_plan = base_plan
        self._kernel = kernel
        self._executor = executor
        self._drivers = drivers
        self._known: dict[str, _Known] = {}
        self._changing: dict[str, frozenset[str]] = {}

    @uncancellable
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
            known = self._known.get(ident)
            if known is None:
                known = _Known(net, self._base_plan.host)
                # What an earlier life left is known as such only now.
                self._kernel.changes().set()
            await self._bring_about(driver, net, known, tuple(peers))
            self._known[ident] = known
        return tuple(peer for peer in peers if peer in known.refused)

    async def _bring_about(self, driver: Meshed, net: Network, known: _Known, peers: Sequence[Peer]) -> None:
        host = self._base_plan.host
        before, now = set(map(id, known.peers)), set(map(id, peers))
        fresh = [peer for peer in peers if id(peer) not in before]
        gone = [peer for peer in known.peers if id(peer) not in now]
        same_order = [it for it in map(id, peers) if it in before] == [it for it in map(id, known.peers) if it in now]
        if not (known.whole and same_order and known.net is net and known.host.vtep == host.vtep):
            refused = self._refuse(driver, net, peers, known.refused)
            wanted = driver.peers(net, [peer for peer in peers if peer not in refused])
            keys = frozenset(known.steps) | {step.key for step in wanted}
        else:
            refused = (known.refused - frozenset(gone)) | self._refuse(driver, net, fresh, known.refused)
            changed = [peer for peer in (*fresh, *gone) if peer not in refused]
            keys = frozenset(step.key for step in driver.peers(net, changed))
            around = _around(changed, [peer for peer in peers if peer not in refused] if refused else peers)
            wanted = Plan(tuple(step for step in driver.peers(net, around) if step.key in keys))
        known.net, known.host, known.whole = net, host, False
        self._known[net.id] = known
        await self._move(net, known, wanted, keys)
        known.peers, known.refused, known.whole = peers, refused, True

    async def mend(self, ident: str) -> None:
        """Mend what was applied last; the caller holds the network's lock."""
        await self._executor.mend(self.plan(ident))

    async def forget(self, ident: str) -> None:
        """Take down what leads to the peers of a network that is about to go; the caller holds its lock."""
        plan = self.plan(ident)
        self._known.pop(ident, None)
        if plan:
            try:
                await self._executor.revert(plan)
            except ExceptionGroup as group:  # what is left belongs to nobody then, and is swept
                for error in group.exceptions:
                    log.warning("revert.failed", what="peers", error=str(error))

    def plan(self, ident: str) -> Plan:
        """Return what reaching a network's peers takes, as last applied."""
        known = self._known.get(ident)
        return Plan(tuple(known.steps.values())) if known else Plan()

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted right now."""
        return frozenset().union(*self._changing.values())

    def unknown(self, steps: Iterable[Step]) -> list[Step]:
        """Return the steps less those that may be of a network whose peers nobody has told of yet."""
        stretched = {net.id for net in self._registry.all_networks() if meshed(self._drivers.of(net))}
        if stretched <= self._known.keys() and not self._registry.quarantine.networks():
            return list(steps)
        return [step for step in steps if not isinstance(step, Fdb | Neighbour | Remote | Vtep)]

    async def _move(self, net: Network, known: _Known, wanted: Plan, keys: frozenset[str]) -> None:
        """Bring about what is new, then take away what is no longer wanted: who moved is reachable throughout.

        Of the steps with these keys just those of `wanted` are to be there; of others nothing changes.
        """
        there = {key: known.steps[key] for key in keys if key in known.steps}
        kept = {step.key for step in wanted}
        new = Plan(tuple(step for step in wanted if there.get(step.key) != step))
        old = Plan(tuple(step for key, step in there.items() if key not in kept))
        if not new and not old:
            return
        changing = self._changing[net.id] = frozenset(step.key for step in new + old)
        # Half done it is neither: what the next call finds equal is passed over by the kernel.
        for key in changing:
            known.steps.pop(key, None)
        try:
            await self._executor.apply(new)
            await self._executor.revert(old)
        finally:
            del self._changing[net.id]
        known.steps |= {step.key: step for step in new}
        log.info("peers.changed", network=short(net.id), steps=len(known.steps), new=len(new), gone=len(old))

    def _meshed(self, net: Network) -> Meshed:
        driver = self._drivers.of(net)
        if not meshed(driver):
            words = f"network {net.name!r} of mode {net.options.mode!r} has no endpoints on other hosts"
            raise NetplugError("invalid", words)
        return driver

    def _refuse(self, driver: Meshed, net: Network, peers: Sequence[Peer], before: frozenset[Peer]) -> frozenset[Peer]:
        """Return the peers that say what they may not, and log those that did not `before`."""
        refused = {}
        for peer in peers:
            try:
                driver.check_peer(net, peer, self._base_plan.host)
            except DriverError as error:
                refused[peer] = error
        for peer in refused.keys() - before:
            log.warning("peer.refused", network=short(net.id), peer=peer.endpoint, error=str(refused[peer]))
        return frozenset(refused)


def _around(changed: Sequence[Peer], peers: Sequence[Peer]) -> list[Peer]:
    """Return those of the peers that have something in common with the changed; of each VTEP one is enough."""
    macs = {peer.mac for peer in changed}
    addresses = {address for peer in changed for address in peer.addresses}
    vteps = {peer.vtep for peer in changed}
    found = []
    for peer in peers:
        if peer.mac in macs or not addresses.isdisjoint(peer.addresses) or peer.vtep in vteps:
            vteps.discard(peer.vtep)
            found.append(peer)
    return found
