"""Underlays that change under a living cluster: hosts get other addresses, and the others follow."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from harness import Namespace, assert_same, namespace, snapshot, wait_until
from harness.cluster import Cluster, Member, needs_etcd
from harness.wire import connect

pytestmark = needs_etcd

SOON_S = 15.0
"""Less than any timer, of which the shortest takes 30 s; on an idle machine it takes half a second."""


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """Two hosts whose VTEP is the address of their link."""
    with ExitStack() as stack:
        it = Cluster(stack)
        for _ in range(2):
            host, wire = it.prepare()
            it.join(host, wire, "--vtep", wire.left_link)
        yield it


def readdress(member: Member, address: str) -> None:
    """Give the link of a host another address in place of the one that it has, as DHCP may."""
    link, gateway = member.wire.left_link, member.wire.right
    lines = [f"addr del {member.vtep}/24 dev {link}", f"addr add {address}/24 dev {link}"]
    lines.append(f"route replace default via {gateway}")
    member.host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in lines)])
    member.vtep = address


@contextmanager
def addressed(*members: Member) -> Iterator[None]:
    """Give the hosts their addresses back at the end."""
    try:
        yield
    finally:
        for member in members:
            if member.vtep != member.wire.left:
                readdress(member, member.wire.left)


def reach_each_other(one: Namespace, other: Namespace) -> bool:
    return one.pings(other.addresses[0]) and other.pings(one.addresses[0])


def follow(two: Cluster, one: Namespace, other: Namespace) -> None:
    """Wait until both hosts send where the other is now, and both stations hear each other."""
    here, there = two.members
    wait_until(lambda: here.knows(other.mac) == there.vtep, SOON_S, "the first sends there")
    wait_until(lambda: there.knows(one.mac) == here.vtep, SOON_S, "the second sends there")
    wait_until(lambda: reach_each_other(one, other), SOON_S, "they reach each other")
    for member in two.members:
        wait_until(lambda member=member: not member.netplug.drift(), SOON_S, "no drift")  # type: ignore[misc]
        vteps = {host["name"]: host["vtep"] for host in member.netplug.json("host", "ls")}
        assert vteps == {it.host.name: it.vtep for it in two.members}


def test_a_host_that_gets_another_address_is_followed_without_a_restart(two: Cluster) -> None:
    here, there = two.members
    before = [snapshot(member.host) for member in two.members]
    with (
        addressed(there),
        two.network("blue") as net,
        two.station(here, net) as one,
        two.station(there, net) as other,
    ):
        assert reach_each_other(one, other)
        readdress(there, "198.51.2.77")
        follow(two, one, other)
        with two.station(there, net) as late:
            assert reach_each_other(one, late)
        readdress(there, there.wire.left)
        follow(two, one, other)
    for member, was in zip(two.members, before, strict=True):
        assert_same(was, lambda member=member: snapshot(member.host))  # type: ignore[misc]


def test_an_address_that_goes_and_comes_back(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        there.host.run(["ip", "addr", "del", f"{there.vtep}/24", "dev", there.wire.left_link])
        wait_until(lambda: "vtep" in there.netplug.drift(), SOON_S, "it is said")
        readdress_back = f"ip addr add {there.vtep}/24 dev {there.wire.left_link}; ip route replace default via"
        there.host.run(["sh", "-ec", f"{readdress_back} {there.wire.right}"])
        follow(two, one, other)


@pytest.mark.parametrize("rebooted", [False, True], ids=["daemon-down", "rebooted"])
def test_a_change_while_the_daemon_was_down(two: Cluster, rebooted: bool) -> None:
    here, there = two.members
    with (
        addressed(there),
        two.network("blue") as net,
        two.station(here, net) as one,
        two.station(there, net) as other,
    ):
        there.netplug.kill()
        readdress(there, "198.51.2.77")
        if rebooted:  # what is left of it then: records, and namespaces that something makes at boot
            there.host.run(["sh", "-ec", "for it in /sys/class/net/np*; do ip link del ${it##*/} || true; done"])
        there.netplug.start()
        follow(two, one, other)


def test_two_hosts_swap_their_addresses() -> None:
    """Theirs are on links of their own, to which the router has routes."""
    with ExitStack() as stack:
        it = Cluster(stack)
        for number in (1, 2):
            host, wire = it.prepare()
            host.run(["sh", "-ec", "ip link add vt0 type bridge; ip link set vt0 up"])
            host.run(["ip", "addr", "add", f"203.0.113.{number}/32", "dev", "vt0"])
            it.router.run(["ip", "route", "replace", f"203.0.113.{number}", "via", wire.left])
            it.join(host, wire, "--vtep", "vt0").vtep = f"203.0.113.{number}"
        here, there = it.members
        with it.network("blue") as net, it.station(here, net) as one, it.station(there, net) as other:
            assert reach_each_other(one, other)
            swap(it)
            follow(it, one, other)


def test_an_uplink_is_replaced_by_another_link_with_another_address_and_mtu() -> None:
    """What follows from the uplink: tunnels, the other host's peers, and the MTU of the host's own networks."""
    with ExitStack() as stack:
        it = Cluster(stack)
        it.add()
        there = it.join(*it.prepare(), "--vtep", "")
        here, host = it.members[0], there.host
        with (
            it.network("blue", "-o", "mtu=1300") as net,
            it.station(here, net) as one,
            it.station(there, net) as other,
            namespace(host) as alone,
        ):
            there.cli("network", "create", "own")
            alone.attach(there.netplug, "own")
            old, there.wire = there.wire, connect(host, it.router, "198.51.22.0/24", "fd00:51:22::/64", routes=False)
            lines = [f"link del {old.left_link}", f"link set {there.wire.left_link} mtu 1400"]
            lines.append(f"route replace default via {there.wire.right}")
            host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in lines)])
            there.vtep = there.wire.left
            follow(it, one, other)
            wait_until(lambda: "mtu 1400" in alone.exec("ip", "link", "show", "eth0"), SOON_S, "the mtu of its uplink")
            assert "mtu 1300" in other.exec("ip", "link", "show", "eth0")
            alone.detach(there.netplug, "own")
            there.cli("network", "rm", "own")


def test_routes_alone_move_a_vtep_that_nobody_chose() -> None:
    """The store is reached from another address of the host; all addresses stay."""
    with ExitStack() as stack:
        it = Cluster(stack)
        it.add()
        host, wire = it.prepare()
        host.run(["sh", "-ec", "ip link add vt0 type bridge; ip link set vt0 up; ip addr add 203.0.113.2/32 dev vt0"])
        it.router.run(["ip", "route", "replace", "203.0.113.2", "via", wire.left])
        it.join(host, wire, "--vtep", "")
        here, there = it.members
        with it.network("blue") as net, it.station(here, net) as one, it.station(there, net) as other:
            assert reach_each_other(one, other)
            for source in ("203.0.113.2", wire.left):
                host.run(["ip", "route", "replace", "default", "via", wire.right, "src", source])
                there.vtep = source
                follow(it, one, other)


def swap(it: Cluster) -> None:
    here, there = it.members
    for member, other in ((here, there), (there, here)):
        member.host.run(["ip", "addr", "del", f"{member.vtep}/32", "dev", "vt0"])
        it.router.run(["ip", "route", "replace", member.vtep, "via", other.wire.left])
    here.vtep, there.vtep = there.vtep, here.vtep
    for member in it.members:
        member.host.run(["ip", "addr", "add", f"{member.vtep}/32", "dev", "vt0"])
