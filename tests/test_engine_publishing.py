"""Whose ports are taken from whom, and who keeps his."""

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, Host, external, tcp, until

from netplug.drivers.api import PortMapping
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.drivers.tables import NETWORKS
from netplug.engine import dead_holders
from netplug.engine.records import Description, EndpointRecord, FrontEnd, NetworkSpec
from netplug.errors import NetplugError
from netplug.kernel.api import IN_USE
from netplug.kernel.fake.ports import FakePorts
from netplug.kernel.fake.services import FakeSandboxes

LATER = "e3" * 32
TAKEN = r"port 0\.0\.0\.0:8080/tcp is already in use"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network of Docker's."""
    host = await Host.boot()
    await host.docker_network()
    yield host
    await host.close()


def ids(host: Host) -> set[str]:
    return {record.endpoint.id for record in host.endpoints()}


def published_of(host: Host, record: EndpointRecord) -> list[str]:
    now = host.endpoint(record.endpoint.id, record.endpoint.network)
    return sorted(map(str, now.published))


async def published(host: Host, ident: str, number: int, *ports: int) -> None:
    await host.docker_endpoint(ident, f"10.1.0.{number}/24", ports=tuple(map(tcp, ports)))
    await host.join(ident, f"/run/docker/netns/{number}")
    await host.publish(ident)


async def test_a_taken_port_harms_nobody_who_is_just_starting(host: Host) -> None:
    await published(host, END, 2, 8080)
    await published(host, NEXT, 3, 8081)
    await host.docker_endpoint(LATER, "10.1.0.4/24", ports=(tcp(8080), tcp(8082)))
    before = await host.state()
    with pytest.raises(NetplugError, match=TAKEN):
        await host.publish(LATER)
    assert await host.state() == before


@pytest.mark.parametrize("alive", [True, False])
async def test_only_the_dead_holder_of_that_port_goes_after_a_crash_of_docker(host: Host, *, alive: bool) -> None:
    await published(host, END, 2, 8080)
    await published(host, NEXT, 3, 8081)
    host.engine.publishing.dead_holders.begin_session()
    host.engine.publishing.dead_holders._started -= dead_holders.GRACE_S
    await host.docker_endpoint(LATER, "10.1.0.4/24", ports=(tcp(8080),))
    if alive:
        host.kernel.inhabitants.add("/run/docker/netns/2")
        with pytest.raises(NetplugError, match=TAKEN):
            await host.publish(LATER)
    else:
        await host.publish(LATER)
    assert ids(host) == ({END} if alive else set()) | {NEXT, LATER}
    await host.check()


async def test_after_a_start_of_ours_a_holder_has_time_to_come_to_life(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await published(host, END, 2, 8080)
    await host.reboot()
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080),))
    asked = 0

    async def comes_to_life(*_: object) -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    monkeypatch.setattr(FakeSandboxes, "has_processes", comes_to_life)  # a container that is just being started
    with pytest.raises(NetplugError, match=TAKEN):
        await host.publish(NEXT)
    assert ids(host) == {END, NEXT}


async def test_a_dead_holder_is_gone_when_its_time_is_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_holders, "GRACE_S", 0.2)
    await published(host, END, 2, 8080)
    await host.reboot()
    started = time.monotonic()
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080),))
    await host.publish(NEXT)
    assert ids(host) == {NEXT}
    assert time.monotonic() - started < 5


async def test_ports_of_a_range_have_holders_too(host: Host) -> None:
    await published(host, END, 2, 8080, 8081)
    host.engine.publishing.dead_holders.begin_session()
    host.engine.publishing.dead_holders._started -= dead_holders.GRACE_S
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080, 80, end=8081),))
    await host.publish(NEXT)
    assert ids(host) == {NEXT}
    assert host.endpoint(NEXT, NET).published


async def test_all_addresses_are_those_of_both_ip_versions(host: Host) -> None:
    await published(host, END, 2, 8080)
    shown = host.engine.exposure.shown(host.endpoint())
    assert shown == ["0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"]
    await host.cli_network("fd00:3::/64", ident=OTHER, name="red")
    six = await host.attach("ns1", network="red", ports=(tcp(8081),))
    assert host.engine.exposure.shown(six) == ["0.0.0.0:8081->80/tcp", "[::]:8081->80/tcp"]
    assert {step.key for step in six.exposed} >= {
        "relay/tcp/0.0.0.0/8081",
        f"element/{NETWORKS}/published6_any/tcp . 8081",
    }


