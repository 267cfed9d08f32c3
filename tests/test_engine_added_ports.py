"""Ports that a user adds to living endpoints: how long they stay, beside those of the runtime."""

from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, SANDBOX, Host, external, tcp, udp

from netplug.drivers.errors import DriverError
from netplug.drivers.steps import HostPort, Proto
from netplug.engine.network_updates import NetworkChange, Updated
from netplug.engine.records import Description, EndpointRecord, FrontEnd, NetworkSpec
from netplug.errors import NetplugError
from netplug.names import dns_records

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network of Docker's with a container `web` that publishes 8080."""
    host = await Host.boot()
    host.kernel.inhabitants.add(SANDBOX)
    await host.docker_network()
    await host.docker_endpoint(ports=(tcp(8080),))
    await host.join()
    await host.publish()
    await host.engine.endpoints.describe(NET, END, Description("c0ffee" + "0" * 58, "web"))
    yield host
    await host.close()


async def add(host: Host, *ports: Any, ref: str = "web") -> EndpointRecord:
    return (await host.engine.added_ports.add(ref, ports)).record


async def remove(host: Host, *ports: Any, ref: str = "web") -> EndpointRecord:
    return await host.engine.added_ports.remove(ref, ports)


def texts(record: EndpointRecord) -> tuple[list[str], list[str]]:
    """Return the runtime's and the added ports in force."""
    return [str(it) for it in record.published], [str(it) for it in record.opened]


async def test_added_ports_outlive_what_the_runtime_does_with_its_own(host: Host) -> None:
    mine = ["0.0.0.0:9090->80/tcp"]
    await add(host, tcp(9090))
    assert texts(host.endpoint()) == (["0.0.0.0:8080->80/tcp"], mine)
    for _ in range(2):
        await host.engine.publishing.unpublish(NET, END)
        assert texts(host.endpoint()) == ([], mine)
        await host.check()
        await host.publish(END, tcp(8081), tcp(8080))
        assert texts(host.endpoint()) == (["0.0.0.0:8080->80/tcp", "0.0.0.0:8081->80/tcp"], mine)
        await host.check()
        await host.reboot()
    await host.engine.endpoints.leave(NET, END)
    assert texts(host.endpoint()) == ([], [])
    await host.check()
    await host.join()
    assert texts(host.endpoint()) == ([], mine)
    await host.publish()
    await host.check()
    await host.engine.endpoints.delete(NET, END)
    assert not any(key.startswith(("hostport", "element/")) and "9090" in key for key in host.kernel._world.state)
    await host.check()


async def test_all_or_nothing(host: Host) -> None:
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("0.0.0.0"), 9091))
    before = await host.state()
    with pytest.raises(NetplugError, match=r"port 0\.0\.0\.0:9091/tcp is already in use"):
        await add(host, tcp(9090), tcp(9091))
    with pytest.raises(NetplugError, match=r"port 0\.0\.0\.0:8080->80/tcp of container 'web' is published"):
        await add(host, tcp(9090), tcp(8080, 81))
    with pytest.raises(DriverError, match="fe80::1 is a multicast or link-local address"):
        await add(host, tcp(9090), tcp(9092, 80, "fe80::1"))
    host.kernel.foreign.descriptors = 1
    with pytest.raises(NetplugError, match="publishing 1 ports needs 2 open files"):
        await add(host, tcp(9090))
    assert await host.state() == before


async def test_a_taken_port_names_who_has_it(host: Host) -> None:
    await host.docker_endpoint(NEXT, "10.1.0.3/24")
    await host.join(NEXT, "/run/docker/netns/2")
    await add(host, tcp(9090))
    with pytest.raises(NetplugError, match=r"8080/tcp is already in use on this host by container 'web' of network"):
        await add(host, tcp(8080), ref=NEXT[:12])
    with pytest.raises(NetplugError, match=r"9090/tcp is already in use on this host by container 'web' of network"):
        await add(host, tcp(9090), ref=NEXT[:12])


async def test_what_is_published_already_stays_as_it_is(host: Host) -> None:
    await add(host, tcp(9090), udp(53))
    before = await host.state()
    done = await host.engine.added_ports.add("web", (tcp(9090), tcp(8080), tcp(0), udp(53)))
    assert await host.state() == before
    assert {str(it) for it in done.present} == {
        "0.0.0.0:9090->80/tcp", "0.0.0.0:8080->80/tcp", "0.0.0.0:53->53/udp"
    }  # fmt: skip
    assert done.record == host.endpoint()


