"""A representative dozen of tests beside each firewall that a host may have, with packets.

iptables of either flavour and both at once, no iptables at all, firewalld, ufw, and Docker's own rules in each; see
`harness/environment.py`. That everything is gone afterwards, in all flavours and tables, is asserted by the leak check
of every test.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from conftest import Shared
from harness import (
    Dockerd,
    Host,
    Netplug,
    Node,
    Snapshot,
    Wire,
    assert_same,
    connect,
    overlay,
    resolve,
    snapshot,
    wait_until,
)
from harness.environment import ENVIRONMENTS, Environment
from harness.overlay import BLUE
from harness.quick import ANYBODY, PORT, Spot, Way, check, drift, quick_network, quick_spot, serving

OUTSIDE = 7000
HOST_PORT = 7001
PUBLISHED = 8080
BY_DOCKER = 8090
HEAL_TIMEOUT_S = 10


@dataclass
class Stage:
    """A guarded host with our daemon and perhaps Docker's, and another host. `before`: without our daemon."""

    env: Environment
    host: Host
    far: Host
    wire: Wire
    netplug: Netplug
    before: Snapshot
    dockers: dict[str, Spot]

    def outward(self, it: Spot) -> dict[str, Way]:
        """A container's ways out, with the host's addresses."""
        return {
            "outside": Way(it, self.wire.right, self.wire.left, OUTSIDE),
            "outside, IPv6": Way(it, self.wire.right6, self.wire.left6, OUTSIDE),
        }

    def inward(self) -> dict[str, Way]:
        """The ways of another host to the published port, with its own address."""
        return {
            "published": Way(self.far, self.wire.left, self.wire.right, PUBLISHED),
            "published, IPv6": Way(self.far, self.wire.left6, self.wire.right6, PUBLISHED),
        }

    def apart_from_docker(self, it: Spot, *, guarded: bool = True) -> dict[str, Way]:
        """Neither reaches the other. `guarded`: Docker's own rules, which keep others out of its bridges, are there."""
        ways: dict[str, Way] = {}
        for docker in self.dockers.values():
            found = closed(it, docker)
            ways |= {what: way for what, way in found.items() if way.place is docker or (guarded and self.env.flavours)}
        return ways

    def docker_goes_on(self) -> dict[str, Way]:
        """Docker's networks are as without us."""
        wire, ways = self.wire, {}
        if self.dockers:
            ways["Docker's port"] = Way(self.far, wire.left, wire.right if self.env.flavours else ANYBODY, BY_DOCKER)
        if self.dockers and self.env.flavours:
            ways |= closed(self.dockers["bridge"], self.dockers["own"])
            ways |= {f"Docker's {it}": Way(self.dockers[it], wire.right, wire.left, OUTSIDE) for it in self.dockers}
        return ways


def closed(one: Spot, two: Spot) -> dict[str, Way]:
    """Neither reaches the other by its own addresses."""
    return between(one, two, open_=False)


def between(one: Spot, two: Spot, *, open_: bool = True) -> dict[str, Way]:
    ways = {}
    for here, there in ((one, two), (two, one)):
        for source, target in ((here.ip4, there.ip4), (here.ip6, there.ip6)):
            if source and target:
                ways[f"{source} -> {target}"] = Way(here, target, source if open_ else "")
    return ways


@pytest.fixture(scope="module", params=ENVIRONMENTS, ids=lambda it: it.name)
def stage(request: pytest.FixtureRequest, shared: Shared) -> Iterator[Stage]:
    env: Environment = request.param
    if missing := env.missing():
        pytest.skip(f"needs {missing} (make setup)")
    with ExitStack() as stack:
        host, far = stack.enter_context(Host(env.name)), stack.enter_context(Host("far"))
        wire = connect(host, far)
        stack.enter_context(serving(far, OUTSIDE))
        env.prepare(host)
        dockers = {}
        if env.docker is not None:
            dockerd = Dockerd(host, *env.docker, env=env.docker_env(host))
            dockerd.docker("network", "create", "own")
            for name in ("bridge", "own"):
                ports = ("-p", f"{BY_DOCKER}:{PORT}", "-p", f"{BY_DOCKER}:{PORT}/udp") if name == "own" else ()
                it = dockerd.run("--network", name, *ports)
                dockers[name] = Spot(it.netns, it.ip())
                stack.enter_context(serving(dockers[name]))
        before = snapshot(host)
        netplug = shared.netplugs[host] = Netplug(host, *["--docker-host", "none"] * (env.docker is None))
        yield Stage(env, host, far, wire, netplug, before, dockers)


