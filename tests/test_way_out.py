"""Which network of a sandbox provides its default route: by priority, whatever came first, and after each death."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest
import pytest_asyncio
from engine_host import NET, OTHER, Died, Fuse, Host

from netplug.drivers.api import StaticRoute
from netplug.drivers.steps import Route, SourceRoute, Step
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError

pytestmark = pytest.mark.usefixtures("quiet")
THIRD = "c3" * 32
NAMES = {NET: "blue", OTHER: "red", THIRD: "green"}
V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
SANDBOX = "/run/netns/ns1"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.check()
    await host.close()


async def networks(host: Host, *, of: Mapping[str, int]) -> None:
    for number, (ident, priority) in enumerate(of.items()):
        options = {"gw_priority": str(priority)} if priority else {}
        await host.cli_network(f"10.{number + 1}.0.0/24", ident=ident, name=NAMES[ident], **options)


def ways(host: Host) -> dict[int, str]:
    """Return the networks by which the sandbox is left in the kernel, by IP version."""
    found = {}
    links = {record.ifname: record.endpoint.network for record in host.endpoints() if record.sandbox == SANDBOX}
    for step in host.kernel._world.state.values():
        if isinstance(step, Route) and step.netns == SANDBOX and not step.destination.prefixlen:
            assert step.destination.version not in found
            found[step.destination.version] = NAMES[links[step.link]]
    return found


async def join(host: Host, ident: str, **options: str) -> EndpointRecord:
    return await host.attach("ns1", network=ident, ifname=f"eth{[*NAMES].index(ident)}", options=options)


async def detach(host: Host, ident: str) -> None:
    await host.engine.endpoints.detach(ident, "ns1", f"eth{[*NAMES].index(ident)}")


@pytest.mark.parametrize("order", list(permutations(NAMES)), ids=lambda order: "-".join(map(NAMES.get, order)))
async def test_highest_priority_wins_in_whatever_order_they_come(host: Host, order: tuple[str, ...]) -> None:
    await networks(host, of={NET: -7, OTHER: 0, THIRD: 5})
    for number, ident in enumerate(order):
        built = await join(host, ident)
        best = max(order[: number + 1], key=[NET, OTHER, THIRD].index)
        assert ways(host) == {4: NAMES[best]}
        assert [bool(built.routes)] == [best == ident]  # what the caller is told
        await host.check()
    for ident in (THIRD, OTHER):
        await detach(host, ident)
        await host.check()
        assert ways(host) == {4: NAMES[[NET, OTHER, THIRD][[NET, OTHER, THIRD].index(ident) - 1]]}


async def test_first_keeps_it_if_priorities_are_equal(host: Host) -> None:
    await networks(host, of={NET: 3, OTHER: 3, THIRD: 0})
    await join(host, OTHER)
    await join(host, NET)
    await join(host, THIRD)
    assert ways(host) == {4: "red"}
    await detach(host, OTHER)
    assert ways(host) == {4: "blue"}


async def test_priority_of_an_endpoint_precedes_that_of_its_network(host: Host) -> None:
    await networks(host, of={NET: 5, OTHER: 0})
    await join(host, NET)
    await join(host, OTHER, gw_priority="6")
    assert ways(host) == {4: "red"}
    await detach(host, OTHER)
    await join(host, OTHER, gw_priority="-1")
    assert ways(host) == {4: "blue"}
    await host.reboot()
    assert ways(host) == {4: "blue"}


async def test_other_ip_version_is_provided_by_a_network_that_has_it(host: Host) -> None:
    await networks(host, of={NET: 5})
    both = (SubnetSpec(ip_network("10.9.0.0/24")), SubnetSpec(ip_network("fd00:9::/64"), v6=True))
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, both))
    await join(host, OTHER)
    assert ways(host) == {4: "red", 6: "red"}
    await join(host, NET)
    assert ways(host) == {4: "blue", 6: "red"}
    await detach(host, NET)
    assert ways(host) == {4: "red", 6: "red"}


async def test_network_without_a_gateway_is_never_the_way_out(host: Host) -> None:
    await networks(host, of={NET: 0})
    spec = NetworkSpec(OTHER, "red", {"gw_priority": "9"}, (SubnetSpec(ip_network("10.9.0.0/24")),), internal=True)
    await host.engine.networks.create(spec)
    await join(host, OTHER)
    assert ways(host) == {}
    await join(host, NET)
    assert ways(host) == {4: "blue"}


async def test_endpoint_of_an_internal_network_has_no_priority(host: Host) -> None:
    spec = NetworkSpec(NET, "blue", {}, (SubnetSpec(ip_network("10.9.0.0/24")),), internal=True)
    await host.engine.networks.create(spec)
    before = await host.state()
    with pytest.raises(NetplugError, match="option gw_priority: network 'blue' is internal"):
        await join(host, NET, gw_priority="1")
    assert await host.state() == before


async def test_changed_priority_moves_it(host: Host) -> None:
    """As `network update` does: it saves the network, and has its sandboxes converge."""
    await networks(host, of={NET: 0, OTHER: 0})
    await join(host, NET)
    await join(host, OTHER)
    for priority, expected in ((1, "red"), (0, "red"), (-1, "blue")):
        record = host.engine.registry.network(OTHER)
        options = replace(record.network.options, gw_priority=priority)
        await host.engine.registry.save(replace(record, network=replace(record.network, options=options)))
        await host.engine.endpoints.way_out.converge(SANDBOX)
        assert ways(host) == {4: expected}
        await host.check()


async def test_former_way_out_answers_by_its_own_link_before_it_moves(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what its connections send in between leaves by a link that has another address, and is lost."""
    await networks(host, of={NET: 0, OTHER: 1})
    await join(host, NET)
    state = host.kernel._world.state
    answering = []
    ensure = type(host.kernel).ensure

    async def watched(self: object, steps: Sequence[Step], *args: object) -> object:
        if any(isinstance(step, Route) and step.link == "eth1" and not step.destination.prefixlen for step in steps):
            answering.append({step.link for step in state.values() if isinstance(step, SourceRoute)})
        return await ensure(self, steps, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(host.kernel), "ensure", watched)
    await join(host, OTHER)
    assert ways(host) == {4: "red"}
    assert [it >= {"eth0"} for it in answering] == [True]


