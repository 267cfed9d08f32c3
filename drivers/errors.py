"""Errors of the pure drivers."""

from enum import StrEnum


class Kind(StrEnum):
    """The kind of an error. Front ends derive status and exit codes from it, never from the text."""

    INVALID = "invalid"
    EXISTS = "exists"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"


class DriverError(Exception):
    """A network or endpoint cannot be built as requested.

    Args:
        kind: see `Kind`.
        message: names object, value and limit; lower case, no full stop.
        hint: how the user can fix it.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
