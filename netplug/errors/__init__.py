"""netplug's error class, and the protocol by which front ends read every error.

Drivers and the allocator have error classes of their own, since they do not import netplug. All have `kind`, `message`
and `hint`. Front ends read only these: `Reportable`.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Reportable(Protocol):
    """An error that a user can act on. `kind` is one of `NetplugError`'s."""

    kind: str
    message: str
    hint: str


class NetplugError(Exception):
    """A request cannot be fulfilled.

    Args:
        kind: "invalid", "exists", "forbidden" and "not_found" are the user's mistakes; "unavailable" depends on the
            environment (a port is in use, a pool is empty, the store does not answer); "internal" is netplug's fault.
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