async def test_a_free_port_is_chosen_once(host: Host) -> None:
    await add(host, tcp(0, 443), tcp(7000, 22, end=7009))
    (ssh, https) = sorted(host.endpoint().opened, key=lambda it: it.port)
    assert ssh.host_port == 7000
    await host.engine.endpoints.leave(NET, END)
    await host.reboot()
    await host.join()
    assert sorted(host.endpoint().opened, key=lambda it: it.port) == [ssh, https]
    await host.check()


async def test_a_range_may_be_taken_back_in_part(host: Host) -> None:
    await add(host, *(tcp(9000 + number, 7000 + number) for number in range(100)))
    assert texts(host.endpoint())[1] == ["0.0.0.0:9000-9099->7000-7099/tcp"]
    await host.check()
    await remove(host, tcp(9010, 7010), tcp(0, 7011))
    assert texts(host.endpoint())[1] == ["0.0.0.0:9000-9009->7000-7009/tcp", "0.0.0.0:9012-9099->7012-7099/tcp"]
    await host.check()
    await add(host, tcp(9010, 7010), tcp(9011, 7011))
    assert texts(host.endpoint())[1] == ["0.0.0.0:9000-9099->7000-7099/tcp"]
    await host.check()
    await remove(host, *(tcp(0, 7000 + number) for number in range(100)))
    assert host.endpoint().added == host.endpoint().opened == ()
    await host.check()


async def test_only_what_the_user_published_can_be_taken_back(host: Host) -> None:
    await add(host, tcp(9090))
    before = await host.state()
    with pytest.raises(NetplugError, match=r"port 0\.0\.0\.0:8080->80/tcp of container 'web' was published by docker"):
        await remove(host, tcp(9090), tcp(8080))
    with pytest.raises(NetplugError, match=r"container 'web' has not published port 9091:80/tcp .*9090->80"):
        await remove(host, tcp(9091))
    assert await host.state() == before
    await remove(host, tcp(0))
    assert texts(host.endpoint()) == (["0.0.0.0:8080->80/tcp"], [])


async def test_ports_of_netplug_attach_are_the_users_own(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", ident=OTHER, name="red")
    await host.attach("ns1", network="red", ports=(tcp(0), tcp(9000, 80)))
    (free,) = (it.host_port for it in host.endpoints()[1].published if it.host_port != 9000)
    await add(host, tcp(9001, 81), ref="ns1")
    left = await remove(host, tcp(9000), ref="red/ns1")
    assert texts(left) == ([f"0.0.0.0:{free}->80/tcp"], ["0.0.0.0:9001->81/tcp"])
    left = await remove(host, tcp(0), tcp(0, 81), ref="ns1")
    assert (texts(left), left.endpoint.ports) == (([], []), ())
    await host.check()
    await host.reboot()
    await host.check()


async def test_what_publishes_nothing_says_why(host: Host) -> None:
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, (external("10.7.0.0/24"),), internal=True))
    await host.docker_endpoint(NEXT, "10.7.0.2/24", network=OTHER)
    host.kernel.foreign.links["eth0"] = ""
    await host.cli_network("192.168.1.0/24", ident="c3" * 32, name="lan", mode="macvlan", parent="eth0")
    await host.engine.networks.create(NetworkSpec("d4" * 32, "none", {"mode": "none"}))
    await host.attach("ns1", network="lan")
    await host.attach("ns2", network="none")
    before = await host.state()
    for ref, words in (
        (NEXT, "network 'red' is internal: nothing can be published there"),
        ("ns1", "network 'lan' is of mode 'macvlan', which publishes no ports"),
        ("ns2", "network 'none' is of mode 'none', which publishes no ports"),
        ("nobody", "there is no endpoint 'nobody'"),
        ("lan/web", "there is no endpoint 'web' in network 'lan'"),
        ("pink/web", "there is no network 'pink'"),
    ):
        with pytest.raises(NetplugError, match=words):
            await add(host, tcp(9090), ref=ref)
    await host.engine.endpoints.leave(NET, END)
    with pytest.raises(NetplugError, match="container 'web' is not running"):
        await add(host, tcp(9090))
    await host.join()
    await host.publish()
    host.engine.publishing.dead_holders._known.clear()
    assert set(map(str, before)) == set(map(str, await host.state()))


