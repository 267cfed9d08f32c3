"""A cluster in which hosts have this release and the one before it, while it is upgraded or rolled back."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from harness import Answer, Namespace, Stream, resolve, wait_until
from harness.cluster import Cluster, Member, needs_etcd
from harness.former import previous_release, runs, turn
from harness.traffic import Talk

from netplug import __version__
from netplug.store.schema import OLDEST, VERSION

pytestmark = needs_etcd
SUBNET, GATEWAY = "10.90.1.0/24", "10.90.1.1"


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the previous release."""
    return previous_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def skewed(previous: Path) -> Iterator[Cluster]:
    """A host of the previous release, and one of this release."""
    with ExitStack() as stack:
        it = Cluster(stack)
        it.add(env=runs(previous))
        it.add()
        yield it


def says(tree: Path) -> str:
    """Return the version that hosts of a source tree say to others; 0.1.0 says none."""
    if "release" not in (tree / "netplug/cluster/records.py").read_text():
        return ""
    return (tree / "netplug/__init__.py").read_text().split('"')[-2]


def versions(member: Member) -> dict[str, str]:
    """Return the version of each host as one of this release knows it."""
    return {it["name"]: it["version"] for it in member.netplug.json("host", "ls")}


def reach(one: Namespace, other: Namespace, names: tuple[str, str]) -> None:
    """Check that two namespaces reach each other, by address and by name."""
    for here, there, name in ((one, other, names[1]), (other, one, names[0])):
        here.exec("busybox", "ping", "-c", "1", "-W", "1", there.addresses[0])
        assert resolve(here, GATEWAY, name) == Answer("NOERROR", tuple(there.addresses))


@pytest.mark.parametrize("first", ["previous", "this"])
def test_network_of_either_release_is_used_on_hosts_of_both(skewed: Cluster, previous: Path, first: str) -> None:
    old, new = skewed.members
    assert versions(new) == {old.host.name: says(previous), new.host.name: __version__}
    maker, other = (old, new) if first == "previous" else (new, old)
    maker.cli("network", "create", "blue", "--cluster", "--subnet", SUBNET, "--label", "by=maker")
    wait_until(partial(other.has, "blue"), what="the network on the other host")
    with skewed.station(old, "blue", "--name", "one") as one:
        with skewed.station(new, "blue", "--name", "two") as two:
            reach(one, two, ("one", "two"))
            for member in (old, new):
                assert sorted(it["name"] for it in member.netplug.json("ps")) == ["one", "two"]
            other.cli("network", "update", "blue", "-o", "ttl=9", "--label", "by=other")
            for member in (old, new):
                found = member.netplug.client.get("networks", "blue")
                assert (found["options"]["ttl"], found["labels"]) == ("9", {"by": "other"})
            skewed.settled()
        wait_until(lambda: not old.knows(two.mac), what="the end of an endpoint, as the previous release learns it")
        wait_until(lambda: resolve(one, GATEWAY, "two").data == (), what="the end of its name")
        # Its address may go to the other host at once.
        with skewed.station(old, "blue", "--name", "moved", "--ip", two.addresses[0]) as moved:
            assert one.pings(moved.addresses[0])
        with skewed.station(new, "blue", "--name", "three", "--ip", two.addresses[0]) as three:
            reach(one, three, ("one", "three"))
    skewed.settled()
    other.cli("network", "rm", "blue")
    wait_until(lambda: not maker.has("blue"), what="the end of the network")
    assert skewed.etcd.keys("cluster/networks/") == []


def test_cluster_is_upgraded_and_rolled_back_host_by_host_while_traffic_flows(previous: Path) -> None:
    """Nothing is quarantined: neither release writes what the other one cannot read, unless it is asked to."""
    with ExitStack() as stack:
        it = Cluster(stack)
        one, two = (it.add(env=runs(previous)) for _ in range(2))
        with (
            it.network("blue", "--subnet", SUBNET) as net,
            it.station(one, net, "--name", "here") as here,
            it.station(two, net, "--name", "there") as there,
        ):
            with Stream(here, there, there.addresses[0]) as stream, Talk(there, here, here.addresses[0], 7201):
                for member, tree in ((two, None), (one, None), (two, previous), (two, None)):
                    turn(member.netplug, tree)
                    it.settled()
                    assert [host.has(net) for host in it.members] == [True, True]
                    reach(here, there, ("here", "there"))
                    with it.station(member, net, "--name", "late") as late:
                        reach(there if member is one else here, late, ("there" if member is one else "here", "late"))
                    if tree:
                        assert versions(one) == {one.host.name: __version__, two.host.name: says(previous)}
            assert stream.lost == []
            assert stream.sent > 100
            assert set(versions(one).values()) == {__version__}
        assert it.etcd.read("cluster/schema") == {"version": VERSION, "oldest": OLDEST, "release": __version__}