async def test_nothing_is_written_if_nothing_changes(host: Host) -> None:
    await networks(host, of={NET: 1, OTHER: 0})
    await join(host, NET)
    await join(host, OTHER)
    before = await host.store.range("")
    await host.engine.endpoints.way_out.converge_all()
    assert await host.store.range("") == before


async def test_attach_that_cannot_have_the_route_is_refused_and_changes_nothing(host: Host) -> None:
    await networks(host, of={NET: 0, OTHER: 1})
    await join(host, NET)
    before = await host.state()
    host.kernel.fail_at(f"route/{SANDBOX}/0.0.0.0/0/eth1")
    with pytest.raises(NetplugError, match="a test wants it"):
        await join(host, OTHER)
    host.kernel.heal()
    assert await host.state() == before


async def test_detach_succeeds_even_if_the_next_cannot_have_the_route(host: Host) -> None:
    await networks(host, of={NET: 1, OTHER: 0})
    await join(host, NET)
    await join(host, OTHER)
    host.kernel.fail_at(f"route/{SANDBOX}/0.0.0.0/0/eth1")
    await detach(host, NET)
    assert ways(host) == {}
    host.kernel.heal()
    await host.reconciler.repair()
    assert ways(host) == {4: "red"}


# CNI


def cni(ident: str, gateway: str = "") -> dict[str, object]:
    given = (StaticRoute(V4, ip_address(gateway)),) if gateway else None
    return {"front_end": FrontEnd.CNI, "container": "pod", "id": ident[:62] + "ee", "routes": given}


@pytest.mark.parametrize("given", [False, True], ids=["by the gateways", "by configured routes"])
async def test_first_network_of_a_pod_keeps_its_route_without_priorities(host: Host, *, given: bool) -> None:
    await networks(host, of={NET: 0, OTHER: 0})
    for number, ident in enumerate((NET, OTHER)):
        options = cni(ident, f"10.{number + 1}.0.1" if given else "")
        await host.attach("ns1", network=ident, ifname=f"eth{number}", **options)
    assert ways(host) == {4: "blue"}
    (first, _) = host.endpoints()
    await host.engine.endpoints.delete(NET, first.endpoint.id)
    assert ways(host) == {}  # the configuration says who has it


@pytest.mark.parametrize("given", [False, True], ids=["by the gateways", "by configured routes"])
async def test_priorities_rank_the_networks_of_a_pod(host: Host, *, given: bool) -> None:
    await networks(host, of={NET: 0, OTHER: 4})
    for number, ident in enumerate((NET, OTHER)):
        options = cni(ident, f"10.{number + 1}.0.1" if given else "")
        await host.attach("ns1", network=ident, ifname=f"eth{number}", **options)
    assert ways(host) == {4: "red"}
    (_, second) = host.endpoints()
    await host.engine.endpoints.delete(OTHER, second.endpoint.id)
    assert ways(host) == {4: "blue"}


# Death


@dataclass(frozen=True)
class Case:
    """`given`: networks that the sandbox is in; then one is joined, or left. `expected`: who is the way out then."""

    given: tuple[str, ...]
    join: str = ""
    leave: str = ""
    expected: set[str] = field(default_factory=set)


CASES = {
    "a higher one comes": Case((NET,), join=THIRD, expected={"green", "blue"}),
    "a higher one comes between two": Case((NET, OTHER), join=THIRD, expected={"green", "red"}),
    "the highest goes": Case((NET, OTHER, THIRD), leave=THIRD, expected={"green", "red"}),
    "another one goes": Case((NET, OTHER, THIRD), leave=NET, expected={"green"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_after_death_in_the_middle_the_best_is_the_way_out(case: Case) -> None:
    changes, ended = 0, False
    while not ended:
        host = await Host.boot()
        await networks(host, of={NET: -1, OTHER: 2, THIRD: 8})
        for ident in case.given:
            await join(host, ident)
        host.live(Fuse(changes))
        await host.reconciler.load()
        with suppress(Died):
            await (join(host, case.join) if case.join else detach(host, case.leave))
            ended = True
        await host.reboot()
        await host.check()
        here = [record.endpoint.network for record in host.endpoints()]
        best = max(here, key=[NET, OTHER, THIRD].index)
        assert ways(host) == {4: NAMES[best]}, f"after {changes} changes"
        assert NAMES[best] in case.expected
        await host.delete_all()
        await host.check()
        await host.close()
        changes += 1
    assert changes > 4


async def test_only_network_of_a_cni_container_provides_the_route_again_when_it_is_internal_no_longer(
    host: Host,
) -> None:
    await networks(host, of={NET: 0})
    await host.attach("ns1", front_end=FrontEnd.CNI)
    for internal in (True, False):
        await host.engine.network_updates.update(NET, NetworkChange(internal=internal))
        assert ways(host) == ({} if internal else {4: "blue"})