async def test_a_container_of_several_networks(host: Host) -> None:
    """The internal one is out of the question; of the others it is that by which the container answers."""
    ident = "c0ffee" + "0" * 58
    await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, (external("10.7.0.0/24"),), internal=True))
    await host.docker_endpoint(NEXT, "10.7.0.2/24", network=OTHER)
    await host.engine.endpoints.describe(OTHER, NEXT, Description(ident, "web"))
    await host.docker_network("c3" * 32, "10.8.0.0/24")
    await host.docker_endpoint("e3" * 32, "10.8.0.2/24", network="c3" * 32)
    await host.engine.endpoints.describe("c3" * 32, "e3" * 32, Description(ident, "web"))
    await host.engine.endpoints.join("c3" * 32, "e3" * 32, SANDBOX)
    host.kernel.foreign.gateways[SANDBOX] = {ip_address("10.1.0.1")}
    assert (await add(host, tcp(9090))).endpoint.id == END
    (note,) = (await host.engine.added_ports.add("c3c3c3c3c3c3/web", (tcp(9099),))).notes
    assert note.startswith("container 'web' has its default route by 10.1.0.1, in another network")
    host.kernel.foreign.gateways[SANDBOX] = {ip_address("10.8.0.1"), ip_address("fd00::1")}
    assert (await add(host, tcp(9098))).endpoint.id == "e3" * 32
    del host.kernel.foreign.gateways[SANDBOX]
    with pytest.raises(NetplugError, match=r"2 endpoints are called 'web': a1a1a1a1a1a1/web, c3c3c3c3c3c3/web"):
        await add(host, tcp(9091))
    assert (await add(host, tcp(9091), ref="c3c3c3c3c3c3/web")).endpoint.id == "e3" * 32
    assert (await add(host, tcp(9092), ref="e3e3")).endpoint.id == "e3" * 32
    assert (await remove(host, tcp(9091))).endpoint.id == "e3" * 32
    with pytest.raises(NetplugError, match="has not published port 9091"):
        await remove(host, tcp(9091))


@pytest.mark.parametrize("front_end", [FrontEnd.CNI, FrontEnd.NETAVARK])
async def test_a_runtime_binds_its_own_ports_and_not_the_added_ones(host: Host, front_end: FrontEnd) -> None:
    await host.cli_network("10.3.0.0/24", ident=OTHER, name="red")
    both = {"front_end": front_end, "container": "c1", "name": "db", "ports": (tcp(5432, 5432),)}
    one = await host.attach("ns1", **both)
    heir = await host.attach("ns1", network="red", ifname="eth1", **both)
    now = await add(host, tcp(9090), tcp(9091, 80, "::1"), ref=one.endpoint.id)
    shared = {step.port: step.shared for step in now.exposed if isinstance(step, HostPort)}
    assert shared == {5432: True, 9090: False, 9091: False}
    assert {"relay/tcp/::1/9091", "relay/tcp/::/9090"} <= {step.key for step in now.exposed}
    assert "relay/tcp/::/5432" not in {step.key for step in now.exposed}
    await host.check()
    with pytest.raises(NetplugError, match="was published by"):
        await remove(host, tcp(5432, 5432), ref=one.endpoint.id)
    await host.reboot()
    await host.check()
    await host.engine.endpoints.delete(NET, one.endpoint.id)
    heir = host.endpoint(heir.endpoint.id, OTHER)
    assert texts(heir) == (["0.0.0.0:5432->5432/tcp"], [])
    await host.check()


async def test_the_dead_hold_no_port_that_a_user_wants(host: Host) -> None:
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8081),))
    await host.join(NEXT, "/run/docker/netns/2")
    await host.publish(NEXT)
    host.engine.publishing.dead_holders.begin_session()
    host.engine.publishing.dead_holders._started -= 100
    await add(host, tcp(8081))
    assert [it.endpoint.id for it in host.endpoints()] == [END]
    await host.check()


async def test_names_follow(host: Host) -> None:
    await add(host, tcp(9090, 443), udp(53))
    assert dns_records.ports_of(host.endpoint()) == {("tcp", 80), ("tcp", 443), ("udp", 53)}
    await remove(host, tcp(0, 443))
    assert dns_records.ports_of(host.endpoint()) == {("tcp", 80), ("udp", 53)}


