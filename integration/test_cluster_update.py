"""A network of two hosts is changed under traffic between its containers: a datagram every 10 ms, and a TCP stream."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from harness import Namespace, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd, refused
from harness.former import former_release, remains, runs
from harness.traffic import Stream, Talk

pytestmark = needs_etcd

UPDATES = {
    "ttl": ("ttl=60", "ttl="),
    "masquerade": ("masquerade=false", "masquerade="),
    "bum": ("bum=true", "bum="),
    "rate": ("rate=100mbit", "rate=50mbit", "rate="),
    "mtu": ("mtu=1300", "mtu=1400", "mtu="),
    "spoofchk": ("spoofchk=false", "spoofchk="),
}
"""Each is changed on one host, and back on the other."""
QUEUES = {"rate": {0, 2}}
"""Changes that put a first queue on links, or take the last: meanwhile the kernel drops (sch_generic.c, noop_qdisc)."""
SOON_S = 15
"""Less than any timer."""
DROPPED = 5
"""Datagrams that may be dropped then, of one every 10 ms."""
TRIES = 4
"""How long the kernel drops depends on how busy the machine is."""


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


@pytest.fixture
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts, of which the second runs the former release."""
    former = former_release(tmp_path_factory.mktemp("release"))
    with ExitStack() as stack:
        it = Cluster(stack)
        it.add()
        it.add(env=runs(former))
        yield it


def inspected(member: Member, net: str) -> dict[str, object]:
    found = member.netplug.json("network", "inspect", net)
    return {key: value for key, value in found.items() if key not in {"id", "front_end", "endpoints"}}


def links(member: Member) -> dict[str, dict[str, object]]:
    return {item["ifname"]: item for item in json.loads(member.host.output("ip", "-d", "-j", "link"))}


def tunnel(member: Member) -> dict[str, object]:
    (found,) = (item for name, item in links(member).items() if name.startswith("npv"))
    return found


@pytest.mark.parametrize("name", UPDATES)
def test_no_packet_is_lost_while_a_network_is_updated(two: Cluster, name: str) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        was = inspected(here, net)
        for _ in range(TRIES):
            began: list[int] = []
            with Stream(one, other, other.addresses[0]) as stream, Talk(one, other, other.addresses[0]):
                wait_until(lambda: stream.sent > 20, what="it flows")
                for number, change in enumerate(UPDATES[name]):
                    began.append(stream.sent)
                    two.update(two.members[number % 2], net, "-o", change)
                    assert inspected(here, net) == inspected(there, net)
                    sent = stream.sent
                    wait_until(lambda: stream.sent > sent + 20, what="it flows on")  # noqa: B023
            print(f"{name}: lost {len(stream.lost)} of {stream.sent}")
            lost = [[it for it in stream.lost if at <= it < end] for at, end in pairwise([0, *began, stream.sent])]
            assert [it for number, it in enumerate(lost, -1) if it and number not in QUEUES.get(name, ())] == []
            if most := all(len(it) <= DROPPED for it in lost):
                break
        assert most, lost
        assert inspected(here, net)["options"] == was["options"]
        assert not here.netplug.drift()
        assert not there.netplug.drift()


