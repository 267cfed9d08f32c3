"""What a test has made up of a host; see `netplug.kernel.host.api.Inspection`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from netplug.drivers.steps import HostPort, Proto
from netplug.kernel.fake.world import World
from netplug.kernel.host.api import Descriptors, Holder, Offloads, Program, RefusingRoute

_FORWARDING = {"net/ipv4/ip_forward": 4, "net/ipv6/conf/all/forwarding": 6}


@dataclass(slots=True)
class Health:
    """What tests change freely. `sysctls`: those that nothing else of the fake decides. `offloads`: by link."""

    release: str = "6.1.0"
    lacks: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    holders: tuple[Holder, ...] = ()
    programs: tuple[Program, ...] = ()
    descriptors: Descriptors = field(default_factory=lambda: Descriptors(40, 65536))
    counters: dict[str, int] = field(default_factory=dict)
    managed: dict[str, bool] | None = None
    offloads: dict[str, Offloads] = field(default_factory=dict)
    refusing_routes: tuple[RefusingRoute, ...] = ()


class FakeInspection:
    """The health that a test has made up, and what the fake kernel knows itself: sysctls and ports."""

    def __init__(self, world: World, health: Health) -> None:
        self._world = world
        self._health = health

    def release(self) -> str:
        """Return the release of the made-up kernel."""
        return self._health.release

    def lacks(self) -> tuple[str, ...]:
        """Return what tests have taken away."""
        return self._health.lacks

    def sysctl(self, name: str) -> str:
        """Return what tests set, else what steps of ours did."""
        if name in self._health.sysctls:
            return self._health.sysctls[name]
        if family := _FORWARDING.get(name):
            written = self._world.sysctls.get(name)
            return written or str(int(family in self._world.foreign.facts.forwarding))
        return self._world.sysctls.get(name, "")

    def holders(self, proto: Proto, port: int) -> tuple[Holder, ...]:
        """Return the sockets of others at a port, and those that keep ports of ours."""
        ours = (it for it in self._world.state.values() if isinstance(it, HostPort))
        found = [
            Holder(proto, str(it.address), port, "process 1 (netplug)")
            for it in ours
            if it.proto is proto and it.port <= port < it.port + it.count
        ]
        found += [
            Holder(proto, str(address), port)
            for of, address, at in self._world.foreign.ports
            if (of, at) == (proto, port)
        ]
        found += [it for it in self._health.holders if (it.proto, it.port) == (proto, port)]
        return tuple(sorted(found, key=lambda it: it.address))

    def programs(self, names: Collection[str]) -> tuple[Program, ...]:
        """Return those of the made-up processes."""
        return tuple(it for it in self._health.programs if it.name in names)

    def descriptors(self) -> Descriptors:
        """Return made-up numbers."""
        return self._health.descriptors

    def counters(self) -> Mapping[str, int]:
        """Return made-up counters."""
        return self._health.counters

    async def managed(self, links: Collection[str]) -> Mapping[str, bool] | None:
        """Return what tests let NetworkManager say of them."""
        told = self._health.managed
        return None if told is None else {link: told[link] for link in links if link in told}

    def offloads(self, link: str) -> Offloads:
        """Return what tests have given a link."""
        return self._health.offloads.get(link, Offloads())

    def refusing_routes(self) -> tuple[RefusingRoute, ...]:
        """Return made-up routes."""
        return self._health.refusing_routes
