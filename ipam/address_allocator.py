"""Picks addresses of one pool: in memory, by number, in constant time on average.

Never-used addresses come first, ascending from the start; then the released ones, longest released first, so
that neighbours' ARP caches and conntrack entries of the old owner have gone. There is no bitmap: memory
follows the number of leases, and a /64 costs what a /24 costs. For the same end only so many released
addresses are remembered; when the others are needed, the cursor goes round once more.
"""

from collections import OrderedDict

REMEMBERED = 65_536  # released addresses: some 8 MB at the most, and the whole of a /16


class AddressAllocator:
    """The numbers from `first` to `last`, beginning at the fraction `start` (0 ≤ start < 1) of them.

    `steps` counts the numbers looked at, for tests.

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
        """Look for never-used numbers from another fraction of all on."""
        # A float has no 64 bits; the first 32 of the fraction place it well enough.
        self._offset = (self.size * int(start * 2**32)) >> 32
        self._cursor = 0

    @property
    def taken(self) -> int:
        """How many of the numbers are taken."""
        return len(self._taken)

    def pick(self) -> int | None:
        """Take the next free number and return it; None when all are taken."""
        if len(self._taken) == self.size:
            return None
        number = self._ahead()
        if number is None and self._released:
            number, _ = self._released.popitem(last=False)
        if number is None:  # forgotten ones are left
            self._cursor = 0
            number = self._ahead()
        if number is not None:
            self._taken.add(number)
        return number

    def take(self, number: int) -> None:
        """Take this number; one outside the window, or taken already, makes no difference."""
        if 0 <= number - self._first < self.size:
            self._taken.add(number)
            self._released.pop(number, None)

    def release(self, number: int) -> None:
        """Give a number back; it will be picked last. One that is not taken makes no difference."""
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
