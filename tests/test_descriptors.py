"""The limit of open files: raised as far as the kernel lets this process, and what is left is told."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from netplug.errors import NetplugError
from netplug.kernel.host import descriptors


class Limits:
    """The kernel's rules for RLIMIT_NOFILE (getrlimit(2)). `privileged`: with CAP_SYS_RESOURCE."""

    def __init__(self, soft: int, hard: int, *, privileged: bool) -> None:
        self.soft, self.hard, self._privileged = soft, hard, privileged

    def get(self, _: int) -> tuple[int, int]:
        return self.soft, self.hard

    def set(self, _: int, limits: tuple[int, int]) -> None:
        if limits[1] > self.hard and not self._privileged:
            raise ValueError("not allowed to raise maximum limit")
        self.soft, self.hard = limits


@pytest.mark.parametrize(
    ("hard", "privileged", "limit", "few"),
    [
        (4096, True, descriptors.WANTED, False),
        (1_048_576, True, 1_048_576, False),
        (20_000, False, 20_000, False),
        (1_024, False, 1_024, True),
    ],
)
def test_limit_is_raised_as_far_as_allowed_and_said_if_it_is_low(
    monkeypatch: pytest.MonkeyPatch, hard: int, privileged: bool, limit: int, few: bool
) -> None:
    said: list[dict[str, Any]] = []
    limits = Limits(min(hard, 1024), hard, privileged=privileged)
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    monkeypatch.setattr(descriptors.log, "warning", lambda event, **keys: said.append({"event": event, **keys}))
    assert descriptors.raise_limit() == limit
    assert (limits.soft, limits.hard) == (limit, limit)
    assert [(it["event"], it["limit"], "LimitNOFILE" in it["hint"]) for it in said] == [
        ("descriptors.few", limit, True)
    ] * few


def test_room_for_descriptors_is_not_counted_while_there_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request that publishes a port asks, and the count takes longer the more are open."""
    monkeypatch.setattr(descriptors, "_usable", lambda: 1 << 20)
    monkeypatch.setattr(os, "listdir", lambda _: pytest.fail("counted"))
    descriptors.require(1000, "publishing 500 ports")


def test_last_free_descriptor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where room is short, the kernel's table is larger than the number of open descriptors, so these are counted."""
    with Path(os.devnull).open() as one:
        usable = len(os.listdir("/proc/self/fd")) + 2  # noqa: PTH208
        monkeypatch.setattr(descriptors, "_usable", lambda: usable)
        descriptors.require(2, f"a test with {one.name}")
        with pytest.raises(NetplugError, match=r"a test needs 3 open files, but 2 of \d+ are free"):
            descriptors.require(3, "a test")
