"""An event that several tasks wait for."""

import asyncio
from weakref import WeakSet


class Signal:
    """Sets an event of each listener. A listener clears its own, which no other one misses."""

    def __init__(self) -> None:
        self._events: WeakSet[asyncio.Event] = WeakSet()

    def listen(self) -> asyncio.Event:
        """Return a new event. It counts as long as somebody holds it."""
        event = asyncio.Event()
        self._events.add(event)
        return event

    def set(self) -> None:
        """Set the events of all listeners."""
        for event in self._events:
            event.set()

    def is_set(self) -> bool:
        """Whether a listener has not cleared its event yet."""
        return any(event.is_set() for event in self._events)
