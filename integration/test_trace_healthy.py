"""`netplug trace` finds nothing wrong where nothing is: paths of all modes, runtimes, IP versions and protocols."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    Container,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    attached,
    cni_attached,
    cni_list,
    own_ipam,
)
from harness.podman import Podman
from trace_scene import HEALTHY_S, leak_check, shown, trace

__all__ = ("leak_check",)
MACVLAN = ("-o", "mode=macvlan", "--subnet", "203.0.113.0/24", "--ip-range", "203.0.113.128/25")


@dataclass(frozen=True)
class Scene:
    netplug: Netplug
    dockerd: Dockerd
    wire: Wire
    bare: str
    pod: str
    podman: str

    def address(self, name: str, network: str = "blue", *, v6: bool = False) -> str:
        found = self.dockerd.inspect(name)["NetworkSettings"]["Networks"][network]
        return str(found["GlobalIPv6Address" if v6 else "IPAddress"])


@pytest.fixture(scope="module")
def scene(host: Host, client: Host, dockerd: Dockerd, netplug: Netplug, wire: Wire) -> Iterator[Scene]:
    ours = ("-d", "pynet", "--ipam-driver", "pynet")
    for name, options in {
        "blue": (*ours, "--ipv6"),
        "green": (*ours, "--ipv6"),
        "closed": (*ours, "--internal"),
        "quiet": (*ours, "-o", "icc=false"),
        "front": (*ours, "-o", "mode=host", "--ipv6"),
        "segment": (*ours, *MACVLAN, "--gateway", "203.0.113.2"),
    }.items():
        dockerd.docker("network", "create", *options, name)
    serve = ("httpd", "-f", "-p", "80", "-h", "/www")
    made: dict[str, Container] = {}
    for name, network, *options in (
        ("asker", "blue"),
        ("web", "blue", "-p", "8080:80", "-p", "127.0.0.1:8082:80", "-p", "8053:53/udp", "--network-alias", "www"),
        ("distant", "green", "-p", "8083:80"),
        ("inner1", "closed"),
        ("inner2", "closed"),
        ("silent", "quiet"),
        ("front", "front"),
        ("station1", "segment"),
        ("station2", "segment"),
        ("joined", "blue"),
    ):
        made[name] = dockerd.run("--network", network, "--name", name, *options, command=serve)
    dockerd.docker("network", "connect", "green", "joined")
    dockerd.run("--name", "foreign", "-p", "8084:80", command=serve)
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    with ExitStack() as stack:
        bare, _ = stack.enter_context(attached(netplug, "blue", "--name", "bare"))
        runtime = stack.enter_context(cni_list(host, netplug, PYNET | own_ipam(RANGES4)))
        netns, pod = stack.enter_context(cni_attached(runtime))
        podman = Podman(host, "pods", netplug.cli("cni", "config", "blue"))
        podman.run("poddy", "--network", "blue")
        stack.callback(podman, "rm", "-f", "poddy")
        for server in (
            SeenServer(client, "tcp", 443, "::"),
            SeenServer(client, "udp", 53, "::"),
            SeenServer(host, "tcp", 22, "::"),
            SeenServer(made["web"], "udp", 53, "::"),
            SeenServer(bare, "tcp", 80, "::"),
            SeenServer(netns, "tcp", 80, "::"),
        ):
            stack.enter_context(server)
        yield Scene(netplug, dockerd, wire, bare.name, pod.container, "poddy")


Ends = Callable[[Scene], tuple[str, str]]
PATHS: dict[str, Ends] = {
    "name, tcp": lambda _: ("asker", "web:80"),
    "name, echo": lambda _: ("asker", "web"),
    "name, udp": lambda _: ("asker", "web:53/udp"),
    "alias": lambda _: ("asker", "www:80"),
    "full name": lambda _: ("asker", "web.blue.netplug.internal:80"),
    "endpoint": lambda _: ("blue/asker", "blue/web:80"),
    "id": lambda it: (str(it.dockerd.inspect("asker")["Id"])[:12], str(it.dockerd.inspect("web")["Id"]) + ":80"),
    "address": lambda it: (it.address("asker"), it.address("web") + ":80"),
    "IPv6, tcp": lambda it: ("asker", f"[{it.address('web', v6=True)}]:80"),
    "IPv6, echo": lambda it: ("asker", it.address("web", v6=True)),
    "itself": lambda it: ("web", it.address("web") + ":80"),
    "loopback": lambda _: ("web", "127.0.0.1:80"),
    "outside": lambda _: ("asker", "outside"),
    "outside, tcp": lambda it: ("asker", f"outside={it.wire.right}:443"),
    "outside, udp": lambda it: ("asker", f"{it.wire.right}:53/udp"),
    "outside, IPv6": lambda it: ("asker", f"[{it.wire.right6}]:443"),
    "to the host": lambda _: ("asker", "host"),
    "to the host, tcp": lambda it: ("asker", f"{it.wire.left}:22"),
    "published, from another network": lambda it: ("distant", f"{it.wire.left}:8080"),
    "published, IPv6, from another network": lambda it: ("distant", f"[{it.wire.left6}]:8080"),
    "own published port": lambda it: ("web", f"{it.wire.left}:8080"),
    "from the host": lambda _: ("host", "web:80"),
    "from the host, IPv6": lambda it: ("host", f"[{it.address('web', v6=True)}]:80"),
    "from the host, published": lambda it: ("host", f"{it.wire.left}:8080"),
    "from the host, loopback": lambda _: ("host", "127.0.0.1:8082"),
    "from the host, loopback, IPv6": lambda _: ("host", "[::1]:8080"),
    "from outside": lambda _: ("outside", "web:80"),
    "from outside, udp": lambda _: ("outside", "web:53/udp"),
    "from outside, IPv6": lambda it: (f"outside={it.wire.right6}", f"[{it.wire.left6}]:8080"),
    "from outside to the host": lambda it: ("outside", f"{it.wire.left}:22"),
    "host mode, from outside": lambda _: ("outside", "front:80"),
    "host mode, to outside": lambda it: ("front", f"{it.wire.right}:443"),
    "host mode, from the host": lambda _: ("host", "front:80"),
    "host mode, from a container": lambda it: ("asker", f"{it.wire.left}:80"),
    "macvlan": lambda _: ("station1", "station2:80"),
    "macvlan, to outside": lambda it: ("station1", f"{it.wire.right}:443"),
    "internal": lambda _: ("inner1", "inner2:80"),
    "icc=false, to outside": lambda it: ("silent", f"{it.wire.right}:443"),
    "two networks": lambda _: ("joined", "distant:80"),
    "to a container of Docker's bridge": lambda it: ("asker", f"{it.wire.left}:8084"),
    "attached, to Docker": lambda it: (it.bare, "web:80"),
    "Docker, to attached": lambda _: ("asker", "bare:80"),
    "CNI, to outside": lambda it: (it.pod, f"{it.wire.right}:443"),
    "host, to CNI": lambda it: ("host", f"{it.pod}:80"),
    "podman, to Docker": lambda it: (it.podman, "web:80"),
    "Docker, to podman": lambda _: ("asker", "poddy"),
}


@pytest.mark.parametrize("name", list(PATHS))
def test_nothing_is_wrong(scene: Scene, name: str) -> None:
    source, destination = PATHS[name](scene)
    answer = trace(scene.netplug, source, destination)
    said = f"{source} to {destination}\n{shown(answer)}"
    assert answer["reached"], said
    assert answer["seconds"] < HEALTHY_S, said
    assert all(it["verdict"] == "ok" for it in answer["hops"]), said
