"""Ports of the host, and what keeps them: as the engine sees it. Real in `host.ports`, fake in `fake.ports`."""

from typing import Protocol

from netplug.drivers.steps import HostPort, IPAddress, Proto


class Reservations(Protocol):
    """Ports of the host that a runtime keeps for a container of its own by bound sockets."""

    async def cover(self, step: HostPort) -> bool:
        """Tell whether a reservation covers all of a port."""


class HostPorts(Protocol):
    """Reserves ports of the host."""

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None = None
    ) -> int:
        """Reserve a free port of the host by a bound socket and return its number; 0 to 0 lets the kernel choose.

        A later `ensure` of the `HostPort` step finds the reservation; `remove` of that step ends it. `theirs`: sockets
        of the container's runtime; a port that these keep for it is taken note of.

        Raises:
            NetplugError: "unavailable", with the taken port in the message.
        """

    def reservations(self, pid: int, container: str) -> Reservations:
        """Return the sockets of a runtime. `pid`: of its process that calls; `container`: the id of its container."""

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors of this process for good than there are; some are kept for who asks us.

        Raises:
            NetplugError: "unavailable", with `what` and the name of the setting.
        """
