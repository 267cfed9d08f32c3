"""What all networks of a host share: tables, the gate, forwarding. The first network makes it, the last removes it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import structlog

from netplug.drivers import routing
from netplug.drivers.api import Firewalld, HostFacts, Network
from netplug.drivers.codec import Json, JsonObject
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import Element, Gate, IPAddress, Step, Sysctl, Table
from netplug.drivers.zones import Zone
from netplug.engine import host_link
from netplug.engine.conditions import Difference
from netplug.engine.drifts import Drifts
from netplug.engine.quarantine import Quarantine, Unusable, unusable
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel, Kernel, Outcome, StepError
from netplug.kernel.executor import Executor
from netplug.store.api import Delete, Put, Store, StoreError

log = structlog.get_logger(__name__)

Present = Callable[[], Iterable[Network]]
"""Returns the networks that there are, and those that are being made. It is asked when its answer is acted on: who
waits for another change of the shared plan may find other networks than there were before."""
BASE = "meta/base"
STORE = "meta/store_endpoints"
ROUTE_S = 12e-6
"""Time to read one route."""
_FORMER_NAMES: list[Json] = [
    {"step": "Guards"},
    {"step": "Chain", "family": 4, "table": "filter", "name": "NETPLUG-FORWARD"},
    {"step": "Chain", "family": 4, "table": "filter", "name": "NETPLUG-INPUT"},
    {"step": "Chain", "family": 6, "table": "filter", "name": "NETPLUG-FORWARD"},
    {"step": "Chain", "family": 6, "table": "filter", "name": "NETPLUG-INPUT"},
]
"""What a release that filtered by iptables takes our anti-spoofing table and our gate for, and would sweep.

