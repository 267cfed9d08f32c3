"""Networks are changed under their containers, with traffic that flows meanwhile: what is lost is counted.

docs/updating.md has the table; run with `-s` to see it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    Bulk,
    CommandError,
    Container,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    SeenServer,
    Stream,
    Talk,
    Wire,
    attached,
    cli_network,
    cni_attached,
    cni_list,
    container,
    docker_network,
    faster,
    limited,
    own_ipam,
    resolve,
    tcp_ask,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("netplug")
SUBNETS = ("--ipv6", "--subnet", "10.92.0.0/24", "--subnet", "fd00:92::/64", "--opt", "name=living")
NET = "living"
GATEWAY = "10.92.0.1"
ENOUGH = 40
"""Datagrams, one every ten milliseconds, that flow before, between and after changes."""
TRIES = 4
"""Where the kernel drops: how long it does depends on how busy the machine is."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Two containers of Docker's and a bare namespace in one network, and another host."""

    netplug: Netplug
    one: Container
    two: Container
    bare: Namespace
    client: Host
    wire: Wire

    def update(self, *args: str) -> list[dict[str, str]]:
        changes: list[dict[str, str]] = self.netplug.json("network", "update", NET, *args)["changes"]
        return changes

    @property
    def address(self) -> str:
        return self.two.ip()


@pytest.fixture
def lab(netplug: Netplug, dockerd: Dockerd, client: Host, wire: Wire) -> Iterator[Lab]:
    with (
        docker_network(dockerd, *SUBNETS) as net,
        container(dockerd, "--network", net, "--publish", "8092:80", "--name", "one") as one,
        container(dockerd, "--network", net, "--name", "two") as two,
        attached(netplug, NET, "--name", "bare") as (bare, _),
    ):
        yield Lab(netplug, one, two, bare, client, wire)
        assert netplug.drift() == ""


@dataclass(slots=True)
class Flows:
    """Datagrams every 10 ms, by the path that they take, and streams of TCP."""

    pings: dict[str, Stream]
    bulks: dict[str, Bulk]

    def flow(self) -> None:
        """Let some more go out."""
        for path, ping in self.pings.items():
            enough = ping.sent + ENOUGH
            wait_until(lambda ping=ping, enough=enough: ping.sent >= enough, what=path)

    def result(self) -> dict[str, str]:
        found = {path: f"{len(ping.lost)}/{ping.sent} lost" for path, ping in self.pings.items()}
        for path, bulk in self.bulks.items():
            found[path] += f", {bulk.resent} segments resent, longest pause {bulk.longest_s * 1000:.0f} ms"
        return found


PATHS: dict[str, Callable[[Lab], tuple[Any, Any, str]]] = {
    "container to container": lambda lab: (lab.one, lab.two, lab.two.ip()),
    "container to outside": lambda lab: (lab.one, lab.client, lab.wire.right),
    "namespace to container": lambda lab: (lab.bare, lab.two, lab.two.ip()),
}


@contextmanager
def flowing(lab: Lab, *paths: str) -> Iterator[Flows]:
    """Have datagrams and a stream of TCP flow on these paths. The streams live on throughout."""
    ports = iter(range(7300, 7400))
    with ExitStack() as stack:
        ends = {path: PATHS[path](lab) for path in paths}
        bulks = {path: stack.enter_context(Bulk(*end, next(ports))) for path, end in ends.items()}
        talks = [stack.enter_context(Talk(*end, next(ports))) for end in ends.values()]
        # One echo for each address.
        pings: dict[str, Stream] = {}
        for path, end in ends.items():
            pings[path] = stack.enter_context(Stream(*end, port=next(ports)))
        flows = Flows(pings, bulks)
        flows.flow()
        yield flows
        flows.flow()
    assert all(talk.sent for talk in talks)


ALL = tuple(PATHS)
AMONG = ("container to container", "namespace to container")


