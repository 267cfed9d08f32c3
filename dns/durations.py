"""How long answers take, counted in buckets."""

from bisect import bisect_left
from dataclasses import dataclass, field

ANSWER_BOUNDS_S = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)
"""Upper bounds for answers of our own; one more bucket has what takes longer."""
UPSTREAM_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""As above, for answers of upstreams."""


@dataclass(slots=True)
class Durations:
    """Durations, in buckets, and their sum in seconds."""

    bounds: tuple[float, ...]
    buckets: list[int] = field(init=False)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.buckets = [0] * (len(self.bounds) + 1)

    def note(self, seconds: float, count: int = 1) -> None:
        """Count some that took so long each."""
        self.buckets[bisect_left(self.bounds, seconds)] += count
        self.sum_s += seconds * count
