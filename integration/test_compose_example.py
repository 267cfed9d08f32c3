"""The project of examples/compose as it stands, by the real docker-compose, with images that are made here."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from harness import CommandError, Container, Dockerd, Host, Netplug, Wire, http_get, wait_until
from harness.dockerd import docker_command

from netplug.lab.image import busybox_rootfs_tar

FOLDER = Path(__file__).parents[1] / "examples/compose"
COMMANDS = {
    "PROXY": ("nc", "-ll", "-p", "80", "-e", "nc", "web", "80"),
    "WEB": ("sh", "-c", "hostname >/www/index.html; exec httpd -f -h /www"),
    "DB": ("nc", "-ll", "-p", "5432", "-e", "echo", "db"),
    "CACHE": ("nc", "-ll", "-p", "6379", "-e", "echo", "cache"),
}
"""What the images do: pass connections on, and say who they are at the ports of the real ones."""
LOOKUP = ("nslookup", "-type=a", "-retry=1", "-timeout=2")


class Project:
    """The example, up."""

    def __init__(self, dockerd: Dockerd) -> None:
        self.dockerd = dockerd
        self._env = {f"{name}_IMAGE": f"example-{name.lower()}:1" for name in COMMANDS}
        for name, command in COMMANDS.items():
            self._image(f"example-{name.lower()}:1", command)
        self.compose("up", "-d")

    def _image(self, name: str, command: tuple[str, ...]) -> None:
        host = self.dockerd.host
        make = [docker_command(), "import", "--change", f"CMD {json.dumps(command)}", "-", name]
        subprocess.run(
            host.inside(make), check=True, input=busybox_rootfs_tar(), stdout=subprocess.DEVNULL, env=host.env
        )

    def compose(self, *args: str) -> str:
        command = ("docker-compose", "--project-directory", str(FOLDER), "-f", str(FOLDER / "compose.yaml"), *args)
        return self.dockerd.host.run(command, timeout_s=90, env=self._env).stdout

    def containers(self, service: str) -> list[Container]:
        return [Container(self.dockerd, ident) for ident in self.compose("ps", "-q", service).split()]

    def one(self, service: str) -> Container:
        (it,) = self.containers(service)
        return it


@pytest.fixture
def project(dockerd: Dockerd, netplug: Netplug) -> Iterator[Project]:  # noqa: ARG001 - it serves the networks
    """The project, up; removed at the end if the test got there."""
    if not which("docker-compose"):
        pytest.skip("needs docker-compose (make setup)")
    it = Project(dockerd)
    yield it
    it.compose("down", "-t", "0")
    dockerd.docker("image", "rm", *(f"example-{name.lower()}:1" for name in COMMANDS))


def answer(place: Container, name: str, port: int) -> str:
    """Return what a server says to whoever connects; empty if nobody does."""
    try:
        return place.exec("nc", "-w", "1", name, str(port))
    except CommandError:
        return ""


def addresses(place: Container, name: str) -> set[str]:
    """Return the addresses of a name, asked in a container."""
    try:
        said = place.exec(*LOOKUP, name).partition("\n\n")[2]
    except CommandError:
        return set()
    return {line.split()[-1] for line in said.splitlines() if line.startswith("Address")}


def test_example_does_what_its_readme_says(project: Project, netplug: Netplug, client: Host, wire: Wire) -> None:
    proxy, cache, servers = project.one("proxy"), project.one("cache"), project.containers("web")
    assert len(servers) == 3
    names = {it.exec("hostname") + "\n" for it in servers}
    seen: set[str] = set()
    assert wait_until(lambda: seen.add(http_get(client, wire.left, 8080)) or seen == names, ignoring=(OSError,))
    in_front = {it.ip("shop_front") for it in servers}
    assert addresses(proxy, "web") == in_front
    assert addresses(cache, "postgres") == addresses(cache, "db") == {"10.40.2.10"}
    assert not addresses(proxy, "db"), "a name of a network that it is not in"

    for server in servers:
        assert answer(server, "postgres", 5432) == "db"
        assert answer(server, "redis", 6379) == "cache"
        assert server.pings(wire.right)
    assert not answer(proxy, "10.40.2.10", 5432)
    assert not cache.pings(wire.right), "back is internal"
    assert {it["network"] for it in netplug.json("ps")} == {"shop_front", "shop_back"}
    assert len(netplug.json("ps")) == 9

    with pytest.raises(CommandError) as refused:
        netplug.cli("trace", "shop_proxy_1", "shop_db_1:5432")
    assert refused.value.code == 1
    assert "shop_back" in refused.value.stdout

    project.compose("up", "-d", "--scale", "web=5")
    assert len(addresses(proxy, "web")) == 5
    netplug.cli("publish", "shop_proxy_1", "8081:80")
    assert http_get(client, wire.left, 8081)
    assert not netplug.drift()