def test_networks_are_apart_and_neighbours_meet(stage: Stage) -> None:
    netplug = stage.netplug
    with (
        quick_network(netplug) as blue,
        quick_network(netplug) as red,
        quick_network(netplug, bridge="mine") as mine,
        quick_spot(netplug, blue) as one,
        quick_spot(netplug, blue) as two,
        quick_spot(netplug, red) as three,
        quick_spot(netplug, mine) as four,
        quick_spot(netplug, mine) as five,
    ):
        ways = between(one, two) | between(four, five)
        ways |= closed(one, three) | closed(one, four) | closed(three, five)
        ways |= stage.apart_from_docker(one) | stage.apart_from_docker(four) | stage.docker_goes_on()
        # Nobody comes in from outside, who knows a way; the host itself reaches its containers.
        for it in (one, four):
            ways |= {
                f"far -> {it.ip4}": Way(stage.far, it.ip4, ""),
                f"far -> {it.ip6}": Way(stage.far, it.ip6, ""),
                f"host -> {it.ip4}": Way(stage.host, it.ip4, it.gateways[0]),
                f"host -> {it.ip6}": Way(stage.host, it.ip6, it.gateways[1]),
            }
        check(ways)
        assert not drift(netplug)


def test_container_reaches_the_outside_under_the_hosts_address(stage: Stage) -> None:
    with (
        quick_network(stage.netplug) as blue,
        quick_network(stage.netplug, bridge="mine") as mine,
        quick_spot(stage.netplug, blue) as one,
        quick_spot(stage.netplug, mine) as two,
    ):
        for it in (one, two):
            check(stage.outward(it))
        assert not drift(stage.netplug)


def test_published_port_is_reached_from_everywhere(stage: Stage) -> None:
    netplug, wire = stage.netplug, stage.wire
    with (
        quick_network(netplug) as blue,
        quick_network(netplug) as red,
        quick_network(netplug, internal=True) as inner,
        quick_network(netplug, bridge="mine") as mine,
        quick_spot(netplug, blue, publish=PUBLISHED) as one,
        quick_spot(netplug, blue) as two,
        quick_spot(netplug, red) as three,
        quick_spot(netplug, inner) as four,
        quick_spot(netplug, mine, publish=PUBLISHED + 1) as five,
    ):
        ways = stage.inward()
        for name, place in {"itself": one, "neighbour": two, "another network": three, "user's bridge": five}.items():
            ways[name] = Way(place, wire.left, ANYBODY, PUBLISHED)
            ways[f"{name}, IPv6"] = Way(place, wire.left6, ANYBODY, PUBLISHED)
        ways |= {
            "the host": Way(stage.host, wire.left, ANYBODY, PUBLISHED),
            "the host, IPv6": Way(stage.host, wire.left6, ANYBODY, PUBLISHED),
            "loopback": Way(stage.host, "127.0.0.1", ANYBODY, PUBLISHED),
            "loopback, IPv6": Way(stage.host, "::1", ANYBODY, PUBLISHED),
            "internal network": Way(four, wire.left, "", PUBLISHED),
            "internal network, IPv6": Way(four, wire.left6, "", PUBLISHED),
            "on the user's bridge": Way(stage.far, wire.left, wire.right, PUBLISHED + 1),
            "on the user's bridge, hairpin": Way(five, wire.left, ANYBODY, PUBLISHED + 1),
            "on the user's bridge, another network": Way(one, wire.left, ANYBODY, PUBLISHED + 1),
        }
        for name, it in stage.dockers.items():
            ways[f"Docker's {name}"] = Way(it, wire.left, ANYBODY, PUBLISHED)
        if stage.dockers:
            # Without rules of Docker its proxy answers, datagrams from another address.
            protos = ("tcp", "udp") if stage.env.flavours else ("tcp",)
            ways["port of Docker's"] = Way(one, wire.left, ANYBODY, BY_DOCKER, protos)
        check(ways)
        assert not drift(netplug)