def mtu_inside(lab: Lab) -> set[str]:
    inside = {it.exec("cat", "/sys/class/net/eth0/mtu").strip() for it in (lab.one, lab.two)}
    words = lab.bare.exec("ip", "-o", "link", "show", "eth0").split()
    return inside | {words[words.index("mtu") + 1]}


def is_limited(lab: Lab, mbit: int) -> bool:
    return limited(lab.one, lab.bare, lab.bare.addresses[0], mbit * 125_000)


def is_faster(lab: Lab, mbit: int) -> bool:
    return faster(lab.one, lab.bare, lab.bare.addresses[0], 1.2 * mbit * 125_000)


def source_outside(lab: Lab) -> str:
    with SeenServer(lab.client, "tcp", 7070) as server:
        tcp_ask(lab.one, lab.wire.right, 7070)
    return server.seen[0]


def asked(lab: Lab) -> bool:
    try:
        return bool(resolve(lab.bare, GATEWAY, "two.living").data)
    except OSError:
        return False


def published_at(lab: Lab) -> list[str]:
    ports: list[str] = next(it["ports"] for it in lab.netplug.json("ps") if it["name"] == "one")
    return ports


@dataclass(frozen=True, slots=True)
class Case:
    """Updates, each with what holds after it; on `paths` no more than `lost` datagrams are lost of all."""

    steps: tuple[tuple[tuple[str, ...], Callable[[Lab], bool]], ...]
    paths: tuple[str, ...] = ALL
    lost: int = 0


CASES = {
    "rate, burst": Case(
        (
            (("-o", "rate=160mbit"), lambda lab: is_limited(lab, 160)),
            (("-o", "rate=80mbit/0", "-o", "burst=256kb"), lambda _: True),
            (("-o", "rate=", "-o", "burst="), lambda lab: is_faster(lab, 160)),
        ),
        # While the kernel puts a first queue on a link or takes the last, it drops (sch_generic.c, noop_qdisc).
        lost=4,
    ),
    "mtu smaller": Case(
        ((("-o", "mtu=1300"), lambda lab: mtu_inside(lab) == {"1300"}), (("-o", "mtu="), lambda _: True)), lost=0
    ),
    "mtu larger": Case(
        (
            (("-o", "mtu=9000"), lambda lab: mtu_inside(lab) == {"9000"}),
            (("-o", "mtu=1500"), lambda lab: mtu_inside(lab) == {"1500"}),
        )
    ),
    "spoofchk": Case(
        ((("-o", "spoofchk=false"), lambda _: True), (("-o", "spoofchk=true"), lambda _: True)),
    ),
    "masquerade": Case(
        (
            (("-o", "masquerade=false"), lambda lab: source_outside(lab) == lab.one.ip()),
            (("-o", "masquerade=true"), lambda lab: source_outside(lab) == lab.wire.left),
        )
    ),
    "icc": Case(
        (
            (("-o", "icc=false"), lambda lab: not lab.one.pings(lab.two.ip())),
            # The kernel asks for a neighbour that did not answer once a second.
            (("-o", "icc=true"), lambda lab: wait_until(lambda: lab.one.pings(lab.two.ip()))),
        ),
        paths=("container to outside",),
    ),
    "internal": Case(
        (
            (("--internal", "true"), lambda lab: not lab.one.pings(lab.wire.right)),
            (
                ("--internal", "false"),
                lambda lab: all(wait_until(lambda it=it: it.pings(lab.wire.right)) for it in (lab.one, lab.bare)),
            ),
        ),
        paths=AMONG,
    ),
    "dns": Case(
        (
            (("-o", "dns=off"), lambda lab: not asked(lab) and bool(wait_until(lambda: not served(lab)))),
            (("-o", "dns=on"), lambda lab: asked(lab) and bool(wait_until(lambda: served(lab)))),
        )
    ),
    "dns_upstream, ttl": Case(
        ((("-o", "dns_upstream=192.0.2.1", "-o", "ttl=60"), lambda _: True), (("-o", "dns_upstream="), lambda _: True))
    ),
    "host_binding_ipv4": Case(
        (
            (("-o", "host_binding_ipv4=127.0.0.1"), lambda lab: "127.0.0.1:8092->80/tcp" in published_at(lab)),
            (("-o", "host_binding_ipv4="), lambda lab: "0.0.0.0:8092->80/tcp" in published_at(lab)),
        )
    ),
    "labels": Case(((("--label", "team=net"), lambda _: True), (("--label-rm", "team"), lambda _: True))),
}


