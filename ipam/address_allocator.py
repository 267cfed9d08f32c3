"""Picks free addresses of one pool: in memory, as numbers, in constant time on average.

Addresses that were never used come first, in ascending order from the start; then released ones, the longest released
first, so that ARP caches and conntrack entries of the last owner have time to expire. There is no bitmap: memory grows
with the number of leases, and a /64 costs no more than a /24. The number of released addresses that are remembered is
limited for the same reason; when the others are needed, the cursor starts a second round.
"""

from collections import OrderedDict

REMEMBERED = 65_536  # released addresses: at most about 8 MB, and a whole /16


class AddressAllocator:
    """The numbers from `first` to `last`; picking starts at the fraction `start` of them (0 ≤ start < 1).

    `steps` counts the numbers examined, for tests.

    >>> picker = AddressAllocator(1, 3)
    >>> picker.pick(), picker.pick()
    (1, 2)
    >>> picker.release(1)
    >>> picker.pick(), picker.pick(), picker.pick()
    (3, 1, None)
    """

    def __init__(self, first: int, last: int, start: float = 0.0) -> None:
        self.size = max(0, last - first + 1)
        self._first = first
        self._taken: set[int] = set()
        self._released: OrderedDict[int, None] = OrderedDict()
        self.steps = 0
        self.begin_at(start)

    def begin_at(self, start: float) -> None:
        """Continue at another fraction of the range."""
        # A float has 53 significant bits and an IPv6 size may have 64; 32 bits of the fraction are precise enough.
        self._offset = (self.size * int(start * 2**32)) >> 32
        self._cursor = 0

    @property
    def taken(self) -> int:
        """The number of taken numbers."""
        return len(self._taken)

    def pick(self) -> int | None:
        """Take the next free number and return it; None if all are taken."""
        if len(self._taken) == self.size:
            return None
        number = self._ahead()
        if number is None and self._released:
            number, _ = self._released.popitem(last=False)
        if number is None:  # only released ones that were forgotten
            self._cursor = 0
            number = self._ahead()
        if number is not None:
            self._taken.add(number)
        return number

    def take(self, number: int) -> None:
        """Take this number. A number outside the range, or already taken, is ignored."""
        if 0 <= number - self._first < self.size:
            self._taken.add(number)
            self._released.pop(number, None)

    def release(self, number: int) -> None:
        """Release a number; it will be picked last. A number that is not taken is ignored."""
        if number in self._taken:
            self._taken.remove(number)
            self._released[number] = None
            if len(self._released) > REMEMBERED:
                self._released.popitem(last=False)

    def _ahead(self) -> int | None:
        while self._cursor < self.size:
            self.steps += 1
            number = self._first + (self._offset + self._cursor) % self.size
            self._cursor += 1
            if number not in self._taken and number not in self._released:
                return number
        return None
