"""What the engine tells of its endpoints, for other hosts of a cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from netplug.engine.records import EndpointRecord
from netplug.errors import NetplugError
from netplug.store.api import StoreError


class EndpointListener(Protocol):
    """Told of endpoints of this host.

    `joined` and `left` are called under the lock of the endpoint's network, in the order of the changes.
    """

    async def joined(self, record: EndpointRecord) -> None:
        """Tell of an endpoint, or of its new names.

        Raises:
            NetplugError: the endpoint is refused; a new one is deleted again.
        """

    async def left(self, record: EndpointRecord) -> None:
        """Tell that an endpoint is about to be deleted."""

    async def settled(self, record: EndpointRecord) -> None:
        """Wait, without a lock, until all hosts can reach an endpoint; the wait is bounded."""


class NullListener:
    """For a host without a cluster: does nothing."""

    async def joined(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return

    async def left(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return

    async def settled(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return


@asynccontextmanager
async def leaving(listener: EndpointListener, record: EndpointRecord) -> AsyncIterator[None]:
    """Tell of the end of an endpoint, which the block brings about; and that it lives on, if the store refuses that."""
    await listener.left(record)
    try:
        yield
    except StoreError:
        with suppress(NetplugError):
            await listener.joined(record)
        raise
