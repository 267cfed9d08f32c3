"""netplug as Docker's managed plugin: built by `make plugin`, and run by a real dockerd in a root of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import pytest
from conftest import Shared
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Wire,
    assert_same,
    attached,
    container,
    docker_network,
    http_get,
    snapshot,
    wait_until,
)
from harness.host import NAME_PREFIX
from harness.managed_plugin import NAME, REGISTRY, ManagedPlugin, build_plugin, registry, registry_command
from harness.netplugd import COMMAND

from netplug.lab.image import IMAGE, PAGE

SERVE = ["httpd", "-f", "-h", "/www"]
POOL = "10.77."
NEWER = "99.1"
RESTART_TIMEOUT_S = 40
pytestmark = pytest.mark.timeout(300)
"""The first test waits for the build, and for dockerd to compress 100 MB, with one core in use by other tests."""
DOCUMENT = Path(__file__).parents[1] / "docs/plugin.md"


@pytest.fixture(scope="module")
def dockerd(host: Host, wire: Wire, shared: Shared) -> Dockerd:  # noqa: ARG001 - the uplink is there before the engine
    """A dockerd whose log has the plugin's."""
    it = shared.dockerds[host] = Dockerd(host, "--log-level", "info")
    it.docker("run", "--rm", "-p", "1", IMAGE, "true")
    return it


@pytest.fixture(scope="session")
def built() -> Iterator[Path]:
    """The plugin's folder, for all tests of the run."""
    if missing := [name for name in ("apt-get", "dpkg-deb") if not which(name)]:
        pytest.skip(f"needs {missing[0]}")
    with TemporaryDirectory(prefix=f"{NAME_PREFIX}{os.getpid()}-plugin-") as folder:
        yield build_plugin(Path(folder, "plugin"))


@pytest.fixture(scope="module")
def plugin(host: Host, dockerd: Dockerd, built: Path, shared: Shared) -> Iterator[ManagedPlugin]:
    """The plugin, enabled. Removed with all that is its, it leaves the host as it was."""
    before = snapshot(host)
    it = shared.netplugs[host] = ManagedPlugin(dockerd, built, f"NETPLUG_ADDRESS_POOL=base={POOL}0.0/16,size=24")
    with (
        docker_network(dockerd, "--ipv6", "--ipam-driver", NAME, driver=NAME) as net,
        container(dockerd, "--network", net, "-p", "1"),
    ):
        pass  # what is made once and kept
    yield it
    del shared.netplugs[host]
    it.call("rm", "-f", NAME)
    assert_same(before, lambda: snapshot(host))


def web(dockerd: Dockerd, network: str) -> AbstractContextManager[Container]:
    return container(
        dockerd, "--network", network, "--name", "web", "-p", "8080:80", "--restart", "always", command=SERVE
    )


def documented(start: str) -> str:
    """Return the command of docs/plugin.md that begins so."""
    return next(line[2:] for line in DOCUMENT.read_text().splitlines() if line.startswith(f"# {start}"))


def test_containers_have_names_addresses_and_ports(
    dockerd: Dockerd, plugin: ManagedPlugin, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd, "--ipam-driver", NAME, driver=NAME) as net,
        web(dockerd, net) as server,
        container(dockerd, "--network", net, "--name", "db") as other,
    ):
        assert server.ip().startswith(POOL)
        assert other.pings("web")
        assert other.pings(wire.right)
        ask = ("nslookup", "-type=a", f"web.{net}.netplug.internal")
        address = f"Address: {server.ip()}"
        wait_until(lambda: address in other.exec(*ask), what="our names, in Docker's time", ignoring=(CommandError,))
        assert wait_until(lambda: http_get(client, wire.left, 8080), ignoring=(OSError,)) == PAGE
        wait_until(lambda: {it["name"] for it in plugin.json("ps")} == {"web", "db"}, what="names, from Docker")
        assert not plugin.drift()
        assert plugin.cli("ipam", "audit")
        assert plugin.cli("trace", "db", "web:80")
        assert "web" in plugin.host.output("sh", "-c", documented("runc "))


def test_namespaces_of_the_host_join(dockerd: Dockerd, plugin: ManagedPlugin) -> None:
    """They are made after the plugin has started, and it sees them."""
    with (
        docker_network(dockerd, driver=NAME) as net,
        container(dockerd, "--network", net, "--name", "web") as other,
        attached(plugin, net, "--name", "lab") as (lab, _),
    ):
        assert lab.pings(other.ip())
        wait_until(lambda: other.pings(f"lab.{net}.netplug.internal"), what="our names, in Docker's time")


def test_second_daemon_is_refused(plugin: ManagedPlugin) -> None:
    serve = [str(COMMAND), "serve", "--state-dir", str(plugin.host.dir / "second"), "--plugin-dir", "/run/elsewhere"]
    refused = plugin.host.run(serve, check=False)
    assert refused.returncode == 3
    assert "in use by process" in refused.stderr
    assert not plugin.drift()


