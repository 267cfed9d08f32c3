"""Networks over several hosts by one etcd, on real kernels: daemons on hosts of their own behind a router."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness import Answer, Namespace, assert_same, namespace, resolve, snapshot, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd, refused

pytestmark = needs_etcd
TURNS = 10
"""On a busy machine the other host may confirm some too late."""


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


def reaches(one: Namespace, other: Namespace) -> bool:
    return all(one.pings(address) for address in other.addresses)


def set_mtu(member: Member, mtu: int) -> None:
    member.host.run(["ip", "link", "set", member.wire.left_link, "mtu", str(mtu)])


def test_namespaces_on_two_hosts_reach_each_other_in_both_families(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue", "--ipv6") as net, two.station(here, net) as one, two.station(there, net) as other:
        assert len(one.addresses) == 2
        assert not set(one.addresses) & set(other.addresses)
        assert reaches(one, other)
        assert reaches(other, one)


def test_attached_is_reached_and_found_by_name_from_the_other_host_at_once(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue", "--subnet", "10.90.1.0/24") as net, two.station(there, net, "--name", "asker") as asker:

        def unconfirmed() -> int:
            return here.netplug.log.read_text().count("unconfirmed")

        before, at_once = unconfirmed(), 0
        for turn in range(TURNS):
            if at_once == 5:
                break
            with two.station(here, net, "--name", f"web{turn}") as web:
                if unconfirmed() == before:
                    assert resolve(asker, "10.90.1.1", f"web{turn}") == Answer("NOERROR", tuple(web.addresses))
                    asker.exec("busybox", "ping", "-c", "1", "-W", "1", web.addresses[0])
                    at_once += 1
            before = unconfirmed()
        assert at_once == 5


def test_a_network_is_named_listed_and_removed_on_any_host(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue", "--subnet", "10.90.1.0/24") as net, two.station(here, net, "--name", "web") as one:
        ident = {member.netplug.json("network", "inspect", net)["id"] for member in two.members}
        assert len(ident) == 1
        code, text = refused(there, "network", "rm", net)
        assert (code, text) == (1, f"netplug: network 'blue' has endpoints: 1 on {here.host.name} (detach first)")
        code, text = refused(there, "network", "create", net, "--cluster")
        assert code == 1
        assert "network 'blue' exists already in the cluster" in text
        (pool,) = (it for it in there.netplug.json("ipam", "ls") if it["networks"] == [net])
        held = {it["address"]: (it["owner_name"], it["host"]) for it in pool["leases"]}
        assert held == {"10.90.1.1": ("blue", ""), one.addresses[0]: ("web", here.host.name)}


def test_networks_of_a_cluster_do_not_reach_each_other(two: Cluster) -> None:
    here, there = two.members
    with (
        two.network("blue") as blue,
        two.network("red") as red,
        two.station(here, blue) as one,
        two.station(there, red) as other,
        two.station(here, red) as third,
    ):
        assert not one.pings(other.addresses[0])
        assert not one.pings(third.addresses[0])
        assert third.pings(other.addresses[0])


def test_an_address_moves_from_host_to_host(two: Cluster) -> None:
    """Hard case 9 (moby 35401): the others send to where it is now, although MAC and address are the same."""
    here, there = two.members
    with two.network("blue", "--subnet", "10.90.1.0/24") as net, two.station(here, net) as one:
        for member in (there, here, there):
            # Where the store is slow to answer, who leaves does not wait for it.
            wait_until(lambda m=member: "10.90.1.50" not in m.cli("ipam", "ls"), 30, "it is free")  # type: ignore[misc]
            with two.station(member, net, "--ip", "10.90.1.50") as moved:
                assert one.pings("10.90.1.50")
                assert moved.pings(one.addresses[0])


def test_a_cut_cable_is_mended_and_traffic_is_back(two: Cluster) -> None:
    """Hard case 2 (moby 53141): nobody has to do anything, and what happened meanwhile is told."""
    here, there = two.members
    with (
        two.network("blue") as net,
        two.station(here, net) as one,
        two.station(there, net) as other,
        namespace(there.host) as late,
    ):
        there.cut()
        assert not one.pings(other.addresses[0])
        # Without the store nobody gets an address that another host might have.
        code, text = refused(there, "attach", net, "--netns", late.name)
        assert code == 3
        assert text.startswith("netplug: store: ")
        there.mend()
        wait_until(lambda: one.pings(other.addresses[0]), 15, "the ping is back")
        wait_until(lambda: late.attaches(there.netplug, net), 15, "the store is back")
        two.known(late, there)
        assert one.pings(late.addresses[0])
        late.detach(there.netplug, net)


def test_a_killed_daemon_leaves_traffic_alone_and_finds_all_again(two: Cluster) -> None:
    """Hard cases 1 and 8: the data plane needs no daemon."""
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        there.netplug.kill()
        assert reaches(one, other)
        with two.station(here, net, told=False) as late:
            there.netplug.start()
            assert reaches(one, other)
            two.known(late, here)
            assert reaches(late, other)
        wait_until(lambda: not there.netplug.drift(), what="no drift")


HARMS = {
    "a MAC": "bridge fdb del {mac} dev {vxlan} self",
    "a MAC of the bridge": "bridge fdb del {mac} dev {vxlan} master",
    "another host": "bridge fdb replace {mac} dev {vxlan} self dst 198.51.100.1",
    "neighbours": "ip neigh flush dev {bridge} nud permanent",
    "another neighbour": "ip neigh replace {address} lladdr 02:00:00:00:00:99 dev {bridge} nud permanent",
    "the bridge": "ip link set {bridge} down; ip link set {bridge} up",
    "the tunnel": "ip link del {vxlan}",
}


def test_what_others_break_is_mended_at_once(two: Cluster) -> None:
    """Hard case 14. The slow timer would need 30 s for each."""
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        links = {item["ifname"] for item in json.loads(here.host.output("ip", "-j", "link"))}
        words = {
            "bridge": next(name for name in links if name.startswith("np-")),
            "vxlan": next(name for name in links if name.startswith("npv")),
            "mac": other.mac,
            "address": other.addresses[0],
        }
        for name, harm in HARMS.items():
            here.host.run(["sh", "-ec", harm.format(**words)])
            wait_until(lambda: not here.netplug.drift(), 6, f"no drift after harm to {name}")
            assert reaches(one, other), name


@pytest.mark.parametrize("fault", ["killed", "hung", "emptied"])
def test_without_the_store_traffic_goes_on(two: Cluster, fault: str) -> None:
    """Hard cases 3, 4 and 18: and a store that comes back without its data is told again."""
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        with two.station(there, net) as early:
            two.etcd.hang() if fault == "hung" else two.etcd.kill()
            assert reaches(one, other)
            assert reaches(early, one)
        # Detached meanwhile; and this daemon starts in a world without the store.
        here.netplug.restart()
        assert reaches(one, other)
        two.etcd.go_on() if fault == "hung" else two.etcd.start(emptied=fault == "emptied")
        wait_until(lambda: here.knows(early.mac) == "", 30, "the detached is forgotten")
        assert reaches(one, other)
        with two.station(there, net) as late:
            assert reaches(one, late)


def test_three_hosts_over_ipv6_with_ipv6_alone_inside() -> None:
    """Hard case 21."""
    with cluster(3, family=6) as it, it.network("six", "--subnet", "fd00:90::/64") as net, ExitStack() as stack:
        stations = [stack.enter_context(it.station(member, net)) for member in it.members]
        for one in stations:
            for other in stations:
                if one is not other:
                    assert reaches(one, other)


def test_a_host_with_a_smaller_underlay_says_so(two: Cluster) -> None:
    """Hard case 12: a network that does not fit through is not there, and whoever asks for it is told why."""
    here, there = two.members
    before = snapshot(there.host)
    set_mtu(there, 1400)
    try:
        here.cli("network", "create", "wide", "--cluster")
        wait_until(lambda: "cannot be built" in refused(there, "attach", "wide", "--netns", "none")[1], 10, "refusal")
        code, text = refused(there, "attach", "wide", "--netns", "none")
        assert code == 1
        assert "option mtu=1450: VXLAN over IPv4 adds 50 bytes" in text
        here.cli("network", "rm", "wide")
    finally:
        set_mtu(there, 1500)
    assert_same(before, lambda: snapshot(there.host))
