"""From the former release to this one and back, while traffic flows, with the state that the former release made.

The hosts belong to a test alone. Datagrams go every 10 ms, and none may be lost.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    Container,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    Stream,
    Wire,
    cni_attached,
    cni_list,
    connect,
    container,
    docker_network,
    namespace,
    own_ipam,
    wait_until,
)
from harness.former import former_release, runs
from harness.traffic import Talk

NewHost = Callable[..., Host]
CONVERGED = re.compile(r"step\.converged")
HEAL_TIMEOUT_S = 20


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the former release."""
    return former_release(tmp_path_factory.mktemp("release"))


@dataclass
class Place:
    """A host with a dockerd, a netplug, and a neighbour."""

    host: Host
    client: Host
    wire: Wire
    dockerd: Dockerd
    netplug: Netplug

    def becomes(self, tree: Path | None) -> list[str]:
        """Start the daemon of a source tree, None for ours, after the other was killed; return the lines of its log."""
        said = len(self.netplug.log.read_text())
        self.netplug.kill()
        self.netplug.env = runs(tree) if tree else {}
        self.netplug.start()
        return self.netplug.log.read_text()[said:].splitlines()

    def agrees(self) -> None:
        """Wait until records and kernel agree."""
        wait_until(lambda: not self.netplug.drift(), HEAL_TIMEOUT_S, "no differences")

    @property
    def log(self) -> list[str]:
        return self.netplug.log.read_text().splitlines()


@pytest.fixture
def place(new_host: NewHost, former: Path) -> Place:
    host, client = new_host(), new_host("client")
    wire = connect(host, client)
    return Place(host, client, wire, Dockerd(host), Netplug(host, env=runs(former)))


@dataclass
class Built:
    """What a version has built: two containers of Docker, a bare namespace, a CNI container, and one on the LAN."""

    network: str
    web: Container
    db: Container
    bare: Namespace
    pod: Namespace
    lan: Namespace


@contextmanager
def built(place: Place) -> Iterator[Built]:
    """Networks and endpoints of every front end, removed by the version that runs then."""
    netplug = place.netplug
    lan = ("--mode", "macvlan", "--subnet", "203.0.113.0/24", "--ip-range", "203.0.113.128/25")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    netplug.cli("network", "create", "lan", *lan, "--gateway", place.wire.right, "-o", f"parent={place.wire.left_link}")
    with ExitStack() as stack:
        net = stack.enter_context(docker_network(place.dockerd, "--ipam-driver", "pynet"))
        web = stack.enter_context(container(place.dockerd, "--network", net, "--name", "web", "-p", "8080:80"))
        db = stack.enter_context(container(place.dockerd, "--network", net, "--name", "db"))
        bare = stack.enter_context(namespace(place.host))
        bare.attach(netplug, net, "--name", "bare", "--publish", "9090:90", "-o", "rate=1gbit")
        runtime = stack.enter_context(cni_list(place.host, netplug, PYNET | own_ipam(RANGES4) | {"hairpinMode": True}))
        pod, _ = stack.enter_context(cni_attached(runtime, runtime={"mac": "02:00:00:00:00:0a"}))
        outside = stack.enter_context(namespace(place.host))
        outside.attach(netplug, "lan")
        yield Built(net, web, db, bare, pod, outside)
        outside.detach(netplug, "lan")
        bare.detach(netplug, net)
    netplug.cli("network", "rm", "lan")


@contextmanager
def traffic(place: Place, it: Built) -> Iterator[None]:
    """Datagrams between all of them and connections by published ports, through all of the block."""
    inner = it.db.ip(it.network)
    streams = {
        "container to container": Stream(it.web, it.db, inner),
        "namespace to container": Stream(it.bare, it.web, it.web.ip(it.network)),
        "CNI container to the outside": Stream(it.pod, place.client, place.wire.right),
        "the outside to the LAN": Stream(place.client, it.lan, it.lan.addresses[0]),
    }
    with ExitStack() as stack:
        for stream in streams.values():
            stack.enter_context(stream)
        stack.enter_context(Talk(place.client, it.web, place.wire.left, 8080, at=80))
        stack.enter_context(Talk(place.client, it.bare, place.wire.left, 9090, at=90))
        yield
    assert {name: stream.lost for name, stream in streams.items() if stream.lost} == {}
    assert all(stream.sent > 20 for stream in streams.values())


def reserved(place: Place, network: str) -> list[str]:
    """Return the published ports that nobody else can have."""
    taken = []
    for port in ("8080", "9090"):
        with namespace(place.host) as other:
            if other.attaches(place.netplug, network, "--publish", f"{port}:1"):
                other.detach(place.netplug, network)
            else:
                taken.append(port)
    return taken


@pytest.mark.timeout(120)
def test_upgrade_keeps_traffic_and_changes_nothing_that_is_the_same(place: Place) -> None:
    with built(place) as it:
        with traffic(place, it):
            said = place.becomes(None)
            place.agrees()
        assert not [line for line in said if CONVERGED.search(line)]
        assert reserved(place, it.network) == ["8080", "9090"]
        assert place.netplug.json("ipam", "audit") == []
