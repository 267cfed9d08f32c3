"""What others do to a host under its containers, and how long until all is as before: traffic first, then every object.

A `Scene` has networks that were built before the daemon's last restart and after it, by `attach` and by CNI, with an
overlay to a second host. Its `ways` say who reaches whom, and who must not. An `Injection` is a command of a shell on
that host. Nothing here asks netplug whether it is well: packets tell, and what the kernel holds.
"""

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .cluster import Cluster, Member, cluster
from .cni import BIN_DIR, PYNET, Runtime, own_ipam
from .host import Host
from .netns import CLONE_NEWNET, _libc
from .quick import PORT, serving
from .scoped import Namespace, namespace
from .snapshot import Snapshot, difference, snapshot
from .wait import wait_until

ROUND_S = 0.04
"""An answer on one machine takes a millisecond."""
SETTLE_S = 20
OUTSIDE = 7000
BIG = 1300
"""Octets of a datagram that passes no link of a smaller MTU."""


@dataclass(frozen=True)
class Road:
    """From a namespace to an address. `wanted`: the source that the server sees; "" where nothing may pass."""

    place: Path
    address: str
    wanted: str
    port: int = PORT
    size: int = 1


class Prober:
    """Sends a datagram of a new flow along each road at once. Its thread moves from namespace to namespace."""

    def __init__(self, roads: Mapping[str, Road]) -> None:
        self.roads = roads
        self._fds = {place: os.open(place, os.O_RDONLY | os.O_CLOEXEC) for place in {it.place for it in roads.values()}}
        self._thread = ThreadPoolExecutor(1)

    def close(self) -> None:
        self._thread.shutdown()
        for fd in self._fds.values():
            os.close(fd)

    def wrong(self, *, closed: bool = True) -> set[str]:
        """Try all roads once; return those that are not as wanted. `closed`: also those where nothing may pass."""
        return self._thread.submit(self._round, closed=closed).result()

    def _round(self, *, closed: bool) -> set[str]:
        wrong, waiting = set[str](), dict[int, tuple[str, socket.socket]]()
        poll = select.poll()
        for name, road in self.roads.items():
            if road.wanted or closed:
                try:
                    sock = self._send(road)
                except OSError:
                    wrong |= {name} if road.wanted else set()
                    continue
                waiting[sock.fileno()] = name, sock
                poll.register(sock, select.POLLIN)
        until = time.monotonic() + ROUND_S
        while (left := until - time.monotonic()) > 0 and any(self.roads[name].wanted for name, _ in waiting.values()):
            for fd, _ in poll.poll(left * 1000):
                name, sock = waiting.pop(fd)
                poll.unregister(fd)
                if self._answer(sock) != self.roads[name].wanted:
                    wrong.add(name)
        for name, sock in waiting.values():
            if self._answer(sock) != self.roads[name].wanted:
                wrong.add(name)
        return wrong

    def _send(self, road: Road) -> socket.socket:
        if _libc.setns(self._fds[road.place], CLONE_NEWNET):
            raise OSError(road.place)
        family = socket.AF_INET6 if ":" in road.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect((road.address, road.port))
            sock.send(b"x" * road.size)
        except OSError:
            sock.close()
            raise
        return sock

    @staticmethod
    def _answer(sock: socket.socket) -> str:
        with sock:
            try:
                return sock.recv(2048).decode().removeprefix("::ffff:")
            except OSError:
                return ""


