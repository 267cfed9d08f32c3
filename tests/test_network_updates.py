"""Updates of networks that live, on a fake kernel."""

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
import pytest_asyncio
from engine_host import END, NET, OTHER, SANDBOX, Host, tcp

from netplug.drivers.api import Peer, PortMapping
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import host_side
from netplug.drivers.steps import Bridge, Hook, Ifb, Macvlan, Proto, Resolver, Route, Shape, Step, Veth
from netplug.drivers.tables import ANTISPOOF, NETWORKS
from netplug.drivers.tunnel import Fdb, Vxlan
from netplug.drivers.tunnel_tables import of_fast_path
from netplug.engine.convergence import Change
from netplug.engine.network_updates import NetworkChange, Updated
from netplug.engine.records import FrontEnd, NetworkSpec, Origin, SubnetSpec
from netplug.errors import NetplugError
from netplug.ipam.errors import IpamError
from netplug.kernel.api import StepError

REFUSED = (NetplugError, DriverError, IpamError)
pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.check()
    await host.close()


async def update(host: Host, options: dict[str, str] | None = None, *, dry: bool = False, **change: Any) -> Updated:
    return await host.engine.network_updates.update(NET, NetworkChange(options or {}, **change), dry_run=dry)


def of(host: Host, kind: type[Step]) -> list[Any]:
    plans = [record.plan for record in host.networks()] + [record.plan for record in host.endpoints()]
    return [step for plan in plans for step in plan if isinstance(step, kind)]


async def living(host: Host, **options: str) -> None:
    """Have a network with an endpoint of Docker's and one in a bare namespace."""
    await host.docker_network(**options)
    await host.docker_endpoint()
    await host.join()
    await host.attach(addresses=(ip_address("10.1.0.9"),))


# What changes


async def test_limits_come_change_and_go(host: Host) -> None:
    await living(host)
    came = await update(host, {"rate": "10mbit"})
    assert [change.what for change in came.changes] == ["added", "added"] * 2
    assert {step.rate for step in of(host, Shape)} == {(10_000_000, 10_000_000)}
    changed = await update(host, {"rate": "20mbit/0"})
    assert sorted(change.what for change in changed.changes) == ["changed", "changed", "removed", "removed"]
    assert ({step.rate for step in of(host, Shape)}, of(host, Ifb)) == ({(20_000_000, 0)}, [])
    gone = await update(host, {"rate": ""})
    assert [change.what for change in gone.changes] == ["removed", "removed"]
    assert (await update(host, {"rate": ""})).changes == []


async def test_limits_of_a_container_of_its_own_stay_and_are_named(host: Host) -> None:
    await host.docker_network()
    await host.docker_endpoint(options={"rate": "1mbit"}, name="web")
    await host.join()
    found = await update(host, {"rate": "10mbit"})
    assert (found.changes, found.notes) == ([], ("Docker's container 'web' keeps limits of its own",))
    assert {step.rate for step in of(host, Shape)} == {(1_000_000, 1_000_000)}


@pytest.mark.parametrize("mtu", [1300, 9000])
async def test_mtu_changes_on_both_ends_wherever_the_sandbox_side_is(host: Host, mtu: int) -> None:
    await living(host)
    docker = next(step for step in host.endpoint().plan if isinstance(step, Veth))
    host.kernel.move(docker, SANDBOX)
    await update(host, {"mtu": str(mtu)})
    assert {step.mtu for kind in (Veth, Bridge) for step in of(host, kind)} == {mtu}
    assert host.kernel.sandbox_mtu(docker) == mtu
    assert {record.attachment.mtu for record in host.endpoints()} == {mtu}
    # A step that is only applied so is not kept: an older version could not read it.
    assert {step.moved for step in of(host, Veth)} == {None}


async def test_mtu_that_a_container_chose_stays(host: Host) -> None:
    await living(host)
    docker = next(step for step in host.endpoint().plan if isinstance(step, Veth))
    host.kernel.move(docker, SANDBOX)
    host.kernel.tune(docker, 1200)
    await update(host, {"mtu": "1400"})
    assert host.kernel.sandbox_mtu(docker) == 1200


async def test_mtu_changes_in_the_sandbox_of_a_macvlan(host: Host) -> None:
    host.kernel.foreign.links["eth9"] = ""
    spec = NetworkSpec(NET, "lan", {"mode": "macvlan", "parent": "eth9"}, (SubnetSpec(ip_network("10.9.0.0/24")),))
    await host.engine.networks.create(spec)
    await host.attach()
    await update(host, {"mtu": "1400"})
    (link,) = of(host, Macvlan)
    assert (link.mtu, link.former, host.kernel.sandbox_mtu(link)) == (1400, 0, 1400)