def served(lab: Lab) -> bool:
    """Tell whether questions in a container come to us."""
    tables = lab.netplug.host.output("nsenter", f"--net=/proc/{pid(lab.one)}/ns/net", "--", "nft", "list", "tables")
    return "netplug-dns" in tables


def pid(it: Container) -> int:
    return int(it.inspect()["State"]["Pid"])


@pytest.mark.parametrize("name", CASES)
def test_option_changes_and_traffic_goes_on(lab: Lab, name: str) -> None:
    case = CASES[name]
    for _ in range(TRIES if case.lost else 1):
        with flowing(lab, *case.paths) as flows:
            for args, _ in case.steps:
                lab.update(*args)
                flows.flow()
        print(f"\n{name}: {flows.result()}")
        if most := all(len(ping.lost) <= case.lost for ping in flows.pings.values()):
            break
    assert most, flows.result()
    for args, holds in case.steps:
        lab.update(*args)
        assert holds(lab), args
        assert lab.netplug.drift() == ""


def test_what_is_cut_by_will_comes_back(lab: Lab) -> None:
    """Connections live on where the option allows them again."""
    with Talk(lab.one, lab.two, lab.two.ip(), 7390) as among, Talk(lab.one, lab.client, lab.wire.right, 7391) as out:
        for args, cut in ((("-o", "icc=false"), among), (("--internal", "true"), out)):
            lab.update(*args)
            sent = cut.sent
            assert not lab.one.pings(lab.two.ip() if cut is among else lab.wire.right)
            assert cut.sent <= sent + 1
        lab.update("-o", "icc=true", "--internal", "false")
        # TCP sends again after twice the time each time.
        wait_until(lambda: among.sent > 100 and out.sent > 100, 40)