def test_container_made_again_gets_its_address_back(dockerd: Dockerd, plugin: ManagedPlugin) -> None:
    """For that, the plugin reads Docker's files: before release 29 Docker does not say who asks."""
    with docker_network(dockerd, "--ipam-driver", NAME, "-o", "sticky=true", driver=NAME) as net:
        with container(dockerd, "--network", net, "--name", "web") as first:
            address = first.ip()
            assert wait_until(lambda: plugin.json("ps")[0]["name"] == "web")
        with container(dockerd, "--network", net, "--name", "web") as again:
            assert again.ip() == address


def test_messages_name_the_plugin(dockerd: Dockerd, plugin: ManagedPlugin) -> None:  # noqa: ARG001 - it answers
    with pytest.raises(CommandError, match=f"-d {NAME} --ipam-driver {NAME} -o sticky=7d"):
        dockerd.docker("network", "create", "-d", NAME, "-o", "sticky=7d", "refused")


def test_containers_stay_connected_while_it_is_off(
    dockerd: Dockerd, plugin: ManagedPlugin, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd, "--ipam-driver", NAME, driver=NAME) as net,
        web(dockerd, net) as server,
        container(dockerd, "--network", net) as other,
    ):
        with pytest.raises(CommandError, match="in use"):
            plugin.call("disable", NAME)
        plugin.call("disable", "-f", NAME)
        plugin.call("set", NAME, "NETPLUG_LOG_LEVEL=debug")
        assert other.pings(server.ip())
        assert http_get(client, wire.left, 8080) == PAGE
        plugin.call("enable", NAME)
        assert other.pings("web")
        assert http_get(client, wire.left, 8080) == PAGE
        assert wait_until(lambda: not plugin.drift())


def test_dockerd_restarts_with_it(dockerd: Dockerd, plugin: ManagedPlugin, client: Host, wire: Wire) -> None:
    """It starts before the containers that dockerd starts again, and has their addresses."""
    with (
        docker_network(dockerd, "--ipam-driver", NAME, driver=NAME) as net,
        web(dockerd, net) as server,
        container(dockerd, "--network", net, "--restart", "always") as other,
    ):
        addresses = server.ip(), other.ip()
        dockerd.restart()
        assert wait_until(lambda: http_get(client, wire.left, 8080), RESTART_TIMEOUT_S, ignoring=(OSError,)) == PAGE
        wait_until(lambda: other.running and other.ip(), RESTART_TIMEOUT_S, "the restart of the other")
        assert len({server.ip(), other.ip()}) == 2
        assert other.pings("web")
        assert {it["address"] for pool in plugin.json("ipam", "ls") for it in pool["leases"]} >= set(addresses)
        assert wait_until(lambda: not plugin.drift())
        assert plugin.cli("ipam", "audit")
    # It has not counted the networks that use a plugin when it restarted, but counts their removal (moby 20.10).
    dockerd.restart()


def test_upgrade_from_a_registry_keeps_networks_and_containers(
    dockerd: Dockerd, plugin: ManagedPlugin, built: Path, client: Host, wire: Wire
) -> None:
    if not (program := registry_command()):
        pytest.skip("needs docker-registry (make setup)")
    plugin.create(f"{REGISTRY}/pynet:2", newer(built))
    with (
        registry(dockerd, program),
        docker_network(dockerd, "--ipam-driver", NAME, driver=NAME) as net,
        web(dockerd, net) as server,
        container(dockerd, "--network", net) as other,
    ):
        plugin.call("push", f"{REGISTRY}/pynet:2")
        plugin.call("rm", f"{REGISTRY}/pynet:2")
        before = plugin.json("ps")
        plugin.call("disable", "-f", NAME)
        plugin.call("upgrade", "--grant-all-permissions", "--skip-remote-check", NAME, f"{REGISTRY}/pynet:2")
        assert http_get(client, wire.left, 8080) == PAGE
        plugin.call("enable", NAME)
        assert plugin.version() == NEWER
        assert plugin.json("ps") == before
        assert other.pings("web")
        assert http_get(client, wire.left, 8080) == PAGE
        assert wait_until(lambda: not plugin.drift())
        assert server.ip().startswith(POOL), "its settings are kept"


@pytest.mark.slow
def test_two_builds_are_equal(built: Path) -> None:
    def archived(folder: Path) -> str:
        archive = f"tar -c --sort=name -C {folder} . | sha256sum"
        return subprocess.run(["sh", "-c", archive], check=True, stdout=subprocess.PIPE, text=True).stdout

    assert archived(build_plugin(built.with_name("again"))) == archived(built)


def newer(built: Path) -> Path:
    """Return the same plugin with another version of netplug in it."""
    folder = built.with_name("newer")
    shutil.copytree(built, folder, symlinks=True)
    package = folder / "rootfs/usr/lib/python3/dist-packages/netplug"
    (package / "__init__.py").write_text(f'__version__ = "{NEWER}"\n')
    for compiled in (package / "__pycache__").glob("__init__.*"):
        compiled.unlink()
    return folder
