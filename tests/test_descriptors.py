"""The limit of open files: raised as far as the kernel lets this process, and what is left is told."""

import resource
from typing import Any

import pytest

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