async def test_containers_are_isolated_and_may_talk_again(host: Host) -> None:
    await living(host)
    await update(host, {"icc": "false"})
    assert {step.isolated for step in of(host, Veth)} == {True}
    assert not host.elements("icc")
    await update(host, {"com.docker.network.bridge.enable_icc": "true"})
    assert {step.isolated for step in of(host, Veth)} == {False}
    assert host.elements("icc")


async def test_guards_go_and_come(host: Host) -> None:
    await living(host)
    await update(host, {"spoofchk": "false"})
    links = {step.name for step in of(host, Veth)}
    assert {(it.set, it.item, it.data) for it in host.elements(table=ANTISPOOF)} == {
        ("exempt", link, "accept") for link in links
    }
    assert not host.elements("guarded")
    assert {step.pinned for step in of(host, Veth)} == {False}
    await update(host, {"spoofchk": "true"})
    assert not host.elements("exempt", table=ANTISPOOF)
    for name in ("macs", "own4", "own6"):
        assert {it.item.partition(" ")[0] for it in host.elements(name, table=ANTISPOOF)} == links
    assert len(host.elements("bridges", table=ANTISPOOF)) == len(host.elements("guarded")) == 1
    assert {step.pinned for step in of(host, Veth)} == {True}


async def test_network_becomes_internal_and_open_again(host: Host) -> None:
    await living(host)
    await host.publish(END, tcp(8080))
    assert [step for step in of(host, Route) if not step.destination.prefixlen]
    found = await update(host, internal=True)
    (note,) = found.notes
    assert note.endswith(" keeps the default route until the next start; what is sent by that route is dropped")
    assert [it.data for it in host.elements("from", "masqueraded")] == ["goto from_internal"]
    assert not [step for step in of(host, Route) if not step.destination.prefixlen]
    assert not host.endpoint().exposed
    found = await update(host, internal=False)
    assert found.notes[0].endswith(" gets the default route with the next start")
    assert {it.data for it in host.elements("from", "masqueraded")} == {"goto from_open", ""}
    assert [step for step in of(host, Route) if not step.destination.prefixlen]
    assert host.endpoint().exposed


async def test_ranges_of_ports_come_and_go_as_ranges(host: Host) -> None:
    await living(host)
    await host.publish(END, PortMapping(Proto.TCP, 9000, None, 9000, count=3))
    gone = await update(host, internal=True, dry=True)
    assert gone.changes == (await update(host, internal=True)).changes
    came = await update(host, internal=False)
    for found, what in ((gone, "removed"), (came, "added")):
        ports = [it for it in found.changes if "900" in it.object]
        assert {(re.split("[/ ]", it.object)[-1], it.what) for it in ports} == {("9000-9002", what)}
        assert len(set(ports)) == len(ports) == 4


async def test_published_ports_take_another_default_address(host: Host) -> None:
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/24")))
    await living(host)
    await host.publish(END, tcp(8080), tcp(9090, address="192.0.2.7"))
    await update(host, {"host_binding_ipv4": "127.0.0.1"})
    assert [str(port) for port in host.endpoint().published] == ["127.0.0.1:8080->80/tcp", "192.0.2.7:9090->80/tcp"]
    await update(host, {"host_binding_ipv4": ""})
    assert [str(port) for port in host.endpoint().published] == ["0.0.0.0:8080->80/tcp", "192.0.2.7:9090->80/tcp"]


