"""Work of which each part is done, whatever becomes of the others."""

from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


class BestEffort:
    """Keeps the errors of parts that do not need each other, until all have been done."""

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    async def do(self, part: Awaitable[_T]) -> _T | None:
        """Do a part and return its result; None if it failed."""
        try:
            return await part
        except Exception as exc:  # noqa: BLE001 - `settle` raises it
            self._errors.append(exc)
            return None

    def settle(self) -> None:
        """Raise the error that was kept; an ExceptionGroup of several, unless all say the same."""
        different = list({(type(exc), str(exc)): exc for exc in self._errors}.values())
        if len(different) > 1:
            raise ExceptionGroup("several parts failed", different)
        if different:
            raise different[0]
