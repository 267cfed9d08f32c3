"""What networks of a host share: chains, sets, forwarding. Made for the first that wants it, gone with the last."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import structlog

from netplug.drivers import routing
from netplug.drivers.api import HostFacts, Network
from netplug.drivers.codec import Json, JsonObject
from netplug.drivers.plan import Plan
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPAddress, Step, Sysctl
from netplug.engine.quarantine import Quarantine, Unusable, unusable
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel, Outcome, StepError
from netplug.kernel.executor import Executor
from netplug.store.api import Delete, Put, Store, StoreError

log = structlog.get_logger(__name__)

BASE = "meta/base"
STORE = "meta/store_endpoints"
ROUTE_S = 12e-6
"""What reading a route costs."""


class BasePlan:
    """Keeps the shared plan in step with the networks that there are.

    `plan`: as last applied. `host`: as last read. `vtep`: the address of this host to which others tunnel, if it is in
    a cluster. `store`: where the store that hosts share is reached, from which containers are kept away. Its lock is
    never held together with a network's.
    """

    def __init__(
        self,
        kernel: Kernel,
        executor: Executor,
        store: Store,
        drivers: Drivers,
        quarantine: Quarantine,
    ) -> None:
        self.plan = Plan()
        self.host = HostFacts()
        self.vtep: IPAddress | None = None
        self.store: tuple[tuple[IPAddress, int], ...] = ()
        self._kernel = kernel
        self._executor = executor
        self._store = store
        self._drivers = drivers
        self._lock = asyncio.Lock()
        self._quarantine = quarantine
        self._unread: list[Json] = []
        self._changing: frozenset[str] = frozenset()

    def changing(self) -> frozenset[str]:
        """Return the keys of the steps that are being applied or taken down right now."""
        return self._changing

    async def keep_away(self, store: Sequence[tuple[IPAddress, int]]) -> None:
        """Note from where containers are to be kept away, also for whoever works on the records without a daemon."""
        value: JsonObject = {"endpoints": [[str(address), port] for address, port in store]}
        await self._store.txn((), [Put(STORE, value) if store else Delete(STORE)])
        self.store = tuple(store)

    async def stored(self) -> tuple[tuple[IPAddress, int], ...]:
        """Return what was noted last."""
        record = await self._store.get(STORE)
        found = record.value.get("endpoints") if record else ()
        pairs = found if isinstance(found, list) else []
        return tuple((ip_address(str(it[0])), int(str(it[1]))) for it in pairs if isinstance(it, list))

    async def load(self) -> None:
        """Read the host, and what was shared before."""
        self.store = await self.stored()
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
        """Return how long nobody need look at everything again, so that looks take a twentieth of the time at most.

        Each reads all routes, of which a router may have a million (a full BGP table).
        """
        return len(self.host.routes) * ROUTE_S * 20

    async def read_host(self) -> HostFacts:
        """Read the host anew and return its facts."""
        return self.see(await self._kernel.facts())

    def see(self, host: HostFacts) -> HostFacts:
        """Take what was read of the host, and return it with what only we know."""
        self.host = replace(routing.without(self.plan, host), vtep=self.vtep, store=self.store)
        return self.host

    def wanted(self, nets: Iterable[Network]) -> Plan:
        """Return the plan that these networks share, on the host as last read.

        What only networks wanted that are gone by now stays in it until `trim`; not so what is of links that are gone.
        """
        plan, before = self._base(nets), routing.present(self.plan, self.host)
        if set(before) >= set(plan):
            return before
        return before.without(step.key for step in plan) + plan

    def in_the_way(self) -> bool:
        """Whether what is there drops what is another engine's, which has come since: then it is to be trimmed."""
        return routing.in_the_way(self.plan, self.host)

    def stays(self) -> Plan:
        """Return what others on the host, as last read, have come to rely on, with or without a network of ours."""
        return routing.staying(self.plan, self.host)

    def _base(self, nets: Iterable[Network]) -> Plan:
        families: defaultdict[str, set[int]] = defaultdict(set)
        for net in nets:
            families[net.options.mode].update(net.families())
        plan = Plan()
        for mode, versions in sorted(families.items()):
            plan += self._drivers[mode].base(sorted(versions), self.host)
        return plan

    async def ensure(self, nets: Iterable[Network]) -> None:
        """Bring about all that these networks share, or nothing; nothing is taken away."""
        left: list[Step] = []
        await self._bring_about(nets, partial(self._executor.apply, left=left), left)

    async def mend(self, nets: Iterable[Network]) -> None:
        """Bring about as much as can be of what these networks share."""
        await self._bring_about(nets, self._executor.mend)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Let nothing of what is shared be brought about or taken down during the block."""
        async with self._lock:
            yield

    async def hold(self) -> bool:
        """See to it that all of it is as it was last brought about, and return whether some was lost and is back.

        Takes milliseconds. What cannot be mended is left to whoever looks at everything.
        """
        async with self._lock:
            plan = routing.present(self.plan, self.host)
            try:
                outcomes = await self._executor.apply(plan)
            except NetplugError:
                with suppress(NetplugError, ExceptionGroup):
                    await self._executor.mend(plan)
                return False
        mended = [key for key, outcome in outcomes.items() if outcome in {Outcome.CREATED, Outcome.ADJUSTED}]
        for key in mended:
            log.warning("drift.repaired", owner="host", object=key, what="at once")
        return bool(mended)

    async def _bring_about(
        self, nets: Iterable[Network], how: Callable[[Plan], Awaitable[object]], left: Sequence[Step] | None = None
    ) -> None:
        """Bring about what these networks share.

        Args:
            nets: The networks.
            how: Does it.
            left: Where `how` does all or nothing: filled by it with what it could not take back.
        """
        async with self._lock:
            wanted = self.wanted(nets)
            new = wanted.without(step.key for step in self.plan)
            with self._moving(new):
                if wanted != self.plan:
                    # Remembered first, so that a crash or failure in between leaves nothing unknown.
                    await self._remember(wanted)
                try:
                    await how(wanted)
                except StepError:
                    if left is not None:
                        await self._forget(new.without(step.key for step in left))
                    raise

    async def _forget(self, steps: Plan) -> None:
        """Forget steps that were not made: nobody is to miss them, nor to take them down."""
        try:
            if steps:
                await self._remember(self.plan.without(step.key for step in steps))
        except StoreError as error:
            log.warning("trim.failed", errors=[str(error)])

    async def trim(self, nets: Iterable[Network]) -> None:
        """Take down what none of these networks wants; nothing while it is not known what some of them want.

        It comes after the work proper, and its failure says nothing of that: it is logged, and what could not be taken
        down stays in the plan, for the next time.
        """
        if self._quarantine.networks():
            return
        async with self._lock:
            surplus = self.plan.without(step.key for step in self._base(nets))
            if not surplus:
                return
            if any(isinstance(step, Sysctl) and step.restore for step in surplus):
                await self.read_host()
                surplus = surplus.without(step.key for step in self.stays())
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
        await self._store.txn((), [Put(BASE, {"plan": stored}) if stored else Delete(BASE)])
        self.plan = plan


def _failed(group: ExceptionGroup, plan: Plan) -> set[str]:
    """Return the keys of the steps that failed; of all, where an error does not tell its step."""
    if not all(isinstance(error, StepError) for error in group.exceptions):
        return {step.key for step in plan}
    return {error.step.key for error in group.exceptions if isinstance(error, StepError)}


def _unread(plan: Json) -> list[Json]:
    """Return the steps of a stored plan that this version does not know at all: they are kept for one that does."""
    return [step for step in plan if not Plan.known([step])] if isinstance(plan, list) else []
