"""A cluster's etcd that dies, hangs, is full, or slow, and hosts that are cut off from it.

Meanwhile each host's own networks work at their usual speed, no packet of the shared ones is lost, and their changes
are refused in words, at once. Afterwards the hosts agree again by themselves, and no address is given twice. The times
are in `docs/reliability.md`; `pytest -s` prints them.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import pytest
from harness import Stream, namespace, wait_until
from harness.cluster import CLIENT_PORT, Cluster, Member, cluster, needs_etcd, refused

pytestmark = needs_etcd

DEAD_S = 25
"""Until the lease of a host that is cut off has ended."""
HEAL_S = 40
REFUSED_S = 8
"""The first refusal comes after 6 s; CI is slow."""
LATER_S = 4
OWN = 5
"""Attachments to a network of its own that are timed, before and during a fault."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster(2) as it:
        for member in it.members:
            member.cli("network", "create", "own", "--subnet", "10.88.0.0/24")
        yield it


@contextmanager
def dead(hosts: Cluster) -> Iterator[str]:
    hosts.etcd.kill()
    try:
        yield "does not answer"
    finally:
        hosts.etcd.start()


@contextmanager
def hung(hosts: Cluster) -> Iterator[str]:
    hosts.etcd.hang()
    try:
        yield "does not answer"
    finally:
        hosts.etcd.go_on()


@contextmanager
def full(hosts: Cluster) -> Iterator[str]:
    """Fill its quota; then do what etcd's manual says."""
    etcd = hosts.etcd
    etcd.kill()
    etcd.flags = ("--quota-backend-bytes", str(8 << 20))
    etcd.start()
    filler = "x" * (1 << 20)
    for number in range(20):
        command = ["etcdctl", f"--endpoints=127.0.0.1:{CLIENT_PORT}", "put", f"/others/{number}"]
        if etcd.host.run(command, check=False, stdin=filler, env={"ETCDCTL_API": "3"}).returncode:
            break
    else:
        raise AssertionError("etcd takes it all")
    try:
        yield "its database is full"
    finally:
        etcd.flags = ()
        etcd.ctl("del", "--prefix", "/others/")
        etcd.ctl("compact", str(etcd.newest("")))
        etcd.ctl("defrag")
        etcd.ctl("alarm", "disarm")
        etcd.kill()
        etcd.start()


def attach_s(member: Member) -> float:
    """Time an attachment to a network of this host alone, and that its names and addresses work."""
    with namespace(member.host) as place:
        began = time.monotonic()
        place.attach(member.netplug, "own", "--name", "mine")
        took_s = time.monotonic() - began
        asked = place.exec("busybox", "nslookup", "-type=a", "mine.own.netplug.internal", "10.88.0.1")
        assert place.addresses[0] in asked
        place.detach(member.netplug, "own")
    return took_s


def refusal(member: Member, within_s: float) -> str:
    """Have an attachment to the shared network refused, as the store cannot be used."""
    with namespace(member.host) as place:
        began = time.monotonic()
        refused(member, "attach", "nosuch", "--netns", place.name)
        command_s = time.monotonic() - began
        began += command_s
        code, said = refused(member, "attach", "blue", "--netns", place.name)
        assert time.monotonic() - began < within_s + command_s, said
        assert code == 3
        assert len(said.splitlines()) == 1
        assert place.exec("ip", "-o", "link").count("\n") == 0
        return said


@pytest.mark.parametrize("fault", [dead, hung, full])
def test_own_networks_never_notice_shared_ones_refuse_and_heal(
    hosts: Cluster, fault: Callable[[Cluster], Iterator[str]]
) -> None:
    one, two = hosts.members
    with (
        hosts.network("blue", "--subnet", "10.90.1.0/24") as net,
        hosts.station(one, net) as here,
        hosts.station(two, net) as there,
        namespace(two.host) as leaves,
        namespace(one.host) as comes,
        namespace(two.host) as follows,
    ):
        leaves.attach(two.netplug, net)
        usual_s = median(attach_s(one) for _ in range(OWN))
        with Stream(here, there, there.addresses[0]) as stream:
            with fault(hosts) as words:  # type: ignore[attr-defined]
                refusal(one, REFUSED_S)
                wait_until(lambda: words in refusal(one, REFUSED_S), REFUSED_S, "it says why")
                assert hosts.etcd.url in refusal(one, LATER_S), "and where"
                own_s = median(attach_s(one) for _ in range(OWN))
                began = time.monotonic()
                leaves.detach(two.netplug, net)
                detached_s = time.monotonic() - began
                wait_until(lambda: words in f"{one.differences()} {one.cli('events')}", HEAL_S, "it is shown")
            began = time.monotonic()
            wait_until(lambda: comes.attaches(one.netplug, net), HEAL_S, "a change is taken")
            taken_s = time.monotonic() - began
            wait_until(lambda: not one.knows(leaves.mac), HEAL_S, "the other host hears what was done meanwhile")
            hosts.settled()
            settled_s = time.monotonic() - began
            follows.attach(two.netplug, net)
        assert (stream.lost, stream.sent > 100) == ([], True)
        held = [it.addresses[0] for it in (here, there, comes, follows)]
        assert len(set(held)) == len(held)
        assert detached_s < REFUSED_S
        assert own_s < 3 * usual_s + 0.5
        comes.detach(one.netplug, net)
        follows.detach(two.netplug, net)
        print(
            f"{fault.__name__}: own attach {own_s / usual_s:.2f} of usual; change taken after {taken_s:.1f} s,"
            f" no difference after {settled_s:.1f} s"
        )


