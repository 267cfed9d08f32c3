"""A listener that serves a pair of sockets until it is closed."""

from collections.abc import Callable
from dataclasses import dataclass

from netplug.dns.server import Listener


@dataclass(frozen=True, slots=True)
class Serving:
    """A listener, with what makes its owner forget it."""

    listener: Listener
    forget: Callable[[Listener], None]

    def close(self) -> None:
        """Stop answering, and close the sockets."""
        self.forget(self.listener)
        self.listener.close()
