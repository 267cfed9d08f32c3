"""What others do to a host under its containers, and how long until all is as before: traffic first, then every object.

A `Scene` has networks that were built before the daemon's last restart and after it, by `attach` and by CNI, with an
overlay to a second host. Its `ways` say who reaches whom, and who must not. An `Injection` is a command of a shell on
that host. Nothing here asks netplug whether it is well: packets tell, and what the kernel holds.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from .cluster import Member, cluster
from .cni import BIN_DIR, PYNET, Runtime, own_ipam
from .environment import ENVIRONMENTS
from .host import Host
from .injections import Injection, Target
from .netplugd import Netplug
from .quick import PORT, drift, serving
from .roads import Prober, Road
from .scoped import Namespace, namespace
from .snapshot import Snapshot, difference, snapshot
from .wait import wait_until
from .wire import Wire, connect

SETTLE_S = 60
"""More than the interval of comparisons, by which rules of iptables-legacy are found."""
OUTSIDE = 7000
LIMIT = 10**9
"""Of containers in networks of one host, in bit/s; far more than they send."""
BIG = 1300
"""Octets of a datagram that passes no link of a smaller MTU."""


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


@dataclass
class Scene:
    """Networks under harm. `targets`: of bridge networks, and of overlays; the first was built before a restart."""

    member: "Member | Alone"
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
        """Wait until all roads are as wanted and netplug sees no difference, and return what the host has then.

        Raises:
            NotHealedError: within `timeout_s` it was not so; says what is wrong.
        """
        started = time.monotonic()
        while wrong := self.prober.wrong():
            self._give_up(started, timeout_s, f"roads are wrong: {wrong}; {self.member.differences()}")
        while found := self.member.differences():
            self._give_up(started, timeout_s, f"netplug sees differences: {found}")
        return state(self.member.host)

    def prepare(self, it: Injection, timeout_s: float = SETTLE_S) -> Injection:
        """Bring about what has to be so before an injection, for good; return the injection without it."""
        if it.first:
            self.shell.run(it.first)
        self.all_well(timeout_s)
        return replace(it, first="", after="")

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

    def __init__(self, stack: ExitStack, member: "Member | Alone", router: Host) -> None:
        self._stack = stack
        self._router = router
        self.member = member
        self.roads: dict[str, Road] = {}
        self.bridged: list[Target] = []
        self.overlaid: list[Target] = []
        stack.enter_context(serving(router, OUTSIDE))

    def attached(self, name: str, port: int) -> None:
        """Add a bridge network with two namespaces, by `attach`."""
        self.member.cli("network", "create", name, "--ipv6", "-o", f"rate={LIMIT // 10**9}gbit")
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
        limits = {"ingressRate": LIMIT, "ingressBurst": LIMIT // 100, "egressRate": LIMIT, "egressBurst": LIMIT // 100}
        for number, place in enumerate(places):
            runtime = {"bandwidth": limits} | ({} if number else mapping)
            place.addresses = it.add(place, runtime=runtime).addresses
        self._network(it.name, port, *places)

    def _network(self, name: str, port: int, one: Namespace, two: Namespace) -> None:
        host, wire, router = self.member.host, self.member.wire, self._router
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

    def overlay(self, name: str, far: Member) -> None:
        """Add an overlay with a namespace on each host."""
        self.member.cli("network", "create", name, "--cluster", "--ipv6")
        wait_until(lambda: far.has(name), what=f"{name} on {far.host.name}")
        here, there = (self._stack.enter_context(namespace(it.host)) for it in (self.member, far))
        here.attach(self.member.netplug, name)
        there.attach(far.netplug, name)
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
            Target(name, bridge, port, here.addresses[0], tunnel, there.addresses[0], there.mac, far.vtep)
        )

    def scene(self) -> Scene:
        """Return the scene as it has been built."""
        it = Scene(self.member, self.roads, self.bridged, self.overlaid)
        self._stack.callback(it.close)
        return it


def _gateway(place: Namespace) -> str:
    """Return the address with which the host itself comes to a container: that of its bridge."""
    return place.exec("sh", "-c", "ip -4 route show default | cut -d' ' -f3")


@contextmanager
def healing_scene() -> Iterator[Scene]:
    """Two hosts of a cluster, with networks built before and after a restart of the first one's daemon."""
    with ExitStack() as stack:
        hosts = stack.enter_context(cluster(2))
        member, far = hosts.members
        it = Builder(stack, member, hosts.router)
        it.attached("old", 8080)
        it.overlay("oldmesh", far)
        member.netplug.restart()
        it.by_cni(8081)
        it.overlay("newmesh", far)
        yield it.scene()


@dataclass
class Alone:
    """A host without a cluster, whose `wire` leads to another one."""

    host: Host
    wire: Wire
    netplug: Netplug

    def cli(self, *args: str) -> str:
        return self.netplug.cli(*args)

    def differences(self) -> list[str]:
        return drift(self.netplug)


@contextmanager
def guarded_scene(name: str) -> Iterator[Scene]:
    """A host with a firewall of that name, and networks built before and after a restart of the daemon."""
    env = next(it for it in ENVIRONMENTS if it.name == name)
    with ExitStack() as stack:
        host, router = (stack.enter_context(Host(it)) for it in ("guarded", "far"))
        wire = connect(host, router)
        env.prepare(host)
        it = Builder(stack, Alone(host, wire, Netplug(host, "--docker-host", "none")), router)
        it.attached("old", 8080)
        it.member.netplug.restart()
        it.by_cni(8081)
        yield it.scene()