async def test_a_kernel_without_ipv6_publishes_what_it_can(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = host.kernel.ports.reserve

    async def reserves_ipv4(_: FakePorts, proto: Proto, address: IPAddress, *more: Any) -> int:
        if address.version == 6:
            raise NetplugError("unavailable", f"port {address} cannot be reserved: the kernel has no IPv6")
        return await reserve(proto, address, *more)

    monkeypatch.setattr(FakePorts, "reserve", reserves_ipv4)
    await published(host, END, 2, 8080)
    assert host.engine.exposure.shown(host.endpoint()) == ["0.0.0.0:8080->80/tcp"]


@pytest.mark.parametrize("text", ["::ffff:127.0.0.1", "0:0:0:0:0:FFFF:7F00:1"])
async def test_an_ipv4_address_in_the_form_of_ipv6_is_of_ipv4(host: Host, text: str) -> None:
    await host.docker_endpoint(ports=(tcp(8080, 80, text),))
    await host.join()
    assert list(map(str, (await host.publish()).published)) == ["127.0.0.1:8080->80/tcp"]


async def test_what_cannot_be_reached_is_refused_by_name(host: Host) -> None:
    await host.docker_endpoint(ports=(PortMapping(Proto.SCTP, 80, ip_address("fd00::5"), 8080),))
    with pytest.raises(DriverError, match=r"port \[fd00::5\]:8080->80/sctp cannot be published: .* has no IPv6"):
        await host.publish()
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8080, 80, "fe80::1"),))
    with pytest.raises(DriverError, match=r"fe80::1 is a multicast or link-local address"):
        await host.publish(NEXT)
    await host.check()


async def test_a_runtime_whose_ports_are_its_own_is_told_what_cannot_be(host: Host) -> None:
    with pytest.raises(DriverError, match=r"port \[::1\]:8080->80/tcp cannot be published"):
        await host.attach("ns1", ports=(tcp(8080, 80, "::1"),), front_end=FrontEnd.CNI, container="c1")
    # A next network of the container may have an address of that version.
    ports = (tcp(8080, 80, "fd00::5"), tcp(8081))
    one = await host.attach("ns1", ports=ports, front_end=FrontEnd.CNI, container="c1")
    assert host.engine.exposure.shown(one)[1] == "[fd00::5]:8080->80/tcp (not published: no address of that kind)"
    (found,) = await host.reconciler.diff()
    assert found.what == "is not published: the container has no IPv6"
    host.kernel.foreign.addresses.add(("eth0", ip_interface("fd00::5/64")))
    await host.cli_network("fd00:3::/64", ident=OTHER, name="red")
    await host.attach("ns1", network="red", ports=ports, ifname="eth1", front_end=FrontEnd.CNI, container="c1")
    assert await host.reconciler.diff() == []


async def test_a_port_lost_on_a_move_is_told_with_who_has_it_and_comes_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/24")))
    await host.cli_network("10.3.0.0/24", ident=OTHER, name="red")
    ports, both = (tcp(8080), tcp(8081), tcp(8082, 80, "192.0.2.7")), {"front_end": FrontEnd.CNI, "container": "c1"}
    one = await host.attach("ns1", ports=ports, **both)
    heir = await host.attach("ns1", network="red", ports=ports, ifname="eth1", **both)
    assert (len(one.published), heir.published) == (3, ())
    inherit = host.engine.publishing.inherit

    async def late(gone: EndpointRecord) -> None:
        await host.attach("ns2", ports=(tcp(8080), tcp(8082)), name="thief")
        await inherit(gone)

    with monkeypatch.context() as patch:
        patch.setattr(host.engine.publishing, "inherit", late)
        await host.engine.endpoints.delete(NET, one.endpoint.id)
    assert published_of(host, heir) == ["0.0.0.0:8081->80/tcp"]
    for _ in range(2):
        assert {(it.object, it.what) for it in await host.reconciler.diff()} == {
            (
                f"port {address}:{number}->80/tcp",
                f"is not published: port {address}:{number}/tcp {IN_USE} by container 'thief' of network {NET[:12]!r}",
            )
            for address, number in (("0.0.0.0", 8080), ("192.0.2.7", 8082))
        }
        await host.reconciler.repair()
    shown = host.engine.exposure.shown(host.endpoint(heir.endpoint.id, OTHER))
    assert "0.0.0.0:8080->80/tcp (not published: taken)" in shown
    assert "192.0.2.7:8082->80/tcp (not published: taken)" in shown
    (thief,) = (it for it in host.endpoints() if it.name == "thief")
    await host.engine.endpoints.delete(NET, thief.endpoint.id)
    await host.reconciler.repair()
    assert len(published_of(host, heir)) == 3
    assert await host.reconciler.diff() == []
    await host.check()


