"""Overlay networks over several hosts without a cluster: engines inside the hosts, and a mesh that tells them of peers.

Each node is the real engine on the real kernel of its host; what a cluster store would carry from host to host, the
`Mesh` does.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .host import START_TIMEOUT_S, Host
from .scoped import Namespace, namespace

BLUE = ["10.94.1.0/24", "fd00:94:1::/64"]
VNI = "20001"


class NodeError(AssertionError):
    """The engine refused."""


class Node:
    """An engine inside a host. `vtep`: the host's address to which the others tunnel."""

    def __init__(self, host: Host, vtep: str) -> None:
        self.host = host
        self.vtep = vtep
        self.start()

    def start(self) -> None:
        """Start the engine; what it left when it was closed, it knows."""
        host, vtep = self.host, self.vtep
        script = str(Path(__file__).with_name("overlay_node.py"))
        log = host.dir / "node.log"
        if log not in host.logs:
            host.logs.append(log)
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                host.inside([sys.executable, script, vtep, str(host.dir / "node.sqlite")]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=host.env,
            )
        assert self._answer() == "ready"

    def do(self, what: str, **arguments: Any) -> Any:
        """Have the engine do something and return what it answers.

        Raises:
            NodeError: it refused.
        """
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        # The engine's log goes to the same place as its answers, which are the only objects.
        while line := self._process.stdout.readline():
            if line.startswith('{"result"'):
                return json.loads(line)["result"]
            if line.startswith('{"error"'):
                raise NodeError(json.loads(line)["error"])
        raise NodeError(f"the engine of {self.host.name} ended with {self._process.wait(START_TIMEOUT_S)}")

    def close(self) -> None:
        """End the engine; the data plane stays."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        code = self._process.wait(START_TIMEOUT_S)
        self._process.stdout.close()
        assert code == 0, f"the engine of {self.host.name} ended with {code}"


@dataclass(eq=False)
class Station:
    """A namespace in an overlay, and what its host tells of it."""

    node: Node
    place: Namespace
    peer: dict[str, Any]

    @property
    def netns(self) -> Path:
        return self.place.netns

    @property
    def addresses(self) -> list[str]:
        found: list[str] = self.peer["addresses"]
        return found


@dataclass
class Mesh:
    """An overlay over nodes."""

    name: str
    nodes: tuple[Node, ...]
    stations: list[Station] = field(default_factory=list)

    def tell(self) -> None:
        """Tell each node of all stations on the others, if there are others."""
        for node in self.nodes if len(self.nodes) > 1 else ():
            peers = [it.peer for it in self.stations if it.node is not node]
            assert node.do("peers", network=self.name, peers=peers) == []

    @contextmanager
    def station(self, node: Node, *addresses: str, **options: Any) -> Iterator[Station]:
        """A namespace in the overlay; by its end it is out again, and everybody was told. `options`: as `attach`."""
        with namespace(node.host) as place:
            peer = node.do("attach", network=self.name, netns=place.name, addresses=list(addresses), **options)
            it = Station(node, place, peer)
            self.stations.append(it)
            self.tell()
            try:
                yield it
            except BaseException:
                with suppress(NodeError):
                    self.leave(it)
                raise
            self.leave(it)

    def leave(self, station: Station) -> None:
        """Take a station out and tell everybody; does nothing when it is out already."""
        if station in self.stations:
            station.node.do("detach", network=self.name, netns=station.place.name)
            self.stations.remove(station)
            self.tell()

    def link(self, node: Node, prefix: str) -> str:
        """Return the name of the overlay's link on a node that begins so: "np-" its bridge, "npv" its vxlan link."""
        (found,) = (name for name in node.do("links", network=self.name) if name.startswith(prefix))
        return str(found)


@contextmanager
def overlay(name: str, nodes: tuple[Node, ...], subnets: list[str], **options: str) -> Iterator[Mesh]:
    """An overlay that is made on all nodes, and removed at the end, with nothing wrong in between.

    `options`: the network's, and `internal`; with another `mode` a network of one node.
    """
    made = []
    try:
        for node in nodes:
            node.do("network", name=name, subnets=subnets, **options)
            made.append(node)
        yield Mesh(name, nodes)
        assert [node.do("diff") for node in nodes] == [[]] * len(nodes)
    finally:
        for node in made:
            node.do("remove", name=name)


@dataclass(frozen=True)
class Underlay:
    """The VTEPs of two hosts; `links`: of the cable, left and right."""

    family: int
    left: str
    right: str
    links: tuple[str, str]


@contextmanager
def pair(nodes: tuple[Node, Node], **options: str) -> Iterator[tuple[Mesh, Station, Station]]:
    """An overlay with one station on each host."""
    with (
        overlay("blue", nodes, BLUE, **({"vni": VNI} | options)) as blue,
        blue.station(nodes[0], "10.94.1.2", "fd00:94:1::2") as one,
        blue.station(nodes[1], "10.94.1.3", "fd00:94:1::3") as two,
    ):
        yield blue, one, two