class Shell:
    """A shell that stays, on a host: a command starts there within a millisecond."""

    def __init__(self, host: Host) -> None:
        self._process = subprocess.Popen(
            host.inside(["sh"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=host.env,
        )

    def run(self, command: str) -> None:
        """Run it and wait for its end.

        Raises:
            AssertionError: it failed; holds what it printed.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"( set -e\n{command}\n) </dev/null\necho =done= $?\n")
        self._process.stdin.flush()
        said: list[str] = []
        while not (line := self._process.stdout.readline()).startswith("=done="):
            assert line, f"the shell ended: {said}"
            said.append(line)
        assert line.split()[1] == "0", f"{command}: {''.join(said)}"

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@dataclass(frozen=True)
class Target:
    """A network that is harmed: its links on the host, and addresses in it. `vni`: of an overlay, else 0."""

    name: str
    bridge: str
    port: str
    container: str
    tunnel: str = ""
    peer: str = ""
    peer_mac: str = ""
    vtep: str = ""

    def fill(self, command: str) -> str:
        return command.format(**{name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Injection:
    """What others do. `first`: what has to be so before, each time, and `after`: what ends that.

    `overlay`: to an overlay, not to a bridge network. `takes`: sections in which it takes what is of others.
    """

    command: str
    first: str = ""
    after: str = ""
    overlay: bool = False
    takes: frozenset[str] = frozenset()


_SAME_COMMENT = """
set -- $(nft -a list chain {0} {1} | sed -n 's/.*comment \\("[^"]*"\\) # handle \\([0-9]*\\)/\\2 \\1/p' | head -1)
n=$1; shift
nft "replace rule {0} {1} handle $n counter accept comment $*"
"""
_PRIORITY = """
( echo 'delete table {0}'; nft list table {0} | sed '/chain {1} /,/policy/s/priority [^;]*;/priority {2};/' ) | nft -f -
"""
_GATED = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
_UNGATED = "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT"

INJECTIONS: dict[str, Injection] = {
    "iptables -F": Injection("iptables -F; ip6tables -F", _GATED, _UNGATED),
    "rule first in the gate": Injection("iptables -I NETPLUG-FORWARD -j DROP", _GATED, _UNGATED),
    "nft flush ruleset": Injection("nft flush ruleset", _GATED, _UNGATED, takes=frozenset({"iptables", "ip6tables"})),
    "table of networks deleted": Injection("nft delete table inet netplug"),
    "table of guards deleted": Injection("nft delete table bridge netplug"),
    "rule replaced, same comment": Injection(_SAME_COMMENT.format("inet netplug", "ingress")),
    "rule first in our chain": Injection("nft insert rule inet netplug forward drop"),
    "priority of a base chain": Injection(_PRIORITY.format("inet netplug", "forward", "300")),
    "published ports deleted": Injection("nft flush map inet netplug published4_any"),
    "bridge deleted": Injection("ip link del {bridge}"),
    "bridge down": Injection("ip link set {bridge} down"),
    "bridge down and up": Injection("ip link set {bridge} down; ip link set {bridge} up"),
    "bridge renamed": Injection("ip link set {bridge} down; ip link set {bridge} name stray0; ip link set stray0 up"),
    "addresses of the bridge removed": Injection("ip addr flush dev {bridge}"),
    "MTU of the bridge": Injection("ip link set {bridge} mtu 1280"),
    "MTU of a veth": Injection("ip link set {port} mtu 1280"),
    "MAC of the bridge": Injection("ip link set {bridge} address 02:00:00:00:00:99"),
    "veth off its bridge": Injection("ip link set {port} nomaster"),
    "veth down": Injection("ip link set {port} down"),
    "forwarding off": Injection("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"),
    "route_localnet off": Injection("sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0"),
    "overlay: FDB entry deleted": Injection("bridge fdb del {peer_mac} dev {tunnel} dst {vtep} self", overlay=True),
    "overlay: FDB flushed": Injection("bridge fdb flush dev {tunnel} self", overlay=True),
    "overlay: neighbour deleted": Injection("ip neigh del {peer} dev {bridge}", overlay=True),
    "overlay: neighbours flushed": Injection("ip neigh flush dev {bridge} nud permanent", overlay=True),
    "overlay: tunnel deleted": Injection("ip link del {tunnel}", overlay=True),
    "overlay: tunnel down": Injection("ip link set {tunnel} down", overlay=True),
    "overlay: tunnel off its bridge": Injection("ip link set {tunnel} nomaster", overlay=True),
    "overlay: bridge deleted": Injection("ip link del {bridge}", overlay=True),
    "overlay: bridge down and up": Injection("ip link set {bridge} down; ip link set {bridge} up", overlay=True),
}


@dataclass
class Scene:
    """Networks under harm. `targets`: of bridge networks, and of overlays; the first was built before a restart."""

    member: Member
    far: Member
    roads: dict[str, Road]
    bridged: list[Target]
    overlaid: list[Target]
    prober: Prober = field(init=False)
    shell: Shell = field(init=False)

    def __post_init__(self) -> None:
        self.prober, self.shell = Prober(self.roads), Shell(self.member.host)

    def close(self) -> None:
        self.prober.close()
        self.shell.close()

    def all_well(self, timeout_s: float = SETTLE_S) -> Snapshot:
        """Wait until all roads are as wanted and netplug sees no difference, and return what the host has then."""
        wait_until(lambda: not self.prober.wrong(), timeout_s, "all roads as wanted")
        wait_until(lambda: not self.member.differences(), timeout_s, "no differences")
        return state(self.member.host)

    def inject(self, it: Injection, turn: int, timeout_s: float = SETTLE_S) -> "Healed":
        """Do it to the network whose turn it is, and wait until traffic passes again, and all objects are as before.

        Raises:
            NotHealedError: within `timeout_s` it was not.
        """
        targets = self.overlaid if it.overlay else self.bridged
        target = targets[turn % len(targets)]
        rest = self.all_well()
        if it.first:
            self.shell.run(target.fill(it.first))
        before = _without(self.all_well() if it.first else rest, it.takes)
        self.shell.run(target.fill(it.command))
        started, broken, wrong, last = time.monotonic(), set[str](), set[str](), ""
        while now := self.prober.wrong():
            broken, wrong = broken | (wrong & now), now
            self._give_up(started, timeout_s, f"roads are wrong: {now}; {self.member.differences()}")
        traffic_s = time.monotonic() - started if wrong else 0.0
        while last := difference(before, _without(state(self.member.host), it.takes)):
            self._give_up(started, timeout_s, f"{last}; {self.member.differences()}")
        objects_s = time.monotonic() - started
        if it.after:
            self.shell.run(it.after)
            wait_until(lambda: not difference(rest, state(self.member.host)), timeout_s, "the rest state")
        wait_until(lambda: not self.prober.wrong(), timeout_s, "traffic goes on")
        return Healed(target.name, traffic_s, objects_s, frozenset(broken))

    @staticmethod
    def _give_up(started: float, timeout_s: float, why: str) -> None:
        if time.monotonic() - started > timeout_s:
            raise NotHealedError(f"not within {timeout_s:g} s: {why}")


class NotHealedError(AssertionError):
    """What others did is still there."""


@dataclass(frozen=True)
class Healed:
    """How long it took until traffic passed (0 if it never stopped), until all objects were as before; what broke."""

    network: str
    traffic_s: float
    objects_s: float
    broken: frozenset[str]


def state(host: Host) -> Snapshot:
    """Return what a host's network consists of; without sockets, which probes open."""
    return {section: lines for section, lines in snapshot(host).items() if section != "sockets"}


def _without(taken: Snapshot, sections: frozenset[str]) -> Snapshot:
    return {section: lines for section, lines in taken.items() if section not in sections}


def _spots(stack: ExitStack, *places: Namespace) -> None:
    for it in places:
        stack.enter_context(serving(it))


def _bridge_to(host: Host, address: str) -> str:
    return host.output("sh", "-c", f"ip route get {address} | grep -o 'dev [^ ]*' | cut -d' ' -f2")


def _port_of(host: Host, bridge: str) -> str:
    return host.output("sh", "-c", f"ls /sys/class/net/{bridge}/brif | grep ^nph | head -1")


class Builder:
    """Builds a scene, network after network."""

    def __init__(self, stack: ExitStack, it: Cluster) -> None:
        self._stack = stack
        self._cluster = it
        self.member, self.far = it.members
        self.roads: dict[str, Road] = {}
        self.bridged: list[Target] = []
        self.overlaid: list[Target] = []
        stack.enter_context(serving(it.router, OUTSIDE))

    def attached(self, name: str, port: int) -> None:
        """Add a bridge network with two namespaces, by `attach`."""
        self.member.cli("network", "create", name, "--ipv6")
        one, two = (self._stack.enter_context(namespace(self.member.host)) for _ in range(2))
        one.attach(self.member.netplug, name, "--publish", f"{port}:{PORT}/udp", "--name", f"{name}-one")
        two.attach(self.member.netplug, name)
        self._network(name, port, one, two)

    def by_cni(self, port: int) -> None:
        """Add a bridge network with two namespaces, by CNI's ADD."""
        self.member.cli("cni", "install", "--bin-dir", BIN_DIR)
        it = Runtime(self.member.host, PYNET | own_ipam([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]))
        places = [self._stack.enter_context(namespace(self.member.host)) for _ in range(2)]
        mapping = {"portMappings": [{"hostPort": port, "containerPort": PORT, "protocol": "udp"}]}
        for number, place in enumerate(places):
            place.addresses = it.add(place, runtime={} if number else mapping).addresses
        self._network(it.name, port, *places)

    def _network(self, name: str, port: int, one: Namespace, two: Namespace) -> None:
        host, wire, router = self.member.host, self.member.wire, self._cluster.router
        _spots(self._stack, one, two)
        v4, v6 = one.addresses
        self.roads |= {
            f"{name}: neighbour": Road(two.netns, v4, two.addresses[0], size=BIG),
            f"{name}: neighbour, IPv6": Road(two.netns, v6, two.addresses[1]),
            f"{name}: outside": Road(one.netns, wire.right, wire.left, OUTSIDE, BIG),
            f"{name}: outside, IPv6": Road(two.netns, wire.right6, wire.left6, OUTSIDE),
            f"{name}: published": Road(router.netns, wire.left, wire.right, port, BIG),
            f"{name}: published, IPv6": Road(router.netns, wire.left6, wire.right6, port),
            f"{name}: published on loopback": Road(host.netns, "127.0.0.1", _gateway(one), port),
            f"{name}: hairpin": Road(one.netns, wire.left, _gateway(one), port),
        }
        for other in self.bridged:
            self.roads[f"{other.name} to {name}"] = Road(self._first, v4, "")
        bridge = _bridge_to(host, v4)
        self._first = one.netns
        self.bridged.append(Target(name, bridge, _port_of(host, bridge), v4))

    def overlay(self, name: str) -> None:
        """Add an overlay with a namespace on each host."""
        self.member.cli("network", "create", name, "--cluster", "--ipv6")
        wait_until(lambda: self.far.has(name), what=f"{name} on {self.far.host.name}")
        here, there = (self._stack.enter_context(namespace(it.host)) for it in (self.member, self.far))
        here.attach(self.member.netplug, name)
        there.attach(self.far.netplug, name)
        _spots(self._stack, here, there)
        self.roads |= {
            f"{name}: to the other host": Road(here.netns, there.addresses[0], here.addresses[0], size=BIG),
            f"{name}: from the other host": Road(there.netns, here.addresses[1], there.addresses[1]),
            f"{name}: outside": Road(here.netns, self.member.wire.right, self.member.wire.left, OUTSIDE),
        }
        host = self.member.host
        bridge = _bridge_to(host, here.addresses[0])
        tunnel = host.output("sh", "-c", f"ls /sys/class/net/{bridge}/brif | grep ^npv")
        port = _port_of(host, bridge)
        self.overlaid.append(
            Target(name, bridge, port, here.addresses[0], tunnel, there.addresses[0], there.mac, self.far.vtep)
        )


def _gateway(place: Namespace) -> str:
    """Return the address with which the host itself comes to a container: that of its bridge."""
    return place.exec("sh", "-c", "ip -4 route show default | cut -d' ' -f3")


@contextmanager
def healing_scene() -> Iterator[Scene]:
    """Two hosts of a cluster, with networks built before and after a restart of the first one's daemon."""
    with ExitStack() as stack:
        it = Builder(stack, stack.enter_context(cluster(2)))
        it.attached("old", 8080)
        it.overlay("oldmesh")
        it.member.netplug.restart()
        it.by_cni(8081)
        it.overlay("newmesh")
        scene = Scene(it.member, it.far, it.roads, it.bridged, it.overlaid)
        stack.callback(scene.close)
        yield scene
