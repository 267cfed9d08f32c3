"""A cloned host: its daemon is not admitted, and the original and its containers do not notice."""

from contextlib import ExitStack

from harness import namespace, wait_until
from harness.cluster import Cluster, needs_etcd, refused

pytestmark = needs_etcd

SOON_S = 20


def test_a_cloned_disk_harms_nobody_and_has_a_way_out() -> None:
    with ExitStack() as stack:
        it = Cluster(stack)
        one, other = it.add(), it.add()
        with it.network("blue") as net, it.station(one, net, "--name", "web") as web, it.station(other, net) as peer:
            addresses = one.cli("ipam", "ls")
            host, wire = it.prepare()
            host.run(["cp", "-a", str(one.netplug.state_dir), str(host.dir / "netplug")])
            clone = it.join(host, wire)
            it.members.remove(clone)
            wait_until(lambda: "is not admitted" in one.netplug.drift(), SOON_S, "it is said on the original")
            wait_until(lambda: "netplug host rebind" in clone.netplug.drift(), SOON_S, "it is said on the clone")
            for member in (one, other, clone):
                wait_until(lambda member=member: "is not admitted" in member.cli("host", "ls"), SOON_S, "it is listed")  # type: ignore[misc]
            with namespace(host) as place:
                code, text = refused(clone, "attach", net, "--netns", place.name)
                assert (code, "this host is not admitted to the cluster" in text) == (3, True)
            # Not while the original's daemon is being updated either, whose containers go on.
            one.netplug.stop()
            clone.netplug.restart()
            wait_until(lambda: "netplug host rebind" in clone.netplug.drift(), SOON_S, "it is said again")
            one.netplug.start()
            assert one.cli("ipam", "ls") == addresses
            wait_until(lambda: one.netplug.json("ipam", "audit") == [], SOON_S, "no findings")
            assert web.pings(peer.addresses[0])
            assert peer.pings(web.addresses[0])
            with it.station(other, net) as late:
                assert web.pings(late.addresses[0])
            # The way out: without that state it is a host of its own.
            clone.netplug.stop()
            host.run(["sh", "-ec", f"rm {clone.netplug.state_dir}/netplug.db*"])
            clone.netplug.start()
            it.members.append(clone)
            wait_until(lambda: clone.has(net), SOON_S, "it has the network")
            with it.station(clone, net) as third:
                assert third.pings(web.addresses[0])
                assert third.pings(peer.addresses[0])
            for member in it.members:
                wait_until(lambda member=member: not member.netplug.drift(), SOON_S, "no drift")  # type: ignore[misc]