class Refusing:
    """A listener that is told, and refuses."""

    def __init__(self) -> None:
        self.told: list[EndpointRecord] = []

    async def joined(self, record: EndpointRecord) -> None:
        self.told.append(record)
        raise NetplugError("unavailable", "the network is being deleted")

    async def left(self, record: EndpointRecord) -> None: ...

    async def settled(self, record: EndpointRecord) -> None: ...


async def test_what_the_cluster_refuses_is_taken_back(host: Host) -> None:
    before = await host.state()
    listener = host.engine.endpoints.listener = Refusing()
    with pytest.raises(NetplugError, match="being deleted"):
        await add(host, tcp(9090))
    assert [texts(it)[1] for it in listener.told] == [["0.0.0.0:9090->80/tcp"]]
    assert await host.state() == before


# Ports in force follow from records


async def change(host: Host, binding: str | None = None, *, internal: bool | None = None) -> Updated:
    """Update the network; tell that a dry run foretells it."""
    options = {} if binding is None else {"host_binding_ipv4": binding}
    before = await host.state()
    wanted = NetworkChange(options, internal)
    foretold = await host.engine.network_updates.update(NET, wanted, dry_run=True)
    assert await host.state() == before
    done = await host.engine.network_updates.update(NET, wanted)
    assert foretold.changes == done.changes
    return done


async def test_ports_follow_the_default_address_of_their_network(host: Host) -> None:
    await add(host, tcp(9090), tcp(9091, 80, "127.0.0.9"))
    await host.docker_endpoint(NEXT, "10.1.0.3/24", ports=(tcp(8081),))  # Docker has not asked to publish them
    untouched = host.endpoint(NEXT)
    found = await change(host, "127.0.0.1")
    moved = {
        it.what: it.object for it in found.changes if it.object.startswith("hostport/tcp/") and "/::" not in it.object
    }
    assert moved == {"added": "hostport/tcp/127.0.0.1/9090", "removed": "hostport/tcp/0.0.0.0/9090"}
    assert texts(host.endpoint()) == (
        ["127.0.0.1:8080->80/tcp"], ["127.0.0.1:9090->80/tcp", "127.0.0.9:9091->80/tcp"]
    )  # fmt: skip
    await host.check()
    before = await host.state()
    await change(host)
    assert await host.state() == before
    assert host.endpoint(NEXT) is untouched
    await change(host, "")
    assert texts(host.endpoint())[0] == ["0.0.0.0:8080->80/tcp"]
    assert not host.endpoint().withheld
    await host.check()


