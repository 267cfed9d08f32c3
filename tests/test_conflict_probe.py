"""What comes in time counts when addresses are looked for, however late a busy host reads it."""

import socket
from ipaddress import ip_address
from itertools import count
from types import SimpleNamespace

import pytest

from netplug.drivers.steps import Announce
from netplug.kernel.links import conflict_probe

OURS, FREE = ip_address("10.9.0.77"), ip_address("10.9.0.78")
MAC = "02:00:00:00:00:07"


def test_answer_that_waits_when_the_time_is_over_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that asked comes to run again after a long time."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    now = count(0, 10)
    with here, there:
        answer, _ = conflict_probe.announcement(Announce("eth0", MAC, OURS))
        monkeypatch.setattr(conflict_probe, "ask", lambda *_: there.send(answer))
        monkeypatch.setattr(conflict_probe, "time", SimpleNamespace(monotonic=lambda: next(now)))
        assert conflict_probe._ask([here], frozenset({OURS, FREE})) == {OURS: MAC}