def test_an_mtu_is_changed_in_the_sandboxes_of_both_hosts(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        two.update(here, net, "-o", "mtu=1300")
        for place, member in ((one, here), (other, there)):
            assert "mtu 1300" in place.exec("ip", "link", "show", "eth0")
            assert tunnel(member)["mtu"] == 1300
        assert one.pings(other.addresses[0])


def test_containers_are_isolated_across_hosts_and_may_talk_again(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        two.update(here, net, "-o", "icc=false")
        assert not one.pings(other.addresses[0])
        assert not other.pings(one.addresses[0])
        two.update(there, net, "-o", "icc=")
        assert one.pings(other.addresses[0])
        with Stream(one, other, other.addresses[0]) as stream:
            two.update(there, net, "-o", "icc=false")
            two.update(there, net, "-o", "icc=true")
            sent = stream.sent
            wait_until(lambda: stream.sent > sent + 50, what="it flows on")
        lost = [number for number in stream.lost if number > sent]
        print(f"icc: lost {len(stream.lost)} of {stream.sent}, {len(lost)} after the command that allows it again")
        assert lost == []


def test_subnets_come_and_go_on_both_hosts(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        with Stream(one, other, other.addresses[0]) as stream:
            two.update(here, net, "--subnet-add", "10.91.1.0/24", "--subnet-add", "fd00:91::/64")
            with two.station(there, net, "--ip", "10.91.1.9", "--ip", "fd00:91::9") as late:
                assert one.pings("10.91.1.1")  # the gateway, on its own host
                with two.station(here, net, "--ip", "10.91.1.8", "--ip", "fd00:91::8") as later:
                    assert all(later.pings(address) for address in late.addresses)
                code, text = refused(here, "network", "update", net, "--subnet-rm", "10.91.1.0/24")
                assert code == 1
                assert "subnet 10.91.1.0/24 of network 'blue' has addresses: 1 on " + there.host.name in text
            two.update(there, net, "--subnet-rm", "10.91.1.0/24", "--subnet-rm", "fd00:91::/64")
            assert inspected(here, net) == inspected(there, net)
        assert stream.lost == []


def test_a_host_that_cannot_follow_is_named_and_follows_when_it_can(two: Cluster) -> None:
    here, there = two.members
    link = ["ip", "link", "set", there.wire.left_link, "mtu"]
    with two.network("blue", "-o", "mtu=1300") as net, ExitStack() as stack:
        one = stack.enter_context(two.station(here, net))
        other: Namespace = stack.enter_context(two.station(there, net))
        there.host.run([*link, "1400"])
        try:
            here.cli("network", "update", net, "-o", "mtu=1400", "-o", "ttl=9")
            behind = {host["name"]: host["behind"] for host in here.netplug.json("host", "ls")}
            assert behind[here.host.name] == {}
            assert behind[there.host.name][net].startswith("option mtu=1400: VXLAN over IPv4 adds 50 bytes")
            assert tunnel(there)["mtu"] == 1300
            assert one.pings(other.addresses[0])
        finally:
            there.host.run([*link, "1500"])
        wait_until(lambda: tunnel(there)["mtu"] == 1400, SOON_S, "it follows at once")
        wait_until(lambda: inspected(there, net) == inspected(here, net), SOON_S, "in all")


def test_a_daemon_that_was_down_follows_at_its_start(two: Cluster) -> None:
    here, there = two.members
    with two.network("blue") as net, two.station(here, net) as one, two.station(there, net) as other:
        with Stream(one, other, other.addresses[0]) as stream:
            there.netplug.kill()
            here.cli("network", "update", net, "-o", "mtu=1300", "--label", "team=net")
            there.netplug.start()
            wait_until(lambda: inspected(there, net) == inspected(here, net), 10, "it follows")
        assert stream.lost == []
        assert "mtu 1300" in other.exec("ip", "link", "show", "eth0")


def test_a_host_of_the_former_release_keeps_what_it_has_and_follows_once_it_is_updated(mixed: Cluster) -> None:
    here, there = mixed.members
    with mixed.network("blue") as net, mixed.station(here, net) as one, mixed.station(there, net) as other:
        with Stream(one, other, other.addresses[0]) as stream, Talk(other, one, one.addresses[0], 7201):
            here.cli("network", "update", net, "-o", "mtu=1300", "-o", "bum=true", "--subnet-add", "10.91.1.0/24")
            behind = {host["name"]: host["behind"] for host in here.netplug.json("host", "ls")}
            assert behind[there.host.name] == {net: "its netplug is older, and follows no updates"}
            assert there.differences() == []
            code, text = refused(here, "network", "update", net, "--subnet-rm", "10.91.1.0/24")
            assert (code, there.host.name in text) == (1, True), text
            there.netplug.kill()
            there.netplug.env = {}
            there.netplug.start()
            wait_until(lambda: inspected(there, net) == inspected(here, net), 10, "it follows")
            mixed.update(here, net, "--subnet-rm", "10.91.1.0/24")
        assert stream.lost == []


def test_a_host_that_is_updated_while_the_store_is_away_hears_its_members(mixed: Cluster) -> None:
    """Nobody tells it who they are: the tables of the former release do."""
    here, there = mixed.members
    with mixed.network("blue") as net, mixed.station(here, net) as one, mixed.station(there, net) as other:
        with Stream(one, other, other.addresses[0]) as stream:
            there.netplug.kill()
            mixed.etcd.kill()
            there.netplug.env = {}
            there.netplug.start()
            sent = stream.sent
            wait_until(lambda: stream.sent > sent + 200, what="it flows")
            mixed.etcd.start()
            wait_until(lambda: not there.differences(), 20, "no differences")
        assert remains(there.host) == []
        assert stream.lost == []
