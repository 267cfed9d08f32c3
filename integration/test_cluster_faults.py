"""Hard cases of a cluster on real kernels: dead hosts, strange links, and others who interfere.

The 24 hard cases of hosts that share networks, and where they are shown: 1 here; 2 to 4, 8, 9, 12, 18, 21 in
`test_cluster.py`; 3, 4, 5, 9, 16, 18, 22, 23 in `tests/test_cluster_faults.py`; 6, 7, 11 in `tests/test_cluster.py` and
`tests/test_cluster_ipam.py`; 8 at each crash point in `tests/test_cluster_crash.py`; 10 nowhere; 11, 13, 14, 15, 24
here and in `test_overlay_faults.py`; 16 in `tests/test_cluster_hosts.py`; 17, 20 in `tests/test_cluster_large.py` (the
times of 20: `bench/cluster.py`); 19 in `tests/test_cluster_ipam.py`.

Not covered: 10, a clock that is a day off. Linux has no clock of the day for a namespace, so no host of ours could have
its own; netplug decides nothing by it. Of 1, that the kernel ends too: namespaces share one. Of 8, a loss of power in
the middle of a write to disk, for the same reason; SQLite and etcd see to that.

Each test ends with no difference on any host, and hosts that look as they did before.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest
from harness import Stream, assert_same, namespace, snapshot, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd, refused
from harness.firewalld import Firewalld, needs_firewalld

pytestmark = needs_etcd

DEAD_S = 25
"""Until the lease of a host that died has ended."""
TIMER_S = 40
"""Until all is looked at anyway."""


@pytest.fixture(scope="module")
def all_hosts() -> Iterator[Cluster]:
    with cluster(3) as it:
        yield it


@pytest.fixture
def hosts(all_hosts: Cluster) -> Iterator[Cluster]:
    with unchanged(all_hosts):
        yield all_hosts


@contextmanager
def unchanged(it: Cluster) -> Iterator[None]:
    before = [snapshot(member.host) for member in it.members]
    yield
    for member, was in zip(it.members, before, strict=True):
        assert_same(was, lambda member=member: snapshot(member.host))  # type: ignore[misc]
        wait_until(lambda member=member: member.netplug.drift() == "", what="no drift")  # type: ignore[misc]


def states(member: Member) -> dict[str, bool]:
    return {host["name"]: host["alive"] for host in member.netplug.json("host", "ls")}


def test_a_host_that_lost_power_is_forgotten_and_comes_back(hosts: Cluster) -> None:
    """Hard cases 1 and 16: the others go on, its addresses stay its own until somebody says otherwise."""
    one, two, dead = hosts.members
    with (
        hosts.network("blue", "--subnet", "10.90.1.0/24") as net,
        hosts.station(one, net, "--name", "web") as web,
        hosts.station(two, net) as other,
        namespace(dead.host) as place,
    ):
        place.attach(dead.netplug, net, "--ip", "10.90.1.50", "--name", "db")
        assert web.pings("10.90.1.50")
        dead.cut()
        dead.netplug.kill()
        assert web.pings(other.addresses[0])
        # It may come back, so its address is nobody's; it is waited for once, and no longer.
        with namespace(one.host) as heir:
            assert (
                "leased on another host" in refused(one, "attach", net, "--netns", heir.name, "--ip", "10.90.1.50")[1]
            )
            assert "is alive" in refused(one, "host", "forget", dead.host.name)[1]
            wait_until(lambda: not states(one)[dead.host.name], DEAD_S, "the lease has ended")
            with hosts.station(two, net, told=False) as late:
                hosts.at_once(lambda: one.knows(late.mac) == two.vtep, "it is known")
                assert web.pings(late.addresses[0])
            two.cli("host", "forget", dead.host.name)
            wait_until(lambda: states(one).keys() == {one.host.name, two.host.name}, what="it is forgotten")
            wait_until(lambda: one.knows(place.mac) == "", what="nobody sends there")
            heir.attach(one.netplug, net, "--ip", "10.90.1.50")
            assert other.pings("10.90.1.50")
            dead.mend()
            dead.netplug.start()
            wait_until(lambda: dead.host.name in states(one), what="it is back")
            # It finds that its address is another's, does not fight, and says so.
            wait_until(lambda: "address.lost" in dead.netplug.log.read_text(), what="it knows")
            assert other.pings("10.90.1.50")
            assert two.knows(heir.mac) == one.vtep
            place.detach(dead.netplug, net)
            place.attach(dead.netplug, net)
            assert web.pings(place.addresses[0])
            place.detach(dead.netplug, net)
            heir.detach(one.netplug, net)


@pytest.mark.parametrize("family", [4, 6])
def test_tunnels_end_at_a_secondary_address_when_told_so(family: int) -> None:
    """Hard case 13 (moby 53004): frames leave from the address to which the others send."""
    with cluster(1, family=family) as it:
        host, wire = it.prepare()
        second, length = ("198.51.2.77", "/24") if family == 4 else ("fd00:51:2::77", "/64 nodad")
        host.run(["sh", "-ec", f"ip addr add dev {wire.left_link} {second}{length}"])
        member = it.join(host, wire, "--vtep", second)
        member.vtep = second
        before = it.members[0]
        with it.network("blue") as net, it.station(before, net) as one, it.station(member, net) as two:
            assert one.pings(two.addresses[0])
            assert two.pings(one.addresses[0])


SEEN = (
    "ip link del {vxlan}",
    "ip link set {vxlan} down; ip link set {bridge} down; ip link set {bridge} up; nft delete table inet netplug-vxlan",
)
UNSEEN = (
    "ip neigh flush dev {bridge} nud permanent",
    "bridge fdb del {mac} dev {vxlan} self",
    "bridge fdb del {mac} dev {vxlan} master",
    "ip link set {bridge} address 02:00:00:00:00:99",
)


@pytest.mark.parametrize(("harm", "limit_s"), [(SEEN[0], 5), (SEEN[1], 5), ("; ".join(UNSEEN), TIMER_S)])
def test_what_others_break_the_daemon_mends(hosts: Cluster, harm: str, limit_s: float) -> None:
    """Hard case 14: nobody has to call it. Of links it is told; the rest is looked at by the clock."""
    one, two, _ = hosts.members
    with hosts.network("blue") as net, hosts.station(one, net) as here, hosts.station(two, net) as there:
        links = one.host.output("ls", "/sys/class/net").split()
        words = {
            "bridge": next(name for name in links if name.startswith("np-")),
            "vxlan": next(name for name in links if name.startswith("npv")),
            "mac": there.mac,
        }
        assert here.pings(there.addresses[0])
        one.host.run(["sh", "-ec", harm.format(**words)])
        wait_until(lambda: one.netplug.drift() == "", limit_s, "it is mended")
        assert here.pings(there.addresses[0])
        assert there.pings(here.addresses[0])


def test_docker_like_firewalls_leave_a_cluster_alone(hosts: Cluster) -> None:
    """Hard case 15."""
    one, two, _ = hosts.members
    switch, uplink = "/proc/sys/net/bridge/bridge-nf-call-iptables", one.wire.left_link
    bad = f"echo 1 >{switch}; iptables -P FORWARD DROP; iptables -t nat -A POSTROUTING -o {uplink} -j MASQUERADE"
    if not one.host.path(switch).exists():
        pytest.skip("needs the kernel module br_netfilter")
    was = one.host.output("cat", switch).strip()
    good = f"iptables -t nat -D POSTROUTING -o {uplink} -j MASQUERADE; iptables -P FORWARD ACCEPT; echo {was} >{switch}"
    with (
        hosts.network("blue", "--subnet", "10.90.1.0/24") as net,
        hosts.station(one, net) as here,
        hosts.station(two, net) as there,
    ):
        one.host.run(["sh", "-ec", bad])
        try:
            assert here.pings(there.addresses[0])
            assert there.pings(here.addresses[0])
        finally:
            one.host.run(["sh", "-ec", good])


@needs_firewalld
def test_beside_firewalld_the_command_that_is_said_lets_tunnels_in() -> None:
    with cluster(2) as it, it.network("blue") as net, it.station(it.members[0], net) as here:
        one, two = it.members
        with it.station(two, net) as there:
            Firewalld(one.host)
            assert not there.pings(here.addresses[0])
            (command,) = wait_until(
                lambda: re.findall(r"firewall-cmd --permanent .*--add-port=4789/udp.*", one.netplug.drift()),
                what="the word",
            )
            one.host.run(["sh", "-ec", command])
            # firewalld takes all rules of iptables away when it begins anew; they are back in a moment.
            wait_until(lambda: there.pings(here.addresses[0]) and here.pings(there.addresses[0]), what="pings")
            wait_until(lambda: not one.netplug.drift(), what="no drift")


def test_a_backup_that_is_restored_costs_no_packet_and_doubles_no_address(hosts: Cluster) -> None:
    """What was done since the backup was made stays as it runs, on each host, and is in the store again."""
    backup = hosts.router.dir / "backup"
    one, two, three = hosts.members
    before = [restorals(member) for member in hosts.members]
    with hosts.network("blue", "--subnet", "10.90.1.0/24") as blue, hosts.station(one, blue) as early:
        hosts.etcd.save(backup)
        with (
            hosts.network("red", "--subnet", "10.90.2.0/24") as red,
            hosts.station(two, blue) as there,
            hosts.station(three, blue) as third,
            hosts.station(one, red) as here,
            hosts.station(three, red) as far,
            ExitStack() as late,
        ):
            wait_until(lambda: marked(hosts), what="what was done is marked")
            pairs = ((early, there), (third, early), (here, far))
            with ExitStack() as running:
                streams = [running.enter_context(Stream(a, b, b.addresses[0])) for a, b in pairs]
                hosts.etcd.restore(backup)
                wait_until(lambda: all(map(restorals, hosts.members)), 20, "all notice")
                new = [late.enter_context(hosts.station(member, blue)) for member in hosts.members]
                assert all(early.pings(it.addresses[0]) for it in new)
                for member in hosts.members:
                    wait_until(lambda member=member: not member.differences(), 30, "no difference")  # type: ignore[misc]
            assert [(len(stream.lost), stream.sent > 100) for stream in streams] == [(0, True)] * 3
            held = [address for it in (early, there, third, *new) for address in it.addresses]
            assert len(held) == len(set(held)) == 6
    assert [restorals(member) for member in hosts.members] == [number + 1 for number in before]


def restorals(member: Member) -> int:
    """Return how often a host said that the store was given older data."""
    return member.netplug.log.read_text().count("cluster.data_restored")


def marked(hosts: Cluster) -> bool:
    """Whether what a backup of an earlier moment lacks would be noticed."""
    newest = hosts.etcd.newest("cluster/marks/")
    return newest > max(map(hosts.etcd.newest, ("cluster/endpoints/", "cluster/networks/", "ipam/")))


def test_a_member_that_tells_lies_takes_no_packet(hosts: Cluster) -> None:
    one, two, three = hosts.members
    with (
        hosts.network("blue", "--subnet", "10.90.1.0/24") as net,
        hosts.station(one, net) as here,
        hosts.station(two, net) as there,
    ):
        key = f"cluster/endpoints/{one.netplug.json('network', 'inspect', net)['id']}/bad/"
        lies = {
            "e1": {"mac": here.mac, "addresses": here.addresses},
            "e2": {"mac": "02:00:00:00:00:02", "addresses": here.addresses},
            "e3": {"mac": there.mac, "addresses": []},
            "e4": {"mac": "02:00:00:00:00:04", "addresses": ["10.90.1.99"]},
        }
        with Stream(here, there, there.addresses[0]) as stream, Stream(there, here, here.addresses[0]) as back:
            with told_by_a_bad_member(hosts, key, lies):
                for member in hosts.members:
                    wait_until(lambda member=member: len(refused_of(member, "bad")) == 4, what="all are refused")  # type: ignore[misc]
                assert two.knows(here.mac) == three.knows(here.mac) == one.vtep
                assert one.knows(there.mac) == three.knows(there.mac) == two.vtep
                assert one.knows("02:00:00:00:00:02") == two.knows("02:00:00:00:00:04") == ""
            for member in hosts.members:
                wait_until(lambda member=member: not member.differences(), what="it is over")  # type: ignore[misc]
            wait_until(lambda: stream.sent > 50, what="datagrams after it")
        assert (stream.lost, back.lost) == ([], [])


@contextmanager
def told_by_a_bad_member(hosts: Cluster, key: str, lies: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Have records of endpoints, below a key, in the store for the length of the block."""
    hosts.etcd.write("cluster/hosts/bad", {"name": "bad", "vtep": "198.51.100.66", "epoch": 1})
    try:
        for ident, lie in lies.items():
            hosts.etcd.write(key + ident, {**lie, "names": ["web"]})
        yield
    finally:
        hosts.etcd.delete(key)
        hosts.etcd.delete("cluster/hosts/bad")