def test_network_without_icc_and_internal_network(stage: Stage) -> None:
    netplug = stage.netplug
    with (
        quick_network(netplug, icc="false") as apart,
        quick_network(netplug, internal=True) as inner,
        quick_spot(netplug, apart, publish=PUBLISHED) as one,
        quick_spot(netplug, apart) as two,
        quick_spot(netplug, inner) as three,
        quick_spot(netplug, inner) as four,
        serving(stage.host, HOST_PORT),
    ):
        ways = closed(one, two) | stage.outward(two) | stage.inward()
        ways |= between(three, four) | closed(one, three)
        ways |= stage.apart_from_docker(three)
        for what, way in stage.outward(three).items():
            ways[f"internal: {what}"] = Way(way.place, way.address, "", way.port)
        ways |= {
            "far -> internal": Way(stage.far, three.ip4, ""),
            "far -> internal, IPv6": Way(stage.far, three.ip6, ""),
            "internal -> host": Way(three, stage.wire.left, "", HOST_PORT),
            "internal -> host, IPv6": Way(three, stage.wire.left6, "", HOST_PORT),
        }
        check(ways)
        assert not drift(netplug)


def test_host_mode_gets_what_nobody_else_wants(stage: Stage) -> None:
    netplug, wire = stage.netplug, stage.wire
    with (
        quick_network(netplug, mode="host") as edge,
        quick_network(netplug) as blue,
        quick_spot(netplug, edge) as one,
        quick_spot(netplug, blue, publish=PUBLISHED) as two,
        serving(one, OUTSIDE + 2),
    ):
        ways = stage.outward(one) | stage.inward() | closed(one, two)
        for port in (PORT, OUTSIDE + 2):
            ways[f"port {port}"] = Way(stage.far, wire.left, wire.right, port)
            ways[f"port {port}, IPv6"] = Way(stage.far, wire.left6, wire.right6, port)
        check(ways)
        assert not drift(netplug)


def test_gateway_answers_for_names(stage: Stage) -> None:
    netplug = stage.netplug
    with (
        quick_network(netplug) as blue,
        quick_network(netplug, bridge="mine") as mine,
        quick_spot(netplug, blue, name="one") as one,
        quick_spot(netplug, blue) as two,
        quick_spot(netplug, mine, name="four") as four,
        serving(stage.host, HOST_PORT),
    ):

        def answers() -> bool:
            for client, name, it in ((two, "one", one), (four, "four", four)):
                for gateway in client.gateways:
                    for tcp in (False, True):
                        said = resolve(client, gateway, name, tcp=tcp)
                        assert said.data == (it.ip4,), f"{name} at {gateway} by {'TCP' if tcp else 'UDP'}"
            return True

        answers()
        if not stage.env.flavours:
            return
        with stage.env.input_denied(stage.host):
            wait_until(answers, HEAL_TIMEOUT_S, "names where all that comes in is dropped", ignoring=(OSError,))
            # Nothing else is let in.
            denied = {name: Way(two, gateway, "", HOST_PORT) for name, gateway in enumerate(two.gateways)}
            check({f"host's port by gateway {name}": way for name, way in denied.items()})
            assert not drift(netplug)
        assert wait_until(lambda: not drift(netplug))


def test_drop_of_the_administrator_is_final(stage: Stage) -> None:
    netplug, host = stage.netplug, stage.host
    with (
        quick_network(netplug) as blue,
        quick_spot(netplug, blue, publish=PUBLISHED) as one,
        quick_spot(netplug, blue) as two,
    ):
        both = {"out": Way(one, stage.wire.right, stage.wire.left, OUTSIDE, ("tcp",))}
        both["in"] = Way(stage.far, stage.wire.left, stage.wire.right, PUBLISHED, ("tcp",))
        none = {what: Way(way.place, way.address, "", way.port, way.protos) for what, way in both.items()}
        passed = {}
        for place, (add, remove) in stage.env.drops(one.ip4).items():
            check(both)
            host.run(["sh", "-ec", add])
            # Nor does it pass once our daemon has looked at the change.
            netplug.client.post("repair")
            try:
                check({**none, "neighbour": Way(two, stage.wire.right, stage.wire.left, OUTSIDE)})
            except AssertionError as exc:
                passed[place] = str(exc)
            host.run(["sh", "-ec", remove])
        assert not passed, "\n".join(f"{place}: {what}" for place, what in passed.items())
        check(both)
        assert wait_until(lambda: not drift(netplug))


