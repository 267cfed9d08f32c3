"""The units on a real systemd beside a real dockerd: no request fails while the daemon restarts, dies or hangs."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Booted, ServiceDockerd, ServiceNetplug, unbootable, wait_until

from netplug.lab.image import IMAGE

pytestmark = [
    pytest.mark.skipif(bool(unbootable()), reason=unbootable()),
    pytest.mark.skipif(not Path("/lib/systemd/system/docker.service").exists(), reason="needs docker.io (make setup)"),
]

RESTARTS = 10
WATCHDOG_S = 2


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """A machine whose boot starts netplug's units and docker."""
    with Booted("systemd") as it:
        it.enable("docker.service")
        yield it


@pytest.fixture(scope="module")
def netplug(machine: Booted) -> ServiceNetplug:
    it = ServiceNetplug(machine, drop_in=f"WatchdogSec={WATCHDOG_S}")
    assert machine.boot() == "running"
    return it


@pytest.fixture(scope="module")
def dockerd(netplug: ServiceNetplug) -> ServiceDockerd:
    it = ServiceDockerd(netplug.machine)
    it.docker("network", "create", "-d", "pynet", "blue")
    it.docker("run", "--rm", "--network", "blue", "-p", "1", IMAGE, "true")  # makes what is made once and kept
    return it


@contextmanager
def load(*works: Callable[[int], object]) -> Iterator[list[int]]:
    """Repeat each work in a thread of its own during the block, and fail as the first that fails.

    Yields the numbers of what was done.
    """
    stop, done, failed = threading.Event(), [0] * len(works), list[BaseException]()

    def repeat(index: int) -> None:
        try:
            while not stop.is_set():
                works[index](done[index])
                done[index] += 1
        except BaseException as exc:  # noqa: BLE001 - it is raised below
            failed.append(exc)
            stop.set()

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    if failed:
        raise failed[0]


def test_restarts_fail_no_request_of_docker(netplug: ServiceNetplug, dockerd: ServiceDockerd) -> None:
    def run(_: int) -> None:
        dockerd.docker("run", "--rm", "--network", "blue", "-p", "1", IMAGE, "true")

    def networks(number: int) -> None:
        dockerd.docker("network", "create", "-d", "pynet", f"loop{number}")
        dockerd.docker("network", "rm", f"loop{number}")

    def commands(_: int) -> None:
        netplug.cli("network", "ls")

    took = []
    with load(run, networks, commands) as done:
        for _ in range(RESTARTS):
            before, started = list(done), time.monotonic()
            netplug.restart()
            took.append(time.monotonic() - started)
            wait_until(lambda: all(a < b for a, b in zip(before, done, strict=True)), 60, "each work goes on")  # noqa: B023
    assert min(done) >= RESTARTS
    assert netplug.drift() == ""
    assert max(took) < 10