PROXY = """
import socket, sys, threading, time
port, to, delay_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def pump(source, sink, wait_s):
    try:
        while data := source.recv(1 << 16):
            time.sleep(wait_s)
            sink.sendall(data)
    except OSError:
        pass
    for it in (source, sink):
        try:
            it.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
server = socket.create_server(("0.0.0.0", port), backlog=64)
while True:
    client, _ = server.accept()
    etcd = socket.create_connection(("127.0.0.1", to))
    threading.Thread(target=pump, args=(client, etcd, 0), daemon=True).start()
    threading.Thread(target=pump, args=(etcd, client, delay_s), daemon=True).start()
"""
SLOW_PORT, SLOW_S = 2399, 0.3
"""All answers of etcd take so much longer there; a change of a shared network asks several times."""


def test_slow_answers_are_waited_for_and_slow_nothing_else() -> None:
    with cluster(1) as it:
        host, wire = it.prepare()
        it.router.popen([sys.executable, "-c", PROXY, str(SLOW_PORT), str(CLIENT_PORT), str(SLOW_S)], log="proxy.log")
        slow = it.join(host, wire, "--store", f"etcd://{wire.right}:{SLOW_PORT}")
        usual = it.members[0]
        for member in it.members:
            member.cli("network", "create", "own", "--subnet", "10.88.0.0/24")
        with it.network("blue", "--subnet", "10.90.1.0/24") as net, it.station(usual, net, told=False) as there:
            it.known(there, usual)
            began = time.monotonic()
            with it.station(slow, net, told=False) as here, Stream(here, there, there.addresses[0]) as stream:
                shared_s = time.monotonic() - began
                times = [(attach_s(slow), attach_s(usual)) for _ in range(OWN)]
                it.known(here, slow)
            it.settled()
        own_s, usual_s = (median(column) for column in zip(*times, strict=True))
        assert (stream.lost, stream.sent > 100) == ([], True)
        assert shared_s > SLOW_S, "the proxy is asked"
        assert own_s < 2 * usual_s + 0.2
        print(f"slow: own attach {own_s / usual_s:.2f} of one beside etcd; shared attach {shared_s:.1f} s")


def states(member: Member) -> dict[str, bool]:
    return {host["name"]: host["alive"] for host in member.netplug.json("host", "ls")}


@pytest.mark.timeout(240)
def test_a_host_whose_lease_ends_loses_nothing_and_nobody_gets_what_it_has() -> None:
    """One is cut off from etcd alone, as with a minority, and one has no daemon, both for longer than the lease."""
    with cluster(3) as it:
        cut, stopped, other = it.members
        cut.cli("network", "create", "own", "--subnet", "10.88.0.0/24")
        with (
            it.network("blue", "--subnet", "10.90.1.0/24") as net,
            it.station(cut, net) as a,
            it.station(stopped, net) as b,
            it.station(other, net) as c,
            namespace(other.host) as late,
            Stream(a, c, c.addresses[0]) as first,
            Stream(b, a, a.addresses[0]) as second,
        ):
            rule = f"INPUT -s {cut.wire.left} -p tcp --dport {CLIENT_PORT} -j DROP"
            it.router.run(["iptables", "-I", *rule.split()])
            stopped.netplug.stop()
            wait_until(lambda: not any(states(other)[it.host.name] for it in (cut, stopped)), DEAD_S, "leases end")
            refusal(cut, REFUSED_S)
            refusal(cut, LATER_S)
            attach_s(cut)
            # The rest goes on, with addresses of its own.
            late.attach(other.netplug, net)
            again = ("--netns", late.name, "--ifname", "eth9", "--ip", a.addresses[0])
            assert "leased on another host" in refused(other, "attach", net, *again)[1]
            for place, owner in ((a, cut), (b, stopped)):
                assert other.knows(place.mac) == owner.vtep
            it.router.run(["iptables", "-D", *rule.split()])
            began = time.monotonic()
            stopped.netplug.start()
            wait_until(lambda: all(states(other).values()), HEAL_S, "both are back")
            back_s = time.monotonic() - began
            with namespace(cut.host) as new:
                wait_until(lambda: new.attaches(cut.netplug, net), HEAL_S, "a change is taken")
                taken_s = time.monotonic() - began
                wait_until(lambda: cut.knows(late.mac) == other.vtep, HEAL_S, "what was done meanwhile is known")
                it.settled()
                settled_s = time.monotonic() - began
                held = [one.addresses[0] for one in (a, b, c, late, new)]
                assert len(set(held)) == len(held)
                new.detach(cut.netplug, net)
            late.detach(other.netplug, net)
        assert (first.lost, second.lost) == ([], [])
        cut.cli("network", "rm", "own")
        print(f"cut off: back after {back_s:.1f} s, change taken after {taken_s:.1f} s, agreed after {settled_s:.1f} s")