def test_flush_of_the_firewall_heals(stage: Stage) -> None:
    netplug, host = stage.netplug, stage.host
    with (
        stage.env.kept(host),
        quick_network(netplug) as blue,
        quick_network(netplug) as red,
        quick_spot(netplug, blue, publish=PUBLISHED, name="one") as one,
        quick_spot(netplug, red) as two,
    ):
        ways = stage.outward(one) | stage.inward() | closed(one, two) | stage.apart_from_docker(one, guarded=False)

        def works() -> bool:
            check(ways)
            assert resolve(one, one.gateways[0], "one").data == (one.ip4,)
            assert not drift(netplug)
            return True

        works()
        for flush in stage.env.flushes:
            host.run(["sh", "-ec", flush])
            wait_until(
                lambda: all(way.passes() for way in ways.values() if way.wanted), HEAL_TIMEOUT_S, f"healing of {flush}"
            )
            wait_until(works, HEAL_TIMEOUT_S, f"healing of {flush}", ignoring=(AssertionError, OSError))


def test_host_forwards_nothing_of_others_because_of_us(stage: Stage) -> None:
    """Where nothing had turned forwarding on before."""
    if "ipv4/ip_forward:1" in stage.before["sysctls"]:
        pytest.skip("the host is a router already")
    with Host("stranger") as stranger:
        wire = connect(stage.host, stranger, "198.51.100.0/24", "fd00:beef::/64", routes=False)
        stranger.run(["sh", "-ec", f"ip route add default via {wire.left}; ip -6 route add default via {wire.left6}"])
        with quick_network(stage.netplug) as blue, quick_spot(stage.netplug, blue, publish=PUBLISHED) as one:
            ways = stage.outward(one) | {
                "stranger -> published": Way(stranger, wire.left, wire.right, PUBLISHED),
                "stranger -> published, IPv6": Way(stranger, wire.left6, wire.right6, PUBLISHED),
                "stranger -> beyond": Way(stranger, stage.wire.right, "", OUTSIDE),
                "stranger -> beyond, IPv6": Way(stranger, stage.wire.right6, "", OUTSIDE),
            }
            check(ways)
            assert not drift(stage.netplug)


def test_last_network_takes_everything_with_it(stage: Stage) -> None:
    netplug = stage.netplug
    with (
        quick_network(netplug) as blue,
        quick_network(netplug, mode="host"),
        quick_network(netplug, internal=True, icc="false"),
        quick_network(netplug, bridge="mine"),
        quick_spot(netplug, blue, publish=PUBLISHED) as one,
    ):
        check(stage.outward(one))
    assert_same(stage.before, lambda: snapshot(stage.host))


def test_overlay_connects_two_hosts(stage: Stage) -> None:
    """Its engines are told of each other by the test, in place of a cluster."""
    stage.netplug.stop()
    nodes = [Node(stage.host, stage.wire.left), Node(stage.far, stage.wire.right)]
    try:
        with (
            overlay("blue", (nodes[0], nodes[1]), BLUE, vni="20001") as blue,
            blue.station(nodes[0], "10.94.1.2", "fd00:94:1::2") as one,
            blue.station(nodes[1], "10.94.1.3", "fd00:94:1::3") as two,
            serving(one),
            serving(two),
        ):
            here, there = Spot(one.netns, *one.addresses), Spot(two.netns, *two.addresses)
            check(between(here, there) | stage.outward(here))
    finally:
        for node in nodes:
            node.close()
        stage.netplug.start()
    assert not drift(stage.netplug)
