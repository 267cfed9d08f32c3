"""What tests of `netplug trace` share: the question, faults, and the containers of one host, made once in a module."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import pytest
from conftest import Shared
from harness import Container, Dockerd, Host, Netplug, Wire, assert_same
from trace_faults import Row

HEALTHY_S, BROKEN_S = 3.0, 10.0
"""What a trace may take, as the contract says."""

S = TypeVar("S")
E = TypeVar("E")
Faults: TypeAlias = dict[str, Callable[[S], AbstractContextManager[E]]]


def registering(faults: Faults[S, E]) -> Callable[[str], Callable[[Callable[[S], Iterator[E]]], None]]:
    """Return the decorator of what injects a fault, yields the ends of the trace, and takes the fault away.

    It is taken away when the test fails too: the containers are those of all tests.
    """

    def fault(name: str) -> Callable[[Callable[[S], Iterator[E]]], None]:
        def register(work: Callable[[S], Iterator[E]]) -> None:
            @contextmanager
            def injected(scene: S) -> Iterator[E]:
                steps = work(scene)
                try:
                    yield next(steps)
                finally:
                    assert next(steps, None) is None, "it yields once"

            faults[name] = injected

        return register

    return fault


def trace(netplug: Netplug, source: str, destination: str) -> dict[str, Any]:
    """Return what the trace answers, with the "seconds" that it took: the median of three, if the first is slow."""
    first = _timed(netplug, source, destination)
    if first["seconds"] < (HEALTHY_S if first["reached"] else BROKEN_S):
        return first
    more = [_timed(netplug, source, destination) for _ in range(2)]
    return first | {"seconds": statistics.median(it["seconds"] for it in (first, *more))}


def _timed(netplug: Netplug, source: str, destination: str) -> dict[str, Any]:
    began = time.monotonic()
    answer: dict[str, Any] = netplug.client.post("trace", body={"source": source, "destination": destination})
    return answer | {"seconds": time.monotonic() - began}


def shown(answer: dict[str, Any]) -> str:
    lines = [f"{it['where']}: {it['what']}: {it['verdict']}" for it in answer["hops"]]
    return "\n".join([*lines, str(answer["broken"]), *answer["notes"], f"{answer['seconds']:.1f} s"])


def assert_named(answer: dict[str, Any], row: Row) -> None:
    """Assert that the trace found the fault, and says of it what the document says."""
    assert not answer["reached"], shown(answer)
    cause = answer["broken"]["cause"]
    assert cause["kind"] == row.kind, shown(answer)
    assert row.matches(cause["words"], cause["mend"]), shown(answer)
    assert answer["seconds"] < BROKEN_S, shown(answer)


@dataclass(frozen=True)
class Scene:
    """Containers of one host: `asker`, `web` and `both` in blue, `lonely` and `both` in green."""

    host: Host
    client: Host
    dockerd: Dockerd
    netplug: Netplug
    wire: Wire
    asker: Container
    web: Container
    lonely: Container
    both: Container

    def trace(self, source: str, destination: str) -> dict[str, Any]:
        return trace(self.netplug, source, destination)

    def run(self, *argv: str) -> str:
        return self.host.output(*argv)

    def undo(self, *argv: str) -> None:
        """Run what the mend may have done already."""
        self.host.run(argv, check=False)

    def inside(self, container: Container, *argv: str) -> str:
        return self.run("nsenter", f"--net={self.sandbox(container)}", "--", *argv)

    def sandbox(self, container: Container) -> str:
        return str(self.dockerd.inspect(container.id)["NetworkSettings"]["SandboxKey"])

    def address(self, container: Container, network: str = "blue") -> str:
        return str(self.dockerd.inspect(container.id)["NetworkSettings"]["Networks"][network]["IPAddress"])

    def mac(self, container: Container, network: str = "blue") -> str:
        return str(self.dockerd.inspect(container.id)["NetworkSettings"]["Networks"][network]["MacAddress"])

    def gateway(self, network: str) -> str:
        return str(self.dockerd.inspect(network)["IPAM"]["Config"][0]["Gateway"]).partition("/")[0]

    def port(self, container: Container, network: str = "blue") -> str:
        """The host side of a container's link."""
        ident = self.dockerd.inspect(container.id)["NetworkSettings"]["Networks"][network]["EndpointID"]
        return f"nph{ident[:12]}"

    def bridge(self, network: str) -> str:
        return f"np-{self.dockerd.inspect(network)['Id'][:12]}"


@pytest.fixture(scope="module")
def scene(host: Host, client: Host, dockerd: Dockerd, netplug: Netplug, wire: Wire) -> Scene:
    for name, options in {
        "blue": ("--ipv6",),
        "green": (),
        "closed": ("--internal",),
        "quiet": ("-o", "com.docker.network.bridge.enable_icc=false"),
        "void": ("-o", "mode=none"),
    }.items():
        dockerd.docker("network", "create", "-d", "pynet", "--ipam-driver", "pynet", *options, name)
    serve = ("sh", "-c", "httpd -p 127.0.0.1:82 -h /www; exec httpd -f -p 80 -h /www")
    run = dockerd.run
    asker = run("--network", "blue", "--name", "asker")
    web = run("--network", "blue", "--name", "web", "-p", "8080:80", "-p", "8081:82", command=serve)
    lonely = run("--network", "green", "--name", "lonely", command=serve)
    both = run("--network", "blue", "--name", "both", "-p", "8090:80", command=serve)
    dockerd.docker("network", "connect", "green", "both")
    run("--network", "closed", "--name", "inner")
    for name in ("quiet1", "quiet2"):
        run("--network", "quiet", "--name", name, command=serve)
    run("--network", "void", "--name", "nothing")
    return Scene(host, client, dockerd, netplug, wire, asker, web, lonely, both)


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest, shared: Shared) -> Iterator[None]:
    """Compare the host before and after, in place of the one of all modules: a failure must not remove the scene."""
    request.getfixturevalue("scene")
    before = {host: shared.snapshot(host) for host in Host.live}
    yield
    for host, taken in before.items():
        assert_same(taken, lambda host=host: shared.snapshot(host))  # type: ignore[misc]
