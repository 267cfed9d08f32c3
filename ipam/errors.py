"""Errors of address management."""

from enum import StrEnum


class Kind(StrEnum):
    """What sort of error it is; front ends choose status and exit codes by it, never by text."""

    INVALID = "invalid"
    EXISTS = "exists"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNAVAILABLE = "unavailable"


class IpamError(Exception):
    """The pool or address cannot be had as asked.

    Args:
        kind: see `Kind`.
        message: object, value and limit, in lower case and without a full stop.
        hint: what the user can do about it.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