def test_dry_run_prints_the_steps_and_changes_nothing(lab: Lab) -> None:
    before = lab.netplug.json("network", "ls")
    told = lab.netplug.json("network", "update", NET, "-o", "rate=80mbit", "-o", "icc=false", "--dry-run")
    assert told["dry_run"]
    assert lab.netplug.json("network", "ls") == before
    assert lab.update("-o", "rate=80mbit", "-o", "icc=false") == told["changes"]
    shown = lab.netplug.json("network", "inspect", NET)
    assert shown["as_created"]["options"] == {"name": NET}
    assert shown["options"] == {"name": NET, "rate": "80mbit", "icc": "false"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "mode=overlay"), "option mode='overlay' cannot change: another driver makes other links"),
        (("-o", "rate=1mbit", "-o", "colour=red"), "unknown option 'colour'"),
        (("-o", "rate=fast"), "option rate='fast'"),
        (("-o", "mtu=1000"), "IPv6 needs 1280"),
        (("--subnet-add", "10.93.0.0/24"), "docker chose the subnets"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(lab: Lab, args: tuple[str, ...], words: str) -> None:
    before = lab.netplug.cli("network", "inspect", NET)
    with pytest.raises(CommandError, match=words):
        lab.update(*args)
    assert lab.netplug.cli("network", "inspect", NET) == before


def test_mtu_that_a_container_chose_stays(lab: Lab) -> None:
    link = ("nsenter", f"--net=/proc/{pid(lab.two)}/ns/net", "--", "ip", "link", "set", "eth0", "mtu")
    lab.netplug.host.output(*link, "1290")
    lab.update("-o", "mtu=1400")
    assert [it.exec("cat", "/sys/class/net/eth0/mtu").strip() for it in (lab.one, lab.two)] == ["1400", "1290"]


LAN = ("--subnet", "203.0.113.0/24", "--ip-range", "203.0.113.128/25", "--gateway", "203.0.113.2", "-o", "parent={}")


@pytest.mark.parametrize("mode", ["macvlan", "host"])
def test_mtu_of_other_modes_reaches_the_sandbox(
    netplug: Netplug, dockerd: Dockerd, client: Host, wire: Wire, mode: str
) -> None:
    options = [word.format(wire.left_link) for word in LAN] if mode == "macvlan" else []
    with (
        docker_network(
            dockerd, "--ipam-driver", "pynet", "--opt", f"mode={mode}", "--opt", "name=other", *options
        ) as net,
        container(dockerd, "--network", net) as it,
        Talk(it, client, wire.right, 7392),
        Stream(it, client, wire.right, bound_to_source=False, port=7393) as stream,
    ):
        for mtu in ("1300", "1400"):
            netplug.cli("network", "update", "other", "-o", f"mtu={mtu}")
            assert it.exec("cat", "/sys/class/net/eth0/mtu").strip() == mtu
            assert netplug.drift() == ""
    assert (stream.sent > ENOUGH, stream.lost) == (True, [])


def test_update_survives_a_restart_of_the_daemon(lab: Lab, netplug: Netplug) -> None:
    with flowing(lab, *ALL) as flows:
        lab.update("-o", "mtu=1400", "-o", "rate=160mbit", "-o", "icc=true")
        netplug.kill()
        netplug.start()
        flows.flow()
        assert netplug.drift() == ""
    assert sum(len(ping.lost) for ping in flows.pings.values()) <= 4, flows.result()  # by the limit, see `CASES`
    assert mtu_inside(lab) == {"1400"}


def test_subnet_comes_and_goes(netplug: Netplug) -> None:
    with cli_network(netplug, "--subnet", "10.93.0.0/24") as net, attached(netplug, net) as (old, _):
        netplug.cli("network", "update", net, "--subnet-add", "fd00:93::/64")
        with attached(netplug, net, "--ifname", "eth0") as (new, result):
            assert {":" in address for address in result["addresses"]} == {True, False}
            assert new.pings("fd00:93::1")
            assert new.pings(old.addresses[0])
            with pytest.raises(CommandError, match="has addresses of"):
                netplug.cli("network", "update", net, "--subnet-rm", "fd00:93::/64")
        netplug.cli("network", "update", net, "--subnet-rm", "fd00:93::/64")
        assert "fd00:93" not in netplug.cli("ipam", "ls")
        assert netplug.drift() == ""


LIVING = {
    "mtu": ("mtu=1300",),
    "mtu back": ("mtu=",),
    "masquerade": ("masquerade=false",),
    "masquerade again": ("masquerade=true",),
    "spoofchk": ("spoofchk=false",),
    "spoofchk again": ("spoofchk=true",),
    "dns": ("dns=off", "ttl=9"),
    "dns again": ("dns=on",),
}
"""Options that cost containers of a CNI runtime or podman nothing."""


def update_all(netplug: Netplug, name: str, *flows: Stream) -> None:
    """Update a network by all of `LIVING`, while all streams flow."""
    for what, options in LIVING.items():
        wanted = [word for option in options for word in ("-o", option)]
        netplug.cli("network", "update", name, *wanted)
        assert netplug.drift() == "", what
        for flow in flows:
            enough = flow.sent + ENOUGH
            wait_until(lambda flow=flow, enough=enough: flow.sent >= enough, what=what)


def test_containers_of_a_cni_runtime_go_on(host: Host, netplug: Netplug, client: Host, wire: Wire) -> None:
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    with (
        cni_list(host, netplug, PYNET | own_ipam(RANGES4)) as it,
        cni_attached(it) as (one, first),
        cni_attached(it) as (two, second),
        Talk(one, two, second.ip, 7401),
        Stream(one, two, second.ip, port=7402) as among,
        Stream(one, client, wire.right, port=7403) as out,
    ):
        update_all(netplug, it.name, among, out)
        for attached_one in (first, second):  # its configuration says what the network was created with
            it.check(attached_one)
    assert (among.lost, out.lost) == ([], [])
