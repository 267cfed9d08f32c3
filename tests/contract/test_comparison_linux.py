"""Sandboxes are looked at one after the other."""

import os
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import pytest

from netplug.drivers.steps import Loopback
from netplug.kernel.api import MISSING
from netplug.kernel.comparison import Compared
from netplug.kernel.firewall.table_reader import NOTHING
from netplug.kernel.handlers import Handler, Handlers, Lane
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.survey import Netns, Survey
from netplug.kernel.threads import in_new_thread

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


class Counting(Handler[Loopback]):
    """Counts the namespaces that are known whenever a step is compared."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def lane(self, step: Loopback) -> Lane:
        raise NotImplementedError

    def namespaces(self, step: Loopback) -> tuple[Netns, ...]:
        return ((step.netns, step.netns_id),)

    def drift(self, step: Loopback, survey: Survey) -> str:
        self.known.append(len(survey._views))
        assert "lo" in survey.host.links
        view = survey.view(step.netns, step.netns_id)
        return "" if view and "lo" in view.links else MISSING


class CountingInLoop(Counting):
    in_thread = False


@pytest.fixture
def names() -> Iterator[list[str]]:
    names = [f"np-test-{uuid4().hex[:8]}" for _ in range(3)]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield names
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)


def compared(handler: Counting, names: list[str]) -> list[str]:
    handlers = Handlers()
    handlers.add(Loopback, handler)
    steps = [Loopback(f"/run/netns/{name}") for name in (*names, "np-none", *names)]
    it = Compared(Survey(steps, NOTHING, {}), handlers)
    nl = Netlink.open()
    try:
        in_new_thread("looks", lambda: it.look(nl))
        it.compare_in_loop()
    finally:
        nl.close()
    assert len(handler.known) == len(steps)
    return [drift.step.netns for drift in it.drifts() if isinstance(drift.step, Loopback)]


def test_what_was_seen_in_a_sandbox_is_forgotten_before_the_next(names: list[str]) -> None:
    handler = Counting()
    assert compared(handler, names) == ["/run/netns/np-none"]
    assert set(handler.known) == {2}


def test_what_the_event_loop_compares_is_kept(names: list[str]) -> None:
    handler = CountingInLoop()
    assert compared(handler, names) == ["/run/netns/np-none"]
    assert set(handler.known) == {5}