def refused_of(member: Member, host: str) -> list[str]:
    """Return what is shown of the endpoints of a host that do not count."""
    return [text for text in member.differences() if f"on host {host}" in text]


def test_what_cannot_be_is_refused_and_nothing_is_left(hosts: Cluster) -> None:
    """Hard cases 11 and 24: a VNI that a stranger has, and encryption, which there is not."""
    one, two, _ = hosts.members
    assert "encrypt" in refused(one, "network", "create", "blue", "--cluster", "-o", "encrypt=true")[1]
    two.host.run(["sh", "-ec", "ip link add flannel.1 type vxlan id 7777 dstport 4789 local 198.51.2.1"])
    try:
        with hosts_without(hosts, two, "vni=7777") as net, hosts.station(one, net, told=False) as here:
            words = "option vni=7777: vxlan link 'flannel.1' of the host uses it on UDP port 4789"
            wait_until(lambda: words in refused(two, "attach", net, "--netns", "none")[1], 10, "it says why")
            assert here.addresses
    finally:
        two.host.run(["ip", "link", "del", "flannel.1"])


@contextmanager
def hosts_without(it: Cluster, without: Member, option: str) -> Iterator[str]:
    """A network on all hosts but one."""
    others = [member for member in it.members if member is not without]
    others[0].cli("network", "create", "odd", "--cluster", "-o", option)
    for member in others:
        wait_until(lambda member=member: member.has("odd"), what="it is there")  # type: ignore[misc]
    yield "odd"
    others[0].cli("network", "rm", "odd")
    for member in it.members:
        wait_until(lambda member=member: not member.has("odd"), what="it is gone")  # type: ignore[misc]
