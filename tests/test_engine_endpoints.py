"""Use cases of endpoints on a fake kernel."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_interface
from itertools import permutations
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, SANDBOX, Host, external, tcp, udp

from netplug.drivers.errors import DriverError
from netplug.drivers.plan import Plan
from netplug.drivers.steps import HostPort, Proto, Route, Veth
from netplug.engine.records import Description, EndpointRecord, EndpointSpec, FrontEnd, NetworkSpec
from netplug.errors import NetplugError
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import Owner, OwnerKind
from netplug.store.api import StoreError

REFUSED = (NetplugError, DriverError, IpamError)
pytestmark = pytest.mark.usefixtures("quiet")
PORTS = (tcp(8080), udp(53))


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.docker_network()
    yield host
    await host.check()
    await host.close()


def published(host: Host, ident: str = END) -> list[str]:
    return sorted(map(str, host.endpoint(ident).published))


# Life


async def test_life_in_docker_order_ends_where_it_began(host: Host) -> None:
    before = await host.state()
    await host.docker_endpoint(ports=PORTS)
    await host.join()
    await host.publish()
    assert published(host) == ["0.0.0.0:53->53/udp", "0.0.0.0:8080->80/tcp"]
    await host.check()
    await host.engine.publishing.unpublish(NET, END)
    await host.engine.endpoints.leave(NET, END)
    assert host.endpoint().sandbox == ""
    await host.check()
    assert await host.engine.endpoints.delete(NET, END)
    assert await host.state() == before


@pytest.mark.parametrize("order", list(permutations(["join", "publish", "unpublish", "leave"])), ids="-".join)
async def test_calls_may_come_in_any_order_and_twice(host: Host, order: tuple[str, ...]) -> None:
    before = await host.state()
    await host.docker_endpoint(ports=PORTS)
    endpoints = host.engine.endpoints
    for name in order:
        for _ in range(2):
            if name == "join":
                await host.join()
                assert host.endpoint().linked
            elif name == "publish" and host.endpoint().linked:
                await host.publish()
                assert published(host)
            elif name == "unpublish":
                await host.engine.publishing.unpublish(NET, END)
                assert not published(host)
            elif name == "leave":
                await endpoints.leave(NET, END)
                assert not host.endpoint().linked
            await host.check()
    assert await endpoints.delete(NET, END)
    assert not await endpoints.delete(NET, END)
    assert await host.state() == before


async def test_ends_of_what_is_not_there_are_success(host: Host) -> None:
    before = await host.state()
    await host.engine.endpoints.leave(NET, END)
    await host.engine.publishing.unpublish(NET, END)
    assert not await host.engine.endpoints.delete(NET, END)
    await host.engine.endpoints.describe(NET, END, Description("c1", "web"))
    assert await host.state() == before


async def test_join_again_after_leave_builds_the_same_links(host: Host) -> None:
    await host.docker_endpoint(ports=PORTS)
    await host.join()
    await host.publish()
    before = host.dump()
    await host.engine.endpoints.leave(NET, END)
    await host.join(sandbox="/run/docker/netns/2")
    await host.publish()
    assert host.dump() == before
    assert host.endpoint().sandbox == "/run/docker/netns/2"


async def test_endpoint_is_in_one_sandbox(host: Host) -> None:
    await host.docker_endpoint()
    await host.join()
    before = await host.state()
    with pytest.raises(NetplugError, match=f"already in sandbox {SANDBOX}"):
        await host.join(sandbox="/run/docker/netns/2")
    with pytest.raises(NetplugError, match="exists already"):
        await host.docker_endpoint()
    assert await host.state() == before


async def test_what_is_not_there_is_named(host: Host) -> None:
    for work in (host.join(), host.publish(), host.docker_endpoint(network=OTHER)):
        with pytest.raises(NetplugError) as caught:
            await work
        assert caught.value.kind == "not_found"


async def test_addresses_are_as_asked_or_chosen(host: Host) -> None:
    assert (await host.docker_endpoint(END, "10.1.0.77/24")).endpoint.addresses == (ip_interface("10.1.0.77/24"),)
    with pytest.raises(REFUSED, match=r"10\.2\.0\.2 is in no subnet"):
        await host.docker_endpoint(NEXT, "10.2.0.2/24")
    with pytest.raises(REFUSED, match=r"10\.1\.0\.1"):
        await host.docker_endpoint(NEXT, "10.1.0.1/24")  # the gateway
    chosen = await host.engine.endpoints.create(EndpointSpec(NEXT, NET))
    assert str(chosen.endpoint.addresses[0]) == "10.1.0.128/24"  # far from where Docker picks


async def test_name_of_the_container_is_learned_and_kept(host: Host) -> None:
    await host.docker_endpoint()
    await host.engine.endpoints.describe(NET, END, Description("c1", "web"))
    await host.reboot()
    assert (host.endpoint().container, host.endpoint().name) == ("c1", "web")


async def test_endpoint_in_the_place_of_a_dead_one(host: Host) -> None:
    await host.docker_endpoint(ports=PORTS)
    await host.join()
    await host.publish()
    await host.docker_endpoint(NEXT, ports=PORTS)
    assert [record.endpoint.id for record in host.endpoints()] == [NEXT]
    await host.publish(NEXT)


@pytest.mark.parametrize("failing", ["link/nph" + END[:12]])
async def test_failure_of_the_link_changes_nothing(host: Host, failing: str) -> None:
    before = await host.state()
    host.kernel.fail_at(failing)
    with pytest.raises(NetplugError, match="a test wants it"):
        await host.docker_endpoint()
    assert await host.state() == before


# Ports


async def test_failure_of_any_step_of_publishing_changes_nothing(host: Host) -> None:
    await host.docker_endpoint(ports=(*PORTS, tcp(9090, 90)))
    await host.join()
    before = await host.state()
    keys = [step.key for step in (await host.publish()).exposed]
    await host.engine.publishing.unpublish(NET, END)
    assert await host.state() == before
    for key in keys:
        host.kernel.fail_at(key)
        with pytest.raises(NetplugError, match="a test wants it"):
            await host.publish()
        host.kernel.heal()
        assert await host.state() == before, key


async def test_ephemeral_and_range_ports_become_definite(host: Host) -> None:
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("0.0.0.0"), 7000))
    await host.docker_endpoint(ports=(tcp(0), tcp(7000, 81, end=7002), udp(0)))
    record = await host.publish()
    assert {p.port: p.host_port for p in record.published} == {80: 32768, 81: 7001, 53: 32768}
    assert all(p.host_port == p.host_port_end for p in record.published)


async def test_one_port_is_taken_in_both_families_or_none(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", "fd00:3::/64", ident=OTHER, name="red")
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("::"), 7000))
    both = await host.attach("ns1", network="red", ports=(tcp(7000, end=7001),))
    assert [p.host_port for p in both.published] == [7001]
    before = await host.state()
    with pytest.raises(NetplugError, match="7000"):
        await host.attach("ns2", network="red", ports=(tcp(7000),))
    assert await host.state() == before


async def test_other_ports_take_the_place_of_those_published(host: Host) -> None:
    await host.docker_endpoint(ports=PORTS)
    await host.publish()
    await host.publish(END, tcp(9090))
    assert published(host) == ["0.0.0.0:9090->80/tcp"]
    await host.check()


async def test_default_host_address_is_the_networks(host: Host) -> None:
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/24")))
    await host.docker_network(OTHER, "10.7.0.0/24", host_binding_ipv4="192.0.2.7")
    await host.docker_endpoint(END, "10.7.0.2/24", network=OTHER, ports=(tcp(8080), tcp(8081, 81, "127.0.0.1")))
    record = await host.engine.publishing.publish(OTHER, END)
    assert sorted(map(str, record.published)) == ["127.0.0.1:8081->81/tcp", "192.0.2.7:8080->80/tcp"]


async def test_internal_network_publishes_nothing(host: Host) -> None:
    subnets = (external("10.7.0.0/24"),)
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, subnets, internal=True))
    await host.docker_endpoint(END, "10.7.0.2/24", network=OTHER, ports=PORTS)
    before = host.dump()
    # Noted is only that Docker asked for it: the ports are published once the network is not internal.
    record = await host.engine.publishing.publish(OTHER, END)
    assert (record.published, record.exposed, record.withheld) == ((), Plan(), True)
    assert host.dump() == before
    after = await host.state()
    await host.engine.publishing.publish(OTHER, END)
    assert await host.state() == after


async def test_port_of_another_process_is_refused(host: Host) -> None:
    host.kernel.foreign.ports.add((Proto.UDP, ip_address("0.0.0.0"), 53))
    await host.docker_endpoint(ports=PORTS)
    before = await host.state()
    with pytest.raises(NetplugError, match="53") as caught:
        await host.publish()
    assert caught.value.kind == "unavailable"
    assert await host.state() == before


async def test_port_of_an_attachment_is_never_freed_for_docker(host: Host) -> None:
    await host.cli_network(ident=OTHER, name="red")
    await host.attach("ns1", network="red", ports=(tcp(8080),))
    await host.docker_endpoint(ports=(tcp(8080),))
    with pytest.raises(NetplugError, match="8080"):
        await host.publish()
    assert len(host.endpoints()) == 2


# Sandboxes without a runtime


async def test_attached_and_detached_again(host: Host) -> None:
    before = await host.state()
    built = await host.attach("ns1", ports=PORTS, name="web", ifname="lan0", addresses=(ip_address("10.1.0.9"),))
    assert (built.front_end, built.sandbox, built.ifname) == (FrontEnd.CLI, "/run/netns/ns1", "lan0")
    assert next(step for step in built.plan if isinstance(step, Veth)).netns == "/run/netns/ns1"
    assert str(built.endpoint.addresses[0]) == "10.1.0.9/24"
    assert len(built.published) == 2
    await host.check()
    with pytest.raises(NetplugError, match="eth0 of ns1 is not attached"):
        await host.engine.endpoints.detach(NET, "ns1", "eth0")
    await host.engine.endpoints.detach(NET, "/run/netns/ns1", "lan0")
    assert await host.state() == before


async def test_failure_of_any_step_of_attaching_changes_nothing(host: Host) -> None:
    before = await host.state()
    built = await host.attach("ns1", ports=PORTS, addresses=(ip_address("10.1.0.9"),))
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    for step in (*built.plan, *built.exposed):
        host.kernel.fail_at(step.key)
        with pytest.raises(NetplugError, match="a test wants it"):
            await host.attach("ns1", ports=PORTS, addresses=(ip_address("10.1.0.9"),))
        host.kernel.heal()
        assert await host.state() == before, step.key


async def test_interface_is_attached_once(host: Host) -> None:
    await host.cli_network(ident=OTHER, name="red")
    await host.attach("ns1")
    before = await host.state()
    for network in (NET, OTHER):
        with pytest.raises(NetplugError, match=r"attached to network .* already"):
            await host.attach("ns1", network=network)
    assert await host.state() == before
    await host.attach("ns1", network=OTHER, ifname="eth1")
    host.kernel.vanish("/run/netns/ns9")
    with pytest.raises(NetplugError, match="no network namespace 'ns9'"):
        await host.attach("ns9")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "already, as asked for"),
        ({"name": "web", "aliases": ("www",), "addresses": (ip_address("10.1.0.9"),)}, "already, as asked for"),
        ({"ports": (tcp(8080, 80),)}, "already, as asked for"),
        ({"ports": (tcp(0, 80),)}, "already, as asked for"),
        ({"ports": (tcp(8000, 80, end=8090),)}, "already, as asked for"),
        ({"options": {"rate": "10mbit"}}, "already, as asked for"),
        ({"name": "db"}, "already, and differs: name is web, not db"),
        ({"aliases": ("www", "ftp")}, "alias is www, not www,ftp"),
        ({"addresses": (ip_address("10.1.0.7"),)}, "address is 10.1.0.9, not 10.1.0.7"),
        ({"mac": "02:00:00:00:00:01"}, "MAC is 02:6e:0a:01:00:09, not 02:00:00:00:00:01"),
        ({"ports": (tcp(8081, 80), tcp(8080, 80))}, "port 0.0.0.0:8081->80/tcp is not published"),
        ({"ports": (tcp(8080, 80, "127.0.0.1"),)}, "port 127.0.0.1:8080->80/tcp is not published"),
        ({"options": {"rate": "20mbit"}}, "rate is 10000000,10000000, not 20000000,20000000"),
        ({"name": "db", "addresses": (ip_address("10.1.0.7"),)}, "name is web, not db; address is 10.1.0.9, not"),
        ({"network": OTHER}, "attached to network 'a1a1a1a1a1a1' already, not to 'red'"),
    ],
)
async def test_attaching_again_says_what_differs(host: Host, asked: dict[str, Any], words: str) -> None:
    await host.cli_network(ident=OTHER, name="red")
    present = {"name": "web", "aliases": ("www",), "addresses": (ip_address("10.1.0.9"),), "ports": (tcp(8080, 80),)}
    await host.attach("ns1", **present, options={"rate": "10mbit"})
    before = await host.state()
    with pytest.raises(NetplugError) as caught:
        await host.attach("ns1", **asked)
    assert caught.value.kind == "exists"
    assert words in caught.value.message
    assert await host.state() == before


async def test_second_network_becomes_the_way_out_when_the_first_goes(host: Host) -> None:
    await host.cli_network(ident=OTHER, name="red")
    await host.attach("ns1")
    built = await host.attach("ns1", network=OTHER, ifname="eth1")
    assert not any(isinstance(step, Route) for step in built.plan)
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    (heir,) = host.endpoints()
    (route,) = (step for step in heir.plan if isinstance(step, Route))
    assert (str(route.destination), route.link, route.netns) == ("0.0.0.0/0", "eth1", "/run/netns/ns1")
    assert await host.engine.executor.drift(heir.plan) == ()
    await host.reboot()
    await host.check()
    assert [step for step in host.endpoints()[0].plan if isinstance(step, Route)] == [route]
    host.kernel.vanish("/run/netns/ns1")
    await host.engine.endpoints.detach(OTHER, "ns1", "eth1")


async def test_vanished_namespace_is_replaced(host: Host) -> None:
    await host.attach("ns1", ports=PORTS)
    host.kernel.vanish("/run/netns/ns1")
    host.kernel._world.gone.clear()
    await host.attach("ns1", ports=PORTS)
    assert len(host.endpoints()) == 1


async def test_late_end_of_a_former_namespace_leaves_the_present_one_alone(host: Host) -> None:
    """Both have the same path, gateway and address."""
    old = await host.attach("ns1", id="f1" * 32, container="old", front_end=FrontEnd.CNI)
    host.kernel.vanish("/run/netns/ns1")
    host.kernel.appear("/run/netns/ns1")
    new = await host.attach("ns1", id="f2" * 32, container="new", front_end=FrontEnd.CNI)
    ways = [[step.destination for step in one.plan if isinstance(step, Route)] for one in (old, new)]
    assert ways[0] == ways[1]
    before = host.kernel.dump().count("/run/netns/ns1")
    await host.engine.endpoints.delete(NET, old.endpoint.id)
    assert host.kernel.dump().count("/run/netns/ns1") == before
    assert [record.container for record in host.endpoints()] == ["new"]


async def test_detach_means_the_namespace_that_is_there(host: Host) -> None:
    await host.attach("ns1")
    host.kernel.vanish("/run/netns/ns1")
    host.kernel.appear("/run/netns/ns1")
    new = await host.attach("ns1")
    assert len(host.endpoints()) == 2
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    (old,) = host.endpoints()
    assert old.sandbox_id != new.sandbox_id
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    assert host.endpoints() == []


async def test_namespace_that_is_gone_can_be_detached(host: Host) -> None:
    before = await host.state()
    await host.attach("ns1", ports=PORTS)
    host.kernel.vanish("/run/netns/ns1")
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    assert await host.state() == before


async def test_what_a_failed_detach_left_does_not_fall_on_the_next_attachment(host: Host) -> None:
    await host.attach("ns1")
    remove, host.kernel.remove = host.kernel.remove, _refuse  # type: ignore[method-assign]
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    host.kernel.remove = remove  # type: ignore[method-assign]
    assert (await host.store.range("journal/"))[0]
    await host.attach("ns1")
    await host.reconciler.repair()
    await host.check()
    await host.reboot()
    assert len(host.endpoints()) == 1


async def _refuse(steps: object) -> None:
    raise ExceptionGroup("a test wants it", [NetplugError("internal", "no")])


# At once


async def test_one_namespace_is_plugged_into_one_of_two_networks(host: Host) -> None:
    await host.cli_network(ident=OTHER, name="red")
    made = await asyncio.gather(
        *(host.attach("ns1", network=network) for network in (NET, OTHER, NET, OTHER)), return_exceptions=True
    )
    assert sum(not isinstance(one, BaseException) for one in made) == 1
    assert len(host.endpoints()) == 1


async def test_parallel_lives_keep_order(host: Host) -> None:
    before = await host.state()

    async def live(number: int) -> None:
        ident = f"{number:02x}" * 32
        for _ in range(3):
            await host.docker_endpoint(ident, f"10.1.0.{number + 10}/24", ports=(tcp(8000 + number), tcp(0, 81)))
            await host.join(ident, f"/s/{number}")
            await host.publish(ident)
            await host.attach(f"ns{number}", ports=(tcp(0),))
            await host.engine.endpoints.leave(NET, ident)
            await host.engine.endpoints.detach(NET, f"ns{number}", "eth0")
            await host.engine.endpoints.delete(NET, ident)

    await asyncio.gather(*map(live, range(8)))
    assert await host.state() == before
    assert not [step for step in host.kernel._world.state.values() if isinstance(step, HostPort)]


@pytest.mark.parametrize("pending", [True, False])
async def test_a_failure_takes_no_address_from_who_has_it_by_now(host: Host, *, pending: bool) -> None:
    """Docker gives an address back while an endpoint with it is being made, and the next one gets it."""
    record = await host.cli_network("10.7.0.0/24", ident=OTHER)
    addressing, allocator, (pool,) = host.engine.endpoints._addressing, host.engine.allocator, record.pools
    address, other = ip_address("10.7.0.9"), Owner(OwnerKind.PENDING, name="other")
    if pending:
        await allocator.request_address(pool, address=address, owner=Owner(OwnerKind.PENDING))

    async def fails() -> None:
        spec = EndpointSpec(END, OTHER, (ip_interface("10.7.0.9/24"),))
        async with addressing.addresses(record, spec):
            await allocator.release_address(pool, address)
            await allocator.request_address(pool, address=address, owner=other)
            raise NetplugError("internal", "the link cannot be made")

    with pytest.raises(NetplugError, match="cannot be made"):
        await fails()
    lease = allocator.lease(pool, address)
    assert lease is not None
    assert lease.owner == other
    await allocator.release_address(pool, address)


async def test_name_means_no_namespace_of_a_process(host: Host) -> None:
    """All of those are called net."""
    for netns in ("/proc/100/ns/net", "/proc/200/ns/net", "net"):
        await host.attach(netns)
    (named,) = host.engine.registry.endpoints_called("net")
    assert named.sandbox == "/run/netns/net"
    await host.engine.endpoints.detach(NET, "net", "eth0")
    assert sorted(one.sandbox for one in host.endpoints()) == ["/proc/100/ns/net", "/proc/200/ns/net"]
    with pytest.raises(NetplugError, match="not attached"):
        await host.engine.endpoints.detach(NET, "net", "eth0")
    await host.engine.endpoints.detach(NET, "/proc/100/ns/net", "eth0")


async def test_address_that_all_routers_of_a_subnet_have_is_for_no_endpoint(host: Host) -> None:
    """The host would answer in its place: ``ip -6 route show table local`` has it as anycast."""
    await host.cli_network("fd00:5::/64", ident=OTHER)
    with pytest.raises(NetplugError, match="subnet-router anycast address"):
        await host.attach("ns1", network=OTHER, addresses=(ip_address("fd00:5::"),))
    await host.cli_network("fd00:6::/127", ident=NEXT, name="two")
    built = await host.attach("ns1", network=NEXT, addresses=(ip_address("fd00:6::1"),))
    assert built.endpoint.addresses


class Told:
    """A listener that knows which endpoints there are, by what it was told."""

    def __init__(self) -> None:
        self.present: set[str] = set()

    async def joined(self, record: EndpointRecord) -> None:
        self.present.add(record.endpoint.id)

    async def left(self, record: EndpointRecord) -> None:
        self.present.discard(record.endpoint.id)

    async def settled(self, record: EndpointRecord) -> None: ...


async def test_an_endpoint_whose_end_the_store_refuses_is_told_of_again(monkeypatch: pytest.MonkeyPatch) -> None:
    host = await Host.boot()
    listener = host.engine.endpoints.listener = Told()
    await host.cli_network()
    record = await host.attach("ns1")
    assert listener.present == {record.endpoint.id}

    async def refuse(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(host.store, "txn", refuse)
        with pytest.raises(StoreError):
            await host.engine.endpoints.detach(NET, "ns1", "eth0")
    assert listener.present == {record.endpoint.id}
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    assert listener.present == set()
    await host.check()
    await host.close()
