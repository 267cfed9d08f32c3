"""A stand-in for a shared store that cannot be opened: every call fails at once with the reason."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from netplug.store.api import Compare, Delete, Event, Put, Record, Unreachable


class UnreachableStore:
    """`SharedStore` whose calls all raise `Unreachable`. `reason`: the text of the error."""

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self.unreadable: Mapping[str, str] = {}

    async def get(self, key: str) -> Record | None:  # noqa: ARG002 - the signature of `SharedStore`
        raise self._error()

    async def range(self, prefix: str) -> tuple[list[Record], int]:  # noqa: ARG002
        raise self._error()

    async def txn(
        self,
        compares: Sequence[Compare],  # noqa: ARG002
        ops: Sequence[Put | Delete],  # noqa: ARG002
        *,
        durable: bool = False,  # noqa: ARG002
    ) -> int | None:
        raise self._error()

    async def lease(self, ttl_s: float) -> int:  # noqa: ARG002
        raise self._error()

    async def keep_alive(self, lease: int) -> bool:  # noqa: ARG002
        raise self._error()

    async def revoke(self, lease: int) -> None:  # noqa: ARG002
        raise self._error()

    def watch(
        self,
        prefix: str,  # noqa: ARG002
        revision: int,  # noqa: ARG002
        *,
        anchor: Callable[[], Compare | None] | None = None,  # noqa: ARG002
    ) -> AsyncIterator[Event]:
        raise self._error()

    async def reconnect(self) -> None:
        return

    async def close(self) -> None:
        return

    def _error(self) -> Unreachable:
        return Unreachable(self._reason)
