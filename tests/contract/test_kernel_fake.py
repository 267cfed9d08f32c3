from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

pytest.register_assert_rewrite(
    "gate_suite",
    "inspection_suite",
    "kernel_suite",
    "living_suite",
    "ports_suite",
    "tables_suite",
    "tunnel_suite",
    "zone_suite",
)

from gate_suite import GateSuite  # noqa: E402
from inspection_suite import InspectionSuite  # noqa: E402
from kernel_suite import KernelSuite  # noqa: E402
from living_suite import LivingSuite  # noqa: E402
from ports_suite import PortsSuite  # noqa: E402
from tables_suite import TablesSuite  # noqa: E402
from tunnel_suite import TunnelSuite  # noqa: E402
from zone_suite import ZoneSuite  # noqa: E402

from netplug.drivers.api import Firewalld, HostFacts  # noqa: E402
from netplug.drivers.steps import (  # noqa: E402
    Bridge,
    FormerRules,
    IPAddress,
    IPInterface,
    Macvlan,
    Proto,
    Route,
    SourceRoute,
    Step,
    Veth,
)
from netplug.drivers.tunnel import Vxlan  # noqa: E402
from netplug.drivers.zones import Zone  # noqa: E402
from netplug.kernel.fake.kernel import FakeKernel  # noqa: E402

RUNTIME = 4711


class FakeSurroundings:
    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._foreign = kernel.foreign
        self.vanish = kernel.vanish

    def add_link(self, name: str, kind: str) -> None:
        self._foreign.links[name] = kind

    def add_vxlan(self, name: str, vni: int, port: int) -> None:
        self._foreign.tunnels[name] = (vni, port)

    def add_address(self, link: str, address: IPInterface) -> None:
        self._foreign.addresses.add((link, address))

    def answers_by(self, step: SourceRoute) -> str:  # noqa: ARG002
        return ""

    def add_route(self, route: Route) -> None:
        self._foreign.routes.append(route)

    def take_port(self, proto: Proto, address: IPAddress, port: int) -> None:
        self._foreign.ports.add((proto, address, port))

    def keep_port(self, proto: Proto, address: IPAddress, port: int, container: str = "") -> int:
        self._foreign.reserved.setdefault(container or RUNTIME, set()).add((proto, address, port))
        return RUNTIME

    def have_rules(self, family: int, flavour: str) -> None:
        facts = self._foreign.facts
        self._foreign.facts = replace(facts, gates=(*facts.gates, (family, flavour)))

    def leave_former_rules(self, family: int, flavour: str) -> None:  # noqa: ARG002
        self._kernel.tamper(FormerRules())

    def sandbox(self) -> str:
        return "/run/netns/fake"

    def appear(self, netns: str) -> None:
        self._kernel.appear(netns)

    def lose(self, step: Step) -> None:
        self._kernel.lose(step.key)

    def move(self, step: Veth | Macvlan, netns: str) -> None:
        self._kernel.move(step, netns)

    def tune(self, step: Veth | Macvlan, netns: str, mtu: int) -> None:  # noqa: ARG002
        self._kernel.tune(step, mtu)

    def sandbox_mtu(self, step: Veth | Macvlan, netns: str) -> int:  # noqa: ARG002
        return self._kernel.sandbox_mtu(step)

    def indexes(self) -> dict[str, str]:
        return {}

    def set_mtu(self, step: Bridge | Veth | Vxlan, mtu: int) -> None:
        self._kernel.tamper(replace(step, mtu=mtu))

    def snapshot(self) -> str:
        return "\n".join(line for line in self._kernel.dump().splitlines() if not line.startswith("sysctl "))


@pytest.fixture
async def kernel() -> AsyncIterator[FakeKernel]:
    fake = FakeKernel()
    yield fake
    await fake.close()


@pytest.fixture
def around(kernel: FakeKernel) -> FakeSurroundings:
    return FakeSurroundings(kernel)


class TestFakeKernel(KernelSuite):
    pass


class TestFakeLiving(LivingSuite):
    pass


class TestFakeTables(TablesSuite):
    pass


class TestFakeInspection(InspectionSuite):
    """In memory."""


class TestFakePorts(PortsSuite):
    pass


class TestFakeTunnels(TunnelSuite):
    pass


class TestFakeGate(GateSuite):
    @pytest.fixture
    def flavour(self) -> str:
        return "nft"


class FakeFirewalld:
    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        kernel.foreign.facts = HostFacts(firewalld=Firewalld())

    def choose(self, link: str, zone: str) -> None:
        self._kernel.foreign.facts = HostFacts(firewalld=Firewalld(((link, zone),)))

    def forget(self, link: str) -> None:
        self._kernel.lose(Zone(link).key)

    def lose_bus(self) -> None:
        self._kernel.foreign.lacks.add("message bus")

    def end(self) -> None:
        self._kernel.foreign.facts = HostFacts()


class TestFakeZone(ZoneSuite):
    @pytest.fixture
    def firewalld(self, kernel: FakeKernel) -> FakeFirewalld:
        return FakeFirewalld(kernel)
