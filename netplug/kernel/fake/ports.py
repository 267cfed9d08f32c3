"""Ports of the host in the fake kernel."""

from dataclasses import dataclass

from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.errors import NetplugError
from netplug.kernel.fake.world import Foreign, World
from netplug.kernel.host import ports
from netplug.kernel.host.api import Reservations

_EPHEMERAL = range(32768, 61000)


class FakeReservations:
    """The ports that a runtime has bound for a container, set by tests in `Foreign.reserved`."""

    def __init__(self, foreign: Foreign, pid: int, container: str) -> None:
        self._found = foreign.reserved.get(pid, set()) | foreign.reserved.get(container, set())

    async def cover(self, step: HostPort) -> bool:
        """Return whether the runtime has bound all of a step's port; see `Reservations`."""
        return any(
            (proto, port) == (step.proto, step.port)
            and (address == step.address or (address.is_unspecified and address.version == step.address.version))
            for proto, address, port in self._found
        )


@dataclass(frozen=True, slots=True)
class FakePorts:
    """Ports of the host; see `HostPorts`."""

    world: World

    async def reserve(
        self, proto: Proto, address: IPAddress, first: int, last: int, theirs: Reservations | None = None
    ) -> int:
        """Reserve a free port."""
        world = self.world
        candidates = range(first, last + 1) if first else _EPHEMERAL
        for port in candidates:
            step = HostPort(proto, address, port)
            kind, message, hint = world.port_problem(step, lambda k, m, h: (k, m, h)) or ("", "", "")
            shared = kind == "unavailable" and theirs is not None and first == last and await theirs.cover(step)
            if not kind or (shared and not world.holds(step)):
                world.state[step.key] = HostPort(proto, address, port, shared=shared)
                return port
            if kind != "unavailable" or len(candidates) == 1 or "already in use" not in message:
                raise NetplugError(kind, message, hint=hint)
        raise NetplugError("unavailable", ports.full(proto, address, first, last))

    def reservations(self, pid: int, container: str) -> Reservations:
        """Return the sockets of a runtime."""
        return FakeReservations(self.world.foreign, pid, container)

    def admit(self, descriptors: int, what: str) -> None:
        """Refuse what takes more descriptors than there are."""
        if descriptors > (left := self.world.foreign.descriptors):
            raise NetplugError("unavailable", f"{what} needs {descriptors} open files, but {left} are free")