async def test_a_port_of_one_ip_version_lost_on_a_move_is_missed(host: Host) -> None:
    """Of the other one another endpoint publishes all that there is."""
    both = {"front_end": FrontEnd.CNI, "container": "c1", "ports": (tcp(8080, end=8080),)}
    for number in (3, 4):
        pools = f"10.{number}.0.0/24", f"fd00:{number}::/64"
        await host.cli_network(*pools, ident=f"{number}" * 64, name=f"dual{number}")
    await host.attach("ns1", **both)
    six, heir = [await host.attach("ns1", network=f"dual{number}", ifname=f"eth{number}", **both) for number in (3, 4)]
    assert [published_of(host, it) for it in (six, heir)] == [["[::]:8080->80/tcp"], []]
    inherited = asyncio.ensure_future(host.engine.endpoints.delete(six.endpoint.network, six.endpoint.id))
    await until(lambda: not any(it.key == six.key for it in host.endpoints()))
    host.kernel._world.state["thief"] = HostPort(Proto.TCP, ip_address("::"), 8080)
    await inherited
    for _ in range(2):
        (found,) = await host.reconciler.diff()
        assert (found.object, IN_USE in found.what) == ("port [::]:8080->80/tcp", True)
        await host.reconciler.repair()
    del host.kernel._world.state["thief"]
    await host.reconciler.repair()
    assert (await host.reconciler.diff(), published_of(host, heir)) == ([], ["[::]:8080->80/tcp"])


async def test_many_ports_lost_on_a_move_are_not_all_looked_at(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", ident=OTHER, name="red", host_binding_ipv4="127.0.0.1")
    both = {"front_end": FrontEnd.CNI, "container": "c1"}
    ports = tuple(tcp(8000 + number, 8000 + number) for number in range(100))
    one = await host.attach("ns1", ports=ports, **both)
    await host.attach("ns1", network="red", ports=ports, ifname="eth1", **both)
    stranger = ip_address("127.0.0.1")
    host.kernel.foreign.ports |= {(Proto.TCP, stranger, 8000 + number) for number in range(80)}
    await host.engine.endpoints.delete(NET, one.endpoint.id)
    said = [it.what for it in await host.reconciler.diff()]
    assert sum(IN_USE in what for what in said) == 64
    assert said[64:] == ["is not published: it was not tried: 64 other ports of the container are taken"]
    host.kernel.foreign.ports.clear()
    await host.reconciler.repair()
    assert await host.reconciler.diff() == []


async def test_what_an_internal_network_cannot_inherit_is_not_kept_from_others(host: Host) -> None:
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, (external("10.7.0.0/24"),), internal=True))
    both = {"front_end": FrontEnd.CNI, "container": "c1", "ports": (tcp(8080),)}
    one = await host.attach("ns1", **both)
    spec = {"network": "red", "ifname": "eth1", "addresses": (ip_interface("10.7.0.2/24"),)}
    await host.attach("ns1", **both, **spec)
    await host.engine.endpoints.delete(NET, one.endpoint.id)
    await host.attach("ns2", ports=(tcp(8080),))


async def test_a_host_address_may_come_later_and_that_is_said(host: Host) -> None:
    await host.docker_endpoint(ports=(tcp(8080, 80, "192.0.2.7"), tcp(8081, 80, "127.0.0.1")))
    await host.join()
    await host.publish()
    (found,) = await host.reconciler.diff()
    assert found.object == "port 192.0.2.7:8080->80/tcp"
    assert found.what == "this host has no address 192.0.2.7; the port works as soon as it has"
    assert host.engine.exposure.shown(host.endpoint())[1] == "192.0.2.7:8080->80/tcp (address absent)"
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/24")))
    assert await host.reconciler.diff() == []
    assert host.engine.exposure.shown(host.endpoint())[1] == "192.0.2.7:8080->80/tcp"


