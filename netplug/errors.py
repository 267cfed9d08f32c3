"""Errors of the composition, and the one shape that front ends know of all errors.

Drivers and the allocator have error classes of their own (they import nothing of netplug); they share `kind`,
`message` and `hint`, which is all that a front end looks at: `Reportable`.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Reportable(Protocol):
    """An error that a user can act on. `kind` is one of `NetplugError`'s."""

    kind: str
    message: str
    hint: str


class NetplugError(Exception):
    """Something asked for cannot be done.

    Args:
        kind: "invalid", "exists", "forbidden", "not_found" are the user's; "unavailable" is the world's (a port is
            taken, a pool is empty, the store does not answer); "internal" is ours.
        message: object, value and limit, in lower case and without a full stop.
        hint: what the user can do about it.
    """

    def __init__(self, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
