"""What the engine tells of its endpoints, for other hosts of a cluster."""

from typing import Protocol

from netplug.engine.records import EndpointRecord


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
