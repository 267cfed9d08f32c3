"""The store or the kernel refuses a change, and the daemon lives on: one story, and what follows can be done."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from engine_host import DEADLINE_S, OTHER, SANDBOX, Host, set_up
from test_engine_crash import CASES, Case, attach, cli_network, detach, dual_stack

from netplug.drivers.steps import HostPort, Step
from netplug.kernel.api import Before, Outcome, StepError
from netplug.kernel.fake.kernel import FakeKernel
from netplug.store.api import Delete, Put, StoreError

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("quiet"), pytest.mark.timeout(DEADLINE_S)]


class Refusal:
    """Refuses the `at`-th change (0: the first); if it `lasts`, all later ones too, until its `end`."""

    def __init__(self, at: int, *, lasts: bool) -> None:
        self._left = at
        self._lasts = lasts
        self.happened = False

    def due(self) -> bool:
        self._left -= 1
        due = self._left == -1 or (self._lasts and self._left < 0)
        self.happened |= due
        return due

    def end(self) -> None:
        self._left, self._lasts = -1, False


def of_store(host: Host, refusal: Refusal) -> None:
    store: Any = host.engine.store
    txn = store.txn

    async def refuse(compares: Any, ops: Sequence[Put | Delete], *, durable: bool = False) -> Any:
        if refusal.due():
            raise StoreError("the disk is full")
        return await txn(compares, ops, durable=durable)

    store.txn = refuse


def of_kernel(host: Host, refusal: Refusal) -> None:
    """Let it refuse one step at a time. It never refuses to close a socket."""
    ensure, remove = host.kernel.ensure, host.kernel.remove

    async def ensure_each(
        steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
    ) -> list[Outcome]:
        done: list[Outcome] = [] if outcomes is None else outcomes
        for step in steps:
            if refusal.due():
                raise StepError("internal", step, "refused")
            await ensure((step,), done, before)
        return done

    async def remove_each(steps: Sequence[Step]) -> None:
        errors: list[Exception] = []
        for step in steps:
            if not isinstance(step, HostPort) and refusal.due():
                errors.append(StepError("internal", step, "refused"))
            else:
                await remove((step,))
        if errors:
            raise ExceptionGroup("refused", errors)

    host.kernel.ensure, host.kernel.remove = ensure_each, remove_each  # type: ignore[method-assign]


async def attach_second(host: Host) -> object:
    """Attach a namespace to another network, which provides its default route from then on."""
    return await host.attach("ns1", network=OTHER, ifname="eth1", options={"gw_priority": "7"})


async def detach_second(host: Host) -> object:
    return await host.engine.endpoints.detach(OTHER, "ns1", "eth1")


ALL = CASES | {
    "attach to a second network": Case((cli_network, dual_stack, attach), attach_second),
    "detach from a second network": Case((cli_network, dual_stack, attach, attach_second), detach_second),
    "detach from a first network": Case((cli_network, dual_stack, attach, attach_second), detach),
}
AGAIN = "all transactions from one on, then asked again"
REFUSED: dict[str, tuple[Callable[[Host, Refusal], None], bool, int]] = {
    "one transaction": (of_store, False, 1),
    "all transactions from one on": (of_store, True, 1),
    AGAIN: (of_store, True, 1),
    # There are many steps, and those of a kind are alike.
    "one step": (of_kernel, False, 7),
    "all steps from one on": (of_kernel, True, 7),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
async def test_refused_change_leaves_nothing_half(case: Case, what: str) -> None:
    kernel = FakeKernel()
    kernel.inhabitants.add(SANDBOX)
    empty, given = await Host.boot(), await set_up(kernel, case.given)
    after = await given.clone()
    await case.act(after)
    allowed: set[Any] = {given.shape(), after.shape()}
    refuse, lasts, stride = REFUSED[what]
    at = len(case.act.__name__) % stride
    again = what == AGAIN

    def begin(host: Host) -> Refusal:
        return _begin(host, refuse, at, lasts=lasts)

    while await _refuse(given, case, begin, empty, allowed, again=again):
        at += stride
    assert at >= 1
    for host in (given, after, empty):
        await host.close()


def _begin(host: Host, refuse: Callable[[Host, Refusal], None], at: int, *, lasts: bool) -> Refusal:
    refusal = Refusal(at, lasts=lasts)
    refuse(host, refusal)
    return refusal


async def _refuse(
    given: Host, case: Case, begin: Callable[[Host], Refusal], empty: Host, allowed: set[Any], *, again: bool
) -> bool:
    """Refuse changes; False when there were not so many. `again`: who was told asks at once again, and gets it."""
    host = await given.clone()
    host.kernel.inhabitants.add(SANDBOX)
    refusal = begin(host)
    told: Exception | None = None
    try:
        await case.act(host)
    except Exception as exc:  # noqa: BLE001 - whatever it is, who asked is told
        told = exc
    refusal.end()
    if again and told:
        await case.act(host)
        told = None
    if refusal.happened:
        for _ in range(2):
            await host.reconciler.repair()
        await host.check()
        shape: Any = host.shape()
        # A subnet that was given back is the last to be given again.
        assert case.between or shape in allowed or (again and shape[:2] in {it[:2] for it in allowed})
        await host.reboot()
        await host.check()
        assert host.shape() == shape
        if isinstance(told, StoreError):
            await case.act(host)  # the repeated request succeeds
            await host.check()
        await host.delete_all()
        await host.check()
        assert host.dump() == empty.dump()
        assert (await host.store.range(""))[0] == []
    await host.close()
    return refusal.happened
