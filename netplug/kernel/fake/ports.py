"""Ports of the host in the memory of a fake kernel."""

from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.errors import NetplugError
from netplug.kernel.api import Reservations
from netplug.kernel.fake.world import Foreign, World
from netplug.kernel.host import ports

_EPHEMERAL = range(32768, 61000)


class FakeReservations:
    """What tests say that a runtime keeps for a container, see `Foreign.reserved`."""

    def __init__(self, foreign: Foreign, pid: int, container: str) -> None:
        self._found = foreign.reserved.get(pid, set()) | foreign.reserved.get(container, set())

    async def cover(self, step: HostPort) -> bool:
        """Tell whether nobody else can have any of a port; see `Reservations`."""
        return any(
            (proto, port) == (step.proto, step.port)
            and (address == step.address or (address.is_unspecified and address.version == step.address.version))
            for proto, address, port in self._found
        )


async def reserve(
    world: World, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None
) -> int:
    """Reserve a free port; see `Kernel.reserve`."""
    candidates = range(first, last + 1) if first else _EPHEMERAL
    for port in candidates:
        step = HostPort(proto, address, port)
        kind, message, hint = world.port_problem(step, lambda k, m, h: (k, m, h)) or ("", "", "")
        known = kind == "unavailable" and theirs is not None and first == last and await theirs.cover(step)
        if not kind or (known and not world.holds(step)):
            world.state[step.key] = HostPort(proto, address, port, shared=known)
            return port
        if kind != "unavailable" or len(candidates) == 1 or "already in use" not in message:
            raise NetplugError(kind, message, hint=hint)
    raise NetplugError("unavailable", ports.full(proto, address, first, last))
