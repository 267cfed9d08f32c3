"""Facts of a host that note which of them are read: what a plan follows from.

For a driver they are `HostFacts` like any others: it may compare, copy and pass them on. What a driver remembers from
call to call, or reads elsewhere, is not noted; a driver is a pure function.
"""

from dataclasses import fields
from typing import Any

from netplug.drivers.api import HostFacts, LinkFacts

_FIELDS = tuple(field.name for field in fields(HostFacts))
_NAMES = frozenset(_FIELDS)
_LINK = "link "


class ReadFacts(HostFacts):
    """The facts of a host as given to a driver.

    Of its links, a look-up of one is noted by itself: another container's link does not change the plan.
    """

    __slots__ = ("_host", "_read")

    _host: HostFacts
    _read: dict[str, object]

    @classmethod
    def of(cls, host: HostFacts) -> "ReadFacts":
        """Return the facts of a host, of which nothing was read yet."""
        return cls._noting(host, {})

    @classmethod
    def _noting(cls, host: HostFacts, read: dict[str, object]) -> "ReadFacts":
        facts = cls.__new__(cls)
        object.__setattr__(facts, "_host", host)
        object.__setattr__(facts, "_read", read)
        return facts

    def again(self, host: HostFacts) -> "ReadFacts":
        """Return the facts of a host as read anew, of which the same was read."""
        return self if self._host is host else self._noting(host, self._read)

    def are_of(self, host: HostFacts) -> bool:
        """Whether all that was read is as it is at a host."""
        if host is self._host:
            return True
        return all(value == _value(host, name) for name, value in tuple(self._read.items()))  # a thread may read more

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # a copy is one of plain facts: all that it is made of counts as read
            return HostFacts
        if name not in _NAMES:
            return object.__getattribute__(self, name)
        host = self._host
        self._read[name] = value = getattr(host, name)
        return value

    def link(self, name: str) -> LinkFacts | None:
        """Return the link of this name, None when there is none."""
        self._read[_LINK + name] = found = self._host.link(name)
        return found

    def __reduce__(self) -> Any:
        return HostFacts, tuple(getattr(self, name) for name in _FIELDS)


def _value(host: HostFacts, name: str) -> object:
    return host.link(name.removeprefix(_LINK)) if name.startswith(_LINK) else getattr(host, name)
