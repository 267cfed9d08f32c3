"""CNI without a daemon on a network that hosts share: its addresses are claimed as all others are, or none is given."""

import json
from collections.abc import Iterator

import pytest
from harness import BIN_DIR, PluginError, Runtime, namespace, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd

pytestmark = needs_etcd

TRY_AGAIN = 11


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster(2) as it:
        yield it


def runtime(it: Cluster, member: Member) -> Runtime:
    """The runtime of a member, told of the store as by netplug.toml."""
    member.cli("cni", "install", "--bin-dir", BIN_DIR)
    listed = json.loads(member.cli("cni", "config", "blue"))
    env = {"NETPLUG_STATE_DIR": str(member.netplug.state_dir), "NETPLUG_STORE": it.etcd.url}
    return Runtime(member.host, *listed["plugins"], name="blue", version=listed["cniVersion"], env=env)


def test_no_address_is_given_twice(hosts: Cluster) -> None:
    one, two = hosts.members
    with hosts.network("blue", "--subnet", "10.91.4.0/29"):
        cni = runtime(hosts, one)
        with hosts.station(two, "blue", "--ip", "10.91.4.2") as there, namespace(two.host) as late:
            one.netplug.stop()
            with namespace(one.host) as first, namespace(one.host) as second, namespace(one.host) as third:
                ends = [cni.add(place) for place in (first, second, third)]
                ours = {end.ip for end in ends}
                assert len(ours) == 3
                assert not ours & {*there.addresses, "10.91.4.1"}
                # The other host has heard of them, and gives none of them.
                assert first.pings(there.addresses[0])
                late.attach(two.netplug, "blue")
                assert not ours & set(late.addresses)
                with namespace(one.host) as none, pytest.raises(PluginError, match="no free address"):
                    cni.add(none)
                for end in ends[1:]:
                    cni.delete(end)
                one.netplug.start()
                wait_until(lambda: there.pings(ends[0].ip), what="the daemon goes on with what was made meanwhile")
                cni.delete(ends[0])
            late.detach(two.netplug, "blue")


def test_who_cannot_claim_gets_no_address(hosts: Cluster) -> None:
    """Where a daemon was told of the store by flags, nobody else knows it; and it may be away."""
    one, _ = hosts.members
    with hosts.network("blue", "--subnet", "10.91.5.0/29"), namespace(one.host) as place, namespace(one.host) as other:
        kept = (cni := runtime(hosts, one)).add(place)
        one.netplug.stop()
        cni.env["NETPLUG_STORE"] = "sqlite"
        with pytest.raises(PluginError, match="no store is named") as caught:
            cni.add(other)
        cni.env["NETPLUG_STORE"] = hosts.etcd.url
        assert caught.value.code == TRY_AGAIN
        said = hosts.etcd.read("cluster/schema")
        hosts.etcd.write("cluster/schema", {"version": 99, "oldest": 99, "release": "9.0.0"})
        with pytest.raises(PluginError, match=r"releases before schema 99 cannot use; .* install netplug 9\.0\.0"):
            cni.add(other)
        hosts.etcd.write("cluster/schema", said)
        hosts.etcd.kill()
        with pytest.raises(PluginError, match="cannot be reached") as caught:
            cni.add(other)
        assert caught.value.code == TRY_AGAIN
        cni.delete(kept)  # what a runtime deletes is deleted
        hosts.etcd.start()
        one.netplug.start()
        wait_until(lambda: one.netplug.json("ipam", "audit") == [], what="the claim is given back")