async def test_a_chosen_port_stays_when_its_address_changes(host: Host) -> None:
    await host.publish(END, tcp(0))
    (one,) = host.endpoint().published
    for binding, address in (("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("", "0.0.0.0")):
        await change(host, binding)
        assert texts(host.endpoint())[0] == [f"{address}:{one.host_port}->80/tcp"]
    await change(host, internal=True)
    await change(host, "127.0.0.1", internal=False)
    assert texts(host.endpoint())[0] == [f"127.0.0.1:{one.host_port}->80/tcp"]
    await host.check()


async def test_a_chosen_port_and_a_given_one_may_lead_to_one_port(host: Host) -> None:
    await host.publish(END, tcp(8080), tcp(0), tcp(0, 85), tcp(8081, 85))
    free = {it.port: it.host_port for it in host.endpoint().published if it.host_port not in {8080, 8081}}
    before = texts(host.endpoint())[0]
    await change(host, "127.0.0.1")
    assert len(free) == 2
    assert texts(host.endpoint())[0] == sorted(text.replace("0.0.0.0", "127.0.0.1") for text in before)
    mine = await host.attach("ns1", ports=(tcp(7080), tcp(0)))
    (kept,) = (it.host_port for it in mine.published if it.host_port != 7080)
    left = await remove(host, tcp(7080), ref="ns1")
    assert texts(left)[0] == [f"127.0.0.1:{kept}->80/tcp"]
    await change(host, "")
    assert texts(host.endpoint(mine.endpoint.id))[0] == [f"0.0.0.0:{kept}->80/tcp"]
    await host.check()


async def test_an_internal_network_publishes_nothing_until_it_is_none(host: Host) -> None:
    await add(host, tcp(9090))
    await change(host, internal=True)
    assert texts(host.endpoint()) == ([], [])
    assert host.engine.exposure.shown(host.endpoint()) == [
        "0.0.0.0:8080->80/tcp (not published: internal network)",
        "0.0.0.0:9090->80/tcp (not published: internal network)",
    ]
    assert host.engine.publishing.lost == {}
    await host.check()
    await host.reboot()
    await host.reconciler.repair()
    await host.check()
    await change(host, internal=False)
    assert texts(host.endpoint()) == (["0.0.0.0:8080->80/tcp"], ["0.0.0.0:9090->80/tcp"])
    await host.check()
    await change(host, internal=True)
    await host.engine.publishing.unpublish(NET, END)  # Docker's container has another way out now
    await change(host, internal=False)
    assert texts(host.endpoint()) == ([], ["0.0.0.0:9090->80/tcp"])
    await host.check()


@pytest.mark.parametrize("rebooted", [False, True])
async def test_a_port_that_cannot_be_had_is_said_and_tried_again(host: Host, *, rebooted: bool) -> None:
    await add(host, tcp(9090))
    await host.attach("ns1", name="mine", ports=(tcp(7000),))
    taken = {(Proto.TCP, ip_address("127.0.0.1"), port) for port in (7000, 8080, 9090)}
    host.kernel.foreign.ports |= taken
    said = (await change(host, "127.0.0.1")).notes
    assert len(said) == 3
    assert "port 127.0.0.1:8080->80/tcp of web is not published: port 127.0.0.1:8080/tcp is already in use" in said[0]
    assert texts(host.endpoint()) == ([], [])
    if rebooted:
        await host.reboot()
        await host.reconciler.repair()
    await host.reconciler.diff()
    found = {(it.object, it.what.partition(":")[0]) for it in await host.reconciler.diff()}
    assert found == {(f"port 127.0.0.1:{port}->80/tcp", "is not published") for port in (7000, 8080, 9090)}
    assert "127.0.0.1:9090->80/tcp (not published: taken)" in host.engine.exposure.shown(host.endpoint())
    host.kernel.foreign.ports -= taken
    await host.reconciler.repair()
    assert texts(host.endpoint()) == (["127.0.0.1:8080->80/tcp"], ["127.0.0.1:9090->80/tcp"])
    await host.check()


async def test_a_lost_port_that_is_taken_back_is_not_missed(host: Host) -> None:
    await add(host, tcp(9090), tcp(9091))
    host.kernel.foreign.ports.add((Proto.TCP, ip_address("127.0.0.1"), 9090))
    await change(host, "127.0.0.1")
    assert texts(host.endpoint())[1] == ["127.0.0.1:9091->80/tcp"]
    await remove(host, tcp(9090))
    assert texts(host.endpoint())[1] == ["127.0.0.1:9091->80/tcp"]
    await host.check()


async def test_a_network_of_the_container_takes_over_what_another_must_not_publish(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", ident=OTHER, name="red")
    both = {"front_end": FrontEnd.CNI, "container": "c1", "ports": (tcp(5432),)}
    one = await host.attach("ns1", **both)
    heir = await host.attach("ns1", network="red", ifname="eth1", **both)
    await change(host, internal=True)
    assert texts(host.endpoint(one.endpoint.id)) == ([], [])
    assert texts(host.endpoint(heir.endpoint.id, OTHER)) == (["0.0.0.0:5432->80/tcp"], [])
    await host.check()
    await change(host, internal=False)
    await host.check()


async def test_an_interrupted_rejoin_ends_with_all_ports(host: Host) -> None:
    """What is in the way of an added port when its endpoint joins again keeps nobody from joining."""
    await add(host, tcp(9090))
    await host.engine.endpoints.leave(NET, END)
    stranger = (Proto.TCP, ip_address("0.0.0.0"), 9090)
    host.kernel.foreign.ports.add(stranger)
    await host.join()
    assert texts(host.endpoint()) == ([], [])
    (found,) = [it for it in await host.reconciler.diff() if "9090" in it.object]
    assert found.what.startswith("is not published: port 0.0.0.0:9090/tcp is already in use")
    host.kernel.foreign.ports.remove(stranger)
    await host.reconciler.repair()
    assert texts(host.endpoint()) == ([], ["0.0.0.0:9090->80/tcp"])
    await host.check()