async def test_ports_on_an_internal_network_are_said_not_to_be_published(host: Host) -> None:
    subnets = (external("10.7.0.0/24"),)
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, subnets, internal=True))
    await host.docker_endpoint(END, "10.7.0.2/24", network=OTHER, ports=(tcp(8080),))
    record = await host.engine.publishing.publish(OTHER, END)
    assert host.engine.exposure.shown(record) == ["0.0.0.0:8080->80/tcp (not published: internal network)"]
    with pytest.raises(NetplugError, match="network 'red' is internal"):
        await host.attach("ns1", network="red", ports=(tcp(8080),))


async def test_too_many_ports_for_the_open_files_are_refused_before_anything_is_done(host: Host) -> None:
    host.kernel.foreign.descriptors = 100
    await host.docker_endpoint(ports=tuple(tcp(9000 + number) for number in range(60)))
    await host.join()
    before = await host.state()
    with pytest.raises(NetplugError, match="publishing 60 ports needs 120 open files"):
        await host.publish()
    assert await host.state() == before
    host.kernel.foreign.descriptors = 1
    with pytest.raises(NetplugError, match="one more endpoint"):
        await host.docker_endpoint(NEXT, "10.1.0.3/24")
    assert ids(host) == {END}


async def test_ports_that_follow_one_another_are_one_thing(host: Host) -> None:
    ports = [tcp(9000 + number, 7000 + number) for number in range(100)]
    await host.docker_endpoint(ports=tuple(ports[::-1]))
    await host.join()
    record = await host.publish(END, *ports)
    assert list(map(str, record.published)) == ["0.0.0.0:9000-9099->7000-7099/tcp"]
    assert len(record.exposed) == 5
    before = await host.state()
    await host.publish(END, *ports[50:], *ports[:50])
    assert await host.state() == before
    await host.check()


async def test_a_chosen_port_stays_when_the_way_out_changes(host: Host) -> None:
    await host.docker_network(OTHER, "10.7.0.0/24")
    await published(host, LATER, 4, 0)
    await published(host, END, 2, 0)
    ((mine,), (other,)) = (host.endpoint(ident).published for ident in (END, LATER))
    await host.engine.endpoints.delete(NET, LATER)  # its port, a lower one, is free
    assert other.host_port < mine.host_port
    await host.docker_endpoint(NEXT, "10.7.0.2/24", network=OTHER, ports=(tcp(0),))
    await host.engine.endpoints.join(OTHER, NEXT, "/run/docker/netns/2")
    for leave in (host.engine.publishing.unpublish, host.engine.endpoints.leave):
        await leave(NET, END)
        moved = await host.engine.publishing.publish(OTHER, NEXT)
        assert [it.host_port for it in moved.published] == [mine.host_port]
        await host.engine.publishing.unpublish(OTHER, NEXT)
        await host.join(END, "/run/docker/netns/2")
        assert [it.host_port for it in (await host.publish(END)).published] == [mine.host_port]


async def test_a_chosen_port_that_another_took_meanwhile_is_another(host: Host) -> None:
    await published(host, END, 2, 0)
    (mine,) = host.endpoint().published
    await host.engine.publishing.unpublish(NET, END)
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("0.0.0.0"), mine.host_port))
    (now,) = (await host.publish()).published
    assert now.host_port != mine.host_port


async def test_a_taken_port_names_the_container_that_has_it(host: Host) -> None:
    await published(host, END, 2, 8080)
    await host.engine.endpoints.describe(NET, END, Description("c1", "web"))
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8079), tcp(8080)))
    with pytest.raises(
        NetplugError, match=r"8080/tcp is already in use on this host by container 'web' of network 'a1"
    ):
        await host.publish(NEXT)


async def test_ports_that_cannot_be_had_in_place_of_others_leave_these_as_they_are(host: Host) -> None:
    await host.docker_endpoint(ports=(tcp(8080), tcp(0, 90)))
    await host.join()
    before = await host.publish()
    await host.attach("taker", ports=(tcp(9090),))
    with pytest.raises(NetplugError, match="9090/tcp is already in use"):
        await host.publish(END, tcp(8081), tcp(9090, 81))
    assert host.endpoint().in_force == before.in_force
    await host.check()
    assert await host.publish() == host.endpoint()
    assert host.endpoint().in_force == before.in_force
