"""How long things take, counted in buckets. Counting one takes a microsecond, so nothing gets slower by it."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets; one more has what is longer."""
OK = "ok"
Labels: TypeAlias = tuple[str, ...]


@dataclass(slots=True)
class Latency:
    """Durations, in buckets, and their sum in seconds."""

    bounds: tuple[float, ...] = BOUNDS_S
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def note(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.sum_s += seconds


class Latencies:
    """Latencies by labels. The caller sees to it that these are few."""

    def __init__(self) -> None:
        self.seen: dict[Labels, Latency] = {}

    def note(self, labels: Labels, seconds: float) -> None:
        """Count one."""
        latency = self.seen.get(labels)
        if latency is None:
            latency = self.seen[labels] = Latency()
        latency.note(seconds)

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Count the time of the block, as ``(operation, "ok" or the name of the error)``."""
        started, outcome = time.perf_counter(), "cancelled"
        try:
            yield
            outcome = OK
        except Exception as exc:
            outcome = type(exc).__name__.lower()
            raise
        finally:
            self.note((operation, outcome), time.perf_counter() - started)