After a rollback that release reads these steps in a record that it cannot use, and leaves what they name. This one does
not read them.
"""


class BasePlan:
    """Keeps the shared plan in step with the networks of the host.

    What is made is recorded first, so a crash leaves nothing unknown. What another program relies on is not removed.

    `plan`: as last applied. `host`: as last read. `vtep`: the tunnel address of this host, if it is in a cluster.
    `store`: addresses and ports of the shared store, which containers must not reach. `forward_others`: the host may
    forward between links of others, if netplug turned that on. `more`: steps that are wanted with or without networks,
    so that the host itself can ask for names. The lock of this class is never held together with a
    network's.
    """

    def __init__(
        self,
        kernel: HostKernel,
        executor: Executor,
        store: Store,
        drivers: Drivers,
        quarantine: Quarantine,
        drifts: Drifts,
    ) -> None:
        self.plan = Plan()
        self.host = HostFacts()
        self.vtep: IPAddress | None = None
        self.store: tuple[tuple[IPAddress, int], ...] = ()
        self.forward_others = False
        self.more = Plan()
        self._kernel: Kernel = kernel
        self._firewall = kernel.firewall
        self._executor = executor
        self._store = store
        self._drivers = drivers
        self._lock = asyncio.Lock()
        self._quarantine = quarantine
        self._drifts = drifts
        self._unread: list[Json] = []
        self._changing: frozenset[str] = frozenset()

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or reverted now."""
        return self._changing

    async def keep_away(self, store: Sequence[tuple[IPAddress, int]]) -> None:
        """Note which addresses and ports containers must not reach. Work without a daemon reads the note too."""
        if tuple(store) != await self.stored():  # each start comes here, also on a disk that cannot be written
            value: JsonObject = {"endpoints": [[str(address), port] for address, port in store]}
            await self._store.txn((), [Put(STORE, value) if store else Delete(STORE)])
        self.store = tuple(store)

    async def stored(self) -> tuple[tuple[IPAddress, int], ...]:
        """Return the last note of `keep_away`."""
        record = await self._store.get(STORE)
        found = record.value.get("endpoints") if record else ()
        pairs = found if isinstance(found, list) else []
        return tuple((ip_address(str(it[0])), int(str(it[1]))) for it in pairs if isinstance(it, list))

    async def load(self) -> None:
        """Read the host, and the shared plan as last stored."""
        self.store = await self.stored()
        asks = await host_link.stored(self._store)
        self.more = host_link.plan(asks[0] if asks else None)
        await self.read_host()
        unread: dict[str, Unusable] = {}
        if record := await self._store.get(BASE):
            try:
                self.plan = Plan.from_json(record.value.get("plan"))
            except ValueError as exc:
                self.plan, self._unread = Plan.known(record.value.get("plan")), _unread(record.value.get("plan"))
                unread = unusable(BASE, record.value, exc)
        self._quarantine.replace(BASE, unread)

    def rest_s(self) -> float:
        """Return how long to wait before the next full comparison, so that they take a twentieth of the time at most.

        Each comparison reads all routes, and a router may have a million of them (a full BGP table).
        """
        return len(self.host.routes) * ROUTE_S * 20

    async def read_host(self) -> HostFacts:
        """Read the facts of the host, and return them."""
        return self.see(await self._kernel.facts())

    def see(self, host: HostFacts) -> HostFacts:
        """Take facts that were read, and return them with what only we know."""
        found = routing.facts_without(self.plan, host)
        self.host = replace(found, vtep=self.vtep, store=self.store, forward_others=self.forward_others)
        return self.host

    def wanted(self, nets: Iterable[Network]) -> Plan:
        """Return the plan that these networks share, or what stays without any, on the host as last read.

        Steps that only deleted networks needed stay until `trim`, but not those of links that are gone.
        """
        plan, before = self._base(nets) or self.stays(), routing.without_missing_links(self.plan, self.host)
        if set(before) >= set(plan):
            return before
        return before.without(step.key for step in plan) + plan

    def former_strangers(self) -> set[str]:
        """Return the links that the plan keeps from each other, and needs not any more: then it has to be trimmed."""
        return routing.former_strangers(self.plan, self.host)

    def has_idle_gate(self, present: Present) -> bool:
        """Tell whether the plan has a gate where others have no rules any more: then it has to be trimmed."""
        needed = set(self._base(present()))
        return any(isinstance(step, Gate) and step not in needed for step in self.plan)

    def stays(self) -> Plan:
        """Return what the host and other programs on it rely on, with or without a network of ours."""
        return routing.needed_by_others(self.plan, self.host) + self.more

    def _base(self, nets: Iterable[Network], host: HostFacts | None = None) -> Plan:
        families: defaultdict[str, set[int]] = defaultdict(set)
        for net in nets:
            families[net.options.mode].update(net.families())
        plan = Plan()
        for mode, versions in sorted(families.items()):
            plan += self._drivers[mode].base(sorted(versions), host or self.host)
        return plan + self.more

    async def ensure(self, present: Present) -> None:
        """Apply all that these networks share, or nothing. Nothing is removed."""
        left: list[Step] = []
        await self._bring_about(present, partial(self._executor.apply, left=left), left)

    async def mend(self, present: Present, elements: Iterable[Element] = ()) -> None:
        """Apply as much as possible of what these networks share.

        `elements`: those of tables that are made anew. They come with the tables, in one transaction, so that no packet
        meets a table without them.
        """

        async def all_at_once(wanted: Plan) -> None:
            first = Plan((*(step for step in wanted if isinstance(step, Table)), *elements))
            await self._executor.mend(first + wanted.without(step.key for step in first))

        await self._bring_about(present, all_at_once)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Keep the shared plan as it is during the block."""
        async with self._lock:
            yield

    async def hold(self) -> bool:
        """Repair the plan as last applied, and return whether something had been lost.

        Takes milliseconds. What cannot be repaired is left to the full comparison.
        """
        async with self._lock:
            plan = routing.without_missing_links(self.plan, self.host)
            plan = plan.without(step.key for step in plan if self._drifts.contests.rests(step))
            try:
                outcomes = await self._executor.apply(plan)
            except NetplugError:
                with suppress(NetplugError, ExceptionGroup):
                    await self._executor.mend(plan)
                return False
        words = {Outcome.CREATED: "missing", Outcome.ADJUSTED: "different"}
        mended = [Difference("host", key, words[outcome]) for key, outcome in outcomes.items() if outcome in words]
        self._drifts.healed(mended, how="at once")
        return bool(mended) or self._lacks_gate()

    def _lacks_gate(self) -> bool:
        """Return whether others began to drop packets in iptables, where nothing of ours lets ours pass."""
        ours = {(step.family, step.flavour) for step in self.plan if isinstance(step, Gate)}
        return not self._firewall.gates() <= ours.union(self.host.gates)

    async def _bring_about(
        self, present: Present, how: Callable[[Plan], Awaitable[object]], left: Sequence[Step] | None = None
    ) -> None:
        """Apply what these networks share.

        Args:
            present: The networks.
            how: Applies a plan.
            left: If `how` does all or nothing: it puts the steps here that it could not undo.
        """
        async with self._lock:
            wanted = self.wanted(present())
            new = wanted.without(step.key for step in self.plan)
            with self._moving(new):
                if wanted != self.plan:
                    # Stored first, so that a crash or failure in between leaves nothing unknown.
                    await self._remember(wanted)
                try:
                    await how(wanted)
                except StepError:
                    if left is not None:
                        await self._forget(new.without(step.key for step in left))
                    raise

    async def _forget(self, steps: Plan) -> None:
        """Forget steps that were not applied: they are neither repaired nor reverted."""
        try:
            if steps:
                await self._remember(self.plan.without(step.key for step in steps))
        except StoreError as error:
            log.warning("trim.failed", errors=[str(error)])

    async def trim(self, present: Present) -> None:
        """Revert what none of these networks needs; nothing as long as a network is quarantined.

        A failure does not fail the use case before it: it is logged, and the steps stay in the plan for the next time.
        """
        if self._quarantine.networks():
            return
        async with self._lock:
            try:
                await self._revert(await self._surplus(present))
            except (NetplugError, OSError) as error:
                log.warning("trim.failed", errors=[str(error)])

    async def _surplus(self, present: Present) -> Plan:
        """Return what none of these networks needs. Whether others do is read only where it matters.

        Raises:
            NetplugError, OSError: the kernel does not tell.
        """
        surplus = self.plan.without(step.key for step in self._base(present()))
        if any(isinstance(step, Sysctl) and step.restore for step in surplus):
            await self.read_host()
            # A network may have come meanwhile; its own `ensure` waits for this.
            surplus = self.plan.without(step.key for step in (*self._base(present()), *self.stays()))
        if any(isinstance(step, Zone) for step in surplus):
            # While firewalld reloads, and our zone may need that, its rules look as if there were none.
            needed = self._base(present(), replace(self.host, firewalld=self.host.firewalld or Firewalld()))
            surplus = surplus.without(step.key for step in needed if isinstance(step, Zone))
        return surplus

    async def release(self, steps: Plan) -> None:
        """Revert steps of the plan that are not wanted any more, though a network may be quarantined.

        As with `trim`, a failure is logged.
        """
        async with self._lock:
            kept = {step.key for step in self.more}
            await self._revert(Plan(tuple(step for step in self.plan if step in set(steps) and step.key not in kept)))

    async def _revert(self, surplus: Plan) -> None:
        if not surplus:
            return
        with self._moving(surplus):
            left: set[str] = set()
            try:
                await self._executor.revert(surplus)
            except ExceptionGroup as group:
                left = _failed(group, surplus)
                log.warning("trim.failed", errors=[str(error) for error in group.exceptions])
            try:
                await self._remember(self.plan.without(step.key for step in surplus if step.key not in left))
            except StoreError as error:
                log.warning("trim.failed", errors=[str(error)])

    @contextmanager
    def _moving(self, plan: Plan) -> Iterator[None]:
        self._changing = frozenset(step.key for step in plan)
        try:
            yield
        finally:
            self._changing = frozenset()

    async def _remember(self, plan: Plan) -> None:
        stored = [*plan.to_json(), *self._unread]
        value: JsonObject = {"plan": stored, "exposed": _FORMER_NAMES}
        await self._store.txn((), [Put(BASE, value) if stored else Delete(BASE)])
        self.plan = plan


def _failed(group: ExceptionGroup, plan: Plan) -> set[str]:
    """Return the keys of the steps that failed; of all, if an error does not name its step."""
    if not all(isinstance(error, StepError) for error in group.exceptions):
        return {step.key for step in plan}
    return {error.step.key for error in group.exceptions if isinstance(error, StepError)}


def _unread(plan: Json) -> list[Json]:
    """Return the steps of a stored plan that this version does not know. They are kept for a version that does."""
    return [step for step in plan if not Plan.known([step])] if isinstance(plan, list) else []
