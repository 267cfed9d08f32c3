"""Endpoints on other hosts: keeps FDB, neighbours and tunnel filters in step with what the cluster publishes.

Level-triggered: each call has all peers of a network, and only the difference from the last call is applied. So a
message that is lost, late or repeated does no lasting harm. Nothing is stored, since the cluster has it. After a start,
the kernel's entries stay as they are until the first call for each network.
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
from netplug.drivers.tunnel import Fdb, Neighbour
from netplug.drivers.tunnel_tables import of_peers
from netplug.engine.base_plan import BasePlan
from netplug.engine.registry import Registry
from netplug.errors import NetplugError
from netplug.kernel.executor import Executor
from netplug.kernel.netlink.api import Changes
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Known:
    """The last call for a network, and its result.

    `steps`: applied, by key. `refused`: of `peers`. `complete`: False after a failure, when not all steps are known.
    """

    net: Network
    host: HostFacts
    peers: Sequence[Peer] = ()
    refused: frozenset[Peer] = frozenset()
    steps: dict[str, Step] = field(default_factory=dict)
    complete: bool = False


class Peers:
    """Applies the peers of each network.

    A peer that moves is reachable throughout. A peer that is refused, or a failure, keeps no other peer out. After a
    failure the next call does the rest.

    A call comes with each change of one endpoint, among thousands that did not change. So only changed peers are
    computed, and those that share a MAC, an address or a VTEP with them.
    """

    def __init__(
        self,
        registry: Registry,
        base_plan: BasePlan,
        changes: Changes,
        executor: Executor,
        drivers: Drivers,
    ) -> None:
        self._registry = registry
        self._base_plan = base_plan
        self._changes = changes
        self._executor = executor
        self._drivers = drivers
        self._known: dict[str, _Known] = {}
        self._changing: dict[str, frozenset[str]] = {}

    @uncancellable
    async def apply(self, ref: str, peers: Sequence[Peer]) -> tuple[Peer, ...]:
        """Make exactly these endpoints on other hosts reachable; return the refused ones.

        Args:
            ref: the network's id or name.
            peers: all peers but this host's own, in the order in which they were published.

        Raises:
            NetplugError: "not_found"; "invalid": the network is on this host only; errors of the kernel. The next call
                tries again.
        """
        ident = self._registry.network(ref).network.id
        async with self._registry.lock(ident):
            net = self._registry.network(ident).network
            driver = self._meshed(net)
            known = self._known.get(ident)
            if known is None:
                known = _Known(net, self._base_plan.host)
                # Only now can entries of an earlier process be told from unknown ones.
                self._changes.ours().set()
            await self._bring_about(driver, net, known, tuple(peers))
            self._known[ident] = known
        return tuple(peer for peer in peers if peer in known.refused)

    async def _bring_about(self, driver: Meshed, net: Network, known: _Known, peers: Sequence[Peer]) -> None:
        host = self._base_plan.host
        before, now = set(map(id, known.peers)), set(map(id, peers))
        fresh = [peer for peer in peers if id(peer) not in before]
        gone = [peer for peer in known.peers if id(peer) not in now]
        same_order = [it for it in map(id, peers) if it in before] == [it for it in map(id, known.peers) if it in now]
        if not (known.complete and same_order and self._is_present(known, net)):
            refused = self._refuse(driver, net, peers, known.refused)
            wanted = driver.peers(net, [peer for peer in peers if peer not in refused])
            keys = frozenset(known.steps) | {step.key for step in wanted}
        else:
            refused = (known.refused - frozenset(gone)) | self._refuse(driver, net, fresh, known.refused)
            changed = [peer for peer in (*fresh, *gone) if peer not in refused]
            keys = frozenset(step.key for step in driver.peers(net, changed))
            around = _around(changed, [peer for peer in peers if peer not in refused] if refused else peers)
            wanted = Plan(tuple(step for step in driver.peers(net, around) if step.key in keys))
        known.net, known.host, known.complete = net, host, False
        self._known[net.id] = known
        await self._move(net, known, wanted, keys)
        known.peers, known.refused, known.complete = peers, refused, True

    async def follow(self, ident: str) -> None:
        """Apply the peers of a network that has changed, or whose host has; the caller holds its lock.

        After a failure the next call of `apply` does the rest.
        """
        known, record = self._known.get(ident), self._registry.find_network(ident)
        if known is None or record is None or self._is_present(known, record.network):
            return
        try:
            await self._bring_about(self._meshed(record.network), record.network, known, known.peers)
        except (DriverError, NetplugError, ExceptionGroup) as exc:
            log.warning("peers.behind", network=short(ident), error=str(exc))

    def _is_present(self, known: _Known, net: Network) -> bool:
        return known.net is net and known.host.vtep == self._base_plan.host.vtep

    async def mend(self, ident: str) -> None:
        """Repair what was applied last; the caller holds the network's lock."""
        await self._executor.mend(self.plan(ident))

    async def forget(self, ident: str) -> None:
        """Revert the peers of a network that is about to be deleted; the caller holds its lock."""
        plan = self.plan(ident)
        self._known.pop(ident, None)
        if plan:
            try:
                await self._executor.revert(plan)
            except ExceptionGroup as group:  # what is left has no record then, and is swept
                for error in group.exceptions:
                    log.warning("revert.failed", what="peers", error=str(error))

    def plan(self, ident: str) -> Plan:
        """Return the plan of a network's peers, as last applied."""
        known = self._known.get(ident)
        return Plan(tuple(known.steps.values())) if known else Plan()

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted now."""
        return frozenset().union(*self._changing.values())

    def unknown(self, steps: Iterable[Step]) -> list[Step]:
        """Return the steps less those that may belong to a network whose peers are not known yet."""
        stretched = {net.id for net in self._registry.all_networks() if meshed(self._drivers.of(net))}
        if stretched <= self._known.keys() and not self._registry.quarantine.networks():
            return list(steps)
        return [step for step in steps if not (isinstance(step, Fdb | Neighbour) or of_peers(step))]

    async def _move(self, net: Network, known: _Known, wanted: Plan, keys: frozenset[str]) -> None:
        """Apply new steps, then revert those that are no longer wanted: a peer that moved is reachable throughout.

        Only steps with these keys change: those in `wanted` stay or are applied, the others are reverted.
        """
        applied = {key: known.steps[key] for key in keys if key in known.steps}
        kept = {step.key for step in wanted}
        new = Plan(tuple(step for step in wanted if applied.get(step.key) != step))
        old = Plan(tuple(step for key, step in applied.items() if key not in kept))
        if not new and not old:
            return
        changing = self._changing[net.id] = frozenset(step.key for step in new + old)
        # Half done, their state is unknown: the next call applies them again, and equal ones are skipped.
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
        """Return the peers whose records are not allowed, and log those that are not in `before`."""
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
    """Return the peers that share a MAC, an address or a VTEP with changed ones; one for each VTEP is enough."""
    macs = {peer.mac for peer in changed}
    addresses = {address for peer in changed for address in peer.addresses}
    vteps = {peer.vtep for peer in changed}
    found = []
    for peer in peers:
        if peer.mac in macs or not addresses.isdisjoint(peer.addresses) or peer.vtep in vteps:
            vteps.discard(peer.vtep)
            found.append(peer)
    return found
