"""How much of the time what others cause may take: a part of it in the long run, with some saved for a burst."""

SAVED_S, LONGEST_S = 1.0, 15.0
"""How much is saved, and the longest pause, in seconds."""


class Allowance:
    """One part in `share` of the time (a token bucket)."""

    def __init__(self, now: float, share: int) -> None:
        self._share = share
        self._left_s = SAVED_S
        self._at = now

    def spend(self, now: float, spent_s: float) -> float:
        """Take note of what ends now and took so long; return how long the next one has to wait, in seconds."""
        self._left_s = min(SAVED_S, self._left_s + (now - self._at) / self._share) - spent_s
        self._at = now
        wait_s = min(max(0.0, -self._left_s) * self._share, LONGEST_S)
        self._left_s = max(self._left_s, -LONGEST_S / self._share)
        return wait_s
