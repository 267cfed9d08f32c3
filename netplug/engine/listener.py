"""Who on other hosts has to know of endpoints here."""

from typing import Protocol

from netplug.engine.records import EndpointRecord


class EndpointListener(Protocol):
    """Told of what happens here, under the lock of the endpoint's network."""

    async def joined(self, record: EndpointRecord) -> None:
        """Tell of an endpoint, or of how it is called now.

        Raises:
            NetplugError: it must not be; a new one goes again.
        """

    async def left(self, record: EndpointRecord) -> None:
        """Tell that an endpoint is about to go."""

    async def settled(self, record: EndpointRecord) -> None:
        """Wait a moment until an endpoint that was told of is reached from everywhere. Under no lock."""


class NullListener:
    """There are no other hosts."""

    async def joined(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return

    async def left(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return

    async def settled(self, record: EndpointRecord) -> None:  # noqa: ARG002 - as of `EndpointListener`
        return