async def test_default_route_follows_the_priority_of_networks(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    await host.cli_network("10.4.0.0/24", ident=OTHER, name="red")
    await host.attach("one")
    await host.attach("one", network=OTHER, ifname="eth1")

    def way() -> list[str]:
        return [str(step.gateway) for step in of(host, Route) if not step.destination.prefixlen]

    async def moved(options: dict[str, str], **more: Any) -> list[str]:
        """Update, and return which default routes the user is told to come and go, before and after."""
        ident = host.engine.registry.network(NET).network.id
        planned = await host.engine.network_updates.update(ident, NetworkChange(options, **more), dry_run=True)
        done = await update(host, options, **more)
        assert set(planned.changes) == set(done.changes)
        words = ((one.what, one.object) for one in done.changes if "/0.0.0.0/0/" in one.object)
        return sorted(f"{what} {key.rsplit('/', 1)[1]}" for what, key in words)

    assert way() == ["10.3.0.1"]
    assert await moved({"gw_priority": "-1"}) == ["added eth1", "removed eth0"]
    assert way() == ["10.4.0.1"]
    assert await moved({"gw_priority": "1"}) == ["added eth0", "removed eth1"]
    assert way() == ["10.3.0.1"]
    assert await moved({"ttl": "9"}) == []
    assert await moved({}, internal=True) == ["added eth1", "removed eth0"]
    assert way() == ["10.4.0.1"]
    assert await moved({}, internal=False) == ["added eth0", "removed eth1"]
    assert way() == ["10.3.0.1"]


async def test_containers_of_docker_keep_their_route_and_the_user_is_told(host: Host) -> None:
    await living(host)
    for options in ({"gw_priority": "2"}, {"metric": "50"}):
        (note,) = (await update(host, options)).notes
        assert note.endswith(" keeps the default route that Docker chose")


async def test_name_service_ends_and_begins(host: Host) -> None:
    await living(host)
    await update(host, {"dns": "off", "ttl": "60"})
    assert of(host, Resolver) == []
    assert (await update(host, {"dns": "on"})).changes
    (network,) = host.networks()
    assert (len(of(host, Resolver)), network.network.options.ttl) == (1, 60)


async def test_overlay_leaves_the_fast_path_and_floods(host: Host) -> None:
    host.vtep = ip_address("192.0.2.7")
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/24")))
    host.kernel.foreign.links["eth0"] = ""
    await host.reboot()
    await host.cli_network("10.3.0.0/24", mode="overlay", vni="7")
    await host.attach()
    peer = Peer("f" * 64, "02:00:00:00:00:07", (ip_address("10.3.0.77"),), ip_address("192.0.2.8"))
    await host.engine.peers.apply(NET, [peer])
    with pytest.raises(NetplugError, match="is on several hosts"):
        await update(host, {"bum": "true"})
    for options, flood, fast in (({"bum": "true", "icc": "false"}, True, False), ({"bum": "", "icc": ""}, False, True)):
        await host.engine.network_updates.update_here(NET, NetworkChange(options))
        (link,) = of(host, Vxlan)
        assert (link.flood, link.isolated, any(map(of_fast_path, of(host, Hook)))) == (flood, not fast, fast)
        peers = host.engine.peers.plan(NET)
        assert sum(isinstance(step, Fdb) for step in peers) == 1 + flood
        assert sum(map(of_fast_path, peers)) == fast


async def test_options_are_kept_as_they_are_and_as_created(host: Host) -> None:
    await living(host, **{"com.docker.network.bridge.enable_icc": "false"})
    await update(host, {"ttl": "60"})
    await update(host, {"icc": "", "rate": "1mbit", "mode": "bridge"})
    (network,) = host.networks()
    assert network.options == {"ttl": "60", "rate": "1mbit", "mode": "bridge"}
    assert network.origin == network.as_created == Origin({"com.docker.network.bridge.enable_icc": "false"})
    await host.reboot()
    assert host.networks() == [network]


async def test_labels_are_set_and_removed(host: Host) -> None:
    await living(host)
    await update(host, labels={"team": "a", "old": ""})
    found = await update(host, labels={"team": "b"}, unlabel=("old", "never"))
    assert (found.changes, found.record.labels, found.record.origin) == ([], {"team": "b"}, None)


async def test_open_mtu_follows_the_uplink_again(host: Host) -> None:
    await living(host, mtu="1400")
    await update(host, {"mtu": ""})
    assert {step.mtu for kind in (Veth, Bridge) for step in of(host, kind)} == {1500}


async def test_sticky_begins_and_ends(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    await update(host, {"sticky": "7d"})
    await host.attach(name="web")
    (first,) = host.endpoints()
    await host.engine.endpoints.delete(NET, first.endpoint.id)
    assert [pool.sticky_s for pool in host.engine.allocator.pools()] == [7 * 86_400]
    await host.attach(name="web")
    assert host.endpoints()[0].endpoint.addresses == first.endpoint.addresses
    await update(host, {"sticky": "false"})
    assert [pool.sticky_s for pool in host.engine.allocator.pools()] == [0]


# Subnets


async def test_subnets_are_added_and_taken_away(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    await host.attach("one")
    added = await update(
        host, add=(SubnetSpec(ip_network("fd00:3::/64"), v6=True), SubnetSpec(ip_network("10.4.0.0/24")))
    )
    assert [str(subnet.gateway) for subnet in added.record.network.subnets] == [
        "10.3.0.1/24",
        "fd00:3::1/64",
        "10.4.0.1/24",
    ]
    assert added.notes == ("containers that run keep their addresses",)
    await host.attach("two")
    (two,) = (one for one in host.endpoints() if one.sandbox.endswith("two"))
    assert {address.version for address in two.endpoint.addresses} == {4, 6}
    with pytest.raises(NetplugError, match="has addresses of") as refused:
        await update(host, remove=(ip_network("10.3.0.0/24"),))
    assert refused.value.kind == "forbidden"
    gone = await update(host, remove=(ip_network("10.4.0.0/24"),))
    assert [str(subnet.pool) for subnet in gone.record.network.subnets] == ["10.3.0.0/24", "fd00:3::/64"]
    assert len(host.engine.allocator.pools()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (NetworkChange(add=(SubnetSpec(ip_network("10.3.0.0/16")),)), "overlaps 10.3.0.0/24, which network 'blue' has"),
        (NetworkChange(add=(SubnetSpec(ip_network("10.7.0.0/24")),)), "overlaps 10.7.0.0/24 of network 'red'"),
        (NetworkChange(remove=(ip_network("10.8.0.0/24"),)), "has no subnet 10.8.0.0/24"),
        (NetworkChange({"rates": "1mbit"}), "unknown option 'rates'"),
        (NetworkChange({"rate": "fast"}), "must be a number with a unit"),
        (NetworkChange({"burst": "80kb"}), "option burst needs option rate"),
        (NetworkChange({"mode": "overlay"}), "cannot change: another driver makes other links"),
        (NetworkChange({"bridge": "br7"}), "cannot change: the links of containers are its ports"),
        (NetworkChange({"vni": "7"}), "exists only in mode overlay"),
        (NetworkChange({"rate": "1mbit", "ifname": "lan"}), "'lan' cannot change"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("dry", [False, True])
async def test_what_cannot_be_is_refused_without_a_change(
    host: Host, change: NetworkChange, words: str, *, dry: bool
) -> None:
    await host.cli_network("10.3.0.0/24")
    await host.cli_network("10.7.0.0/24", ident=OTHER, name="red")
    await host.attach()
    before = await host.state()
    with pytest.raises(REFUSED, match=words):
        await host.engine.network_updates.update(NET, change, dry_run=dry)
    assert await host.state() == before


async def test_last_subnet_stays_unless_another_comes(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    with pytest.raises(NetplugError, match="would be left without a subnet"):
        await update(host, remove=(ip_network("10.3.0.0/24"),))
    await update(host, remove=(ip_network("10.3.0.0/24"),), add=(SubnetSpec(ip_network("10.4.0.0/16")),))
    assert [str(pool.network) for pool in host.engine.allocator.pools()] == ["10.4.0.0/16"]


async def test_subnets_of_docker_are_refused(host: Host) -> None:
    await living(host)
    with pytest.raises(NetplugError, match="docker chose the subnets") as refused:
        await update(host, add=(SubnetSpec(ip_network("10.4.0.0/24")),))
    assert refused.value.kind == "forbidden"
    with pytest.raises(NetplugError, match="IPAM chooses the addresses"):
        await update(host, {"sticky": "true"})


# Dry runs, failures, crashes


async def test_dry_run_tells_what_would_change_and_changes_nothing(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", icc="false")
    await host.attach()
    before = await host.state()
    wanted = NetworkChange(
        {"rate": "1mbit", "icc": "", "sticky": "1h"}, True, add=(SubnetSpec(ip_network("10.4.0.0/24")),)
    )
    told = await host.engine.network_updates.update(NET, wanted, dry_run=True)
    assert await host.state() == before
    assert (await host.engine.network_updates.update(NET, wanted)).changes == told.changes
    owners = {change.owner for change in told.changes}
    assert len(owners) == 2
    link = f"np-{NET[:12]}"
    assert Change("network blue", f"element/{NETWORKS}/icc/{link} . {link}", "added") in told.changes


async def test_update_that_the_kernel_refuses_changes_nothing(host: Host) -> None:
    await living(host)
    before = await host.state()
    host.kernel.fail_at(f"shape/{host_side(END)}")
    with pytest.raises(StepError):
        await update(host, {"rate": "1mbit", "mtu": "1400"}, internal=True)
    host.kernel.heal()
    assert await host.state() == before


async def test_subnet_of_another_ip_version_that_fails_leaves_nothing(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    before = await host.state()
    host.kernel.fail_at(f"address//np-{NET[:12]}/fd00:3::1/64")
    with pytest.raises(StepError):
        await update(host, {"sticky": "1h"}, add=(SubnetSpec(ip_network("fd00:3::/64"), v6=True),))
    host.kernel.heal()
    assert await host.state() == before


async def test_labels_have_a_limit_in_all(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    await update(host, labels={"a": "x" * 60_000})
    with pytest.raises(NetplugError, match="would have 66002 characters of labels"):
        await update(host, labels={"b": "x" * 6_000})
    await update(host, labels={"b": "x" * 6_000}, unlabel=("a",))


async def test_network_of_several_hosts_is_not_changed_on_one(host: Host) -> None:
    with pytest.raises(NetplugError, match="there is no network"):
        await host.engine.network_updates.update("nobody", NetworkChange())


async def test_endpoint_whose_sandbox_is_gone_keeps_nobody_from_an_update(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    await host.attach("one")
    await host.attach("two")
    host.kernel.vanish("/run/netns/one")
    await update(host, {"mtu": "1400"})
    await host.reconciler.repair()
    assert [one.sandbox for one in host.endpoints()] == ["/run/netns/two"]


# In each mode, and beside configurations of runtimes


@pytest.mark.parametrize(
    ("mode", "given", "options"),
    [
        ("host", {}, {"mtu": "1400", "rate": "1mbit", "masquerade": "false"}),
        ("macvlan", {"parent": "eth9", "macvlan_mode": "passthru"}, {"mtu": "1400", "ttl": "9"}),
        ("macvlan", {"parent": "eth9", "host_access": "true"}, {"mtu": "1400"}),
        ("bridge", {"bridge": "br-ours"}, {"mtu": "1400", "rate": "1mbit"}),
        ("none", {}, {"ttl": "9"}),
    ],
)
async def test_own_links_of_a_network_that_lives_are_no_obstacle(
    host: Host, mode: str, given: dict[str, str], options: dict[str, str]
) -> None:
    host.kernel.foreign.links["eth9"] = ""
    subnets = (SubnetSpec(ip_network("10.9.0.0/24")),) if mode != "none" else ()
    await host.engine.networks.create(NetworkSpec(NET, "blue", {"mode": mode, **given}, subnets))
    await host.attach()
    found = await update(host, options)
    assert found.record.options == {"mode": mode, **given, **options}


async def test_bridge_of_the_user_keeps_its_mtu_and_that_is_said(host: Host) -> None:
    host.kernel.foreign.links["br0"] = "bridge"
    await host.cli_network("10.3.0.0/24", bridge="br0")
    await host.attach()
    found = await update(host, {"mtu": "1400"})
    assert found.notes == ("the bridge is not netplug's: netplug does not set its mtu",)
    assert "link/br0" not in {change.object for change in found.changes}
    assert {step.mtu for step in of(host, Veth)} == {1400}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mtu": "1400"}, "parent 'eth9' has mtu 1300"),
        ({"mtu": "67"}, "must be a number of bytes"),
        ({"rate": "1mbit"}, "exists only in mode"),
    ],
)
async def test_what_the_driver_refuses_of_a_new_network_it_refuses_of_one_that_lives(
    host: Host, given: dict[str, str], words: str
) -> None:
    host.kernel.foreign.links["eth9"] = ""
    host.kernel.foreign.mtus["eth9"] = 1300
    await host.cli_network("10.3.0.0/24", mode="macvlan", parent="eth9")
    before = await host.state()
    with pytest.raises(DriverError, match=words):
        await update(host, given)
    assert await host.state() == before


async def test_mtu_too_small_for_ipv6_is_refused(host: Host) -> None:
    await host.cli_network("10.3.0.0/24", "fd00:3::/64")
    with pytest.raises(DriverError, match="option mtu=1279: IPv6 needs 1280"):
        await update(host, {"mtu": "1279"})


async def test_configuration_of_a_runtime_may_stay_as_the_network_was_created(host: Host) -> None:
    spec = NetworkSpec("", "pods", {"rate": "1mbit"}, (SubnetSpec(ip_network("10.3.0.0/24")),), internal=True)
    spec = replace(spec, front_end=FrontEnd.CNI)
    async with host.engine.implicit_networks.joined(spec) as record:
        pass
    await host.engine.network_updates.update("pods", NetworkChange({"rate": "2mbit"}, internal=False))
    async with host.engine.implicit_networks.joined(spec) as record:
        assert record.network.options.rate == (2_000_000, 2_000_000)
    later = replace(spec, options={"rate": "2mbit"}, internal=False)
    host.engine.implicit_networks.refuse_disagreement(record, later)
    with pytest.raises(NetplugError, match="rate is"):
        host.engine.implicit_networks.refuse_disagreement(record, replace(spec, options={"rate": "3mbit"}))
