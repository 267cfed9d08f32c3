"""A mode of another package (`examples/driver`): installed, uninstalled under a living network, reinstalled."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    assert_same,
    cli_network,
    container,
    docker_network,
    links_are_gone,
    snapshot,
    wait_until,
)
from harness.netplugd import COMMAND, RUN_DIR

EXAMPLE = Path(__file__).parent.parent / "examples" / "driver"
START = "import sys; from netplug.cli import main; sys.exit(main())"
PACKAGE = "netplug-routed"


class Venv:
    """A virtual environment that has all that this one has, and packages of its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        self._source = copytree(EXAMPLE, folder / "source")

    def install(self) -> None:
        offline = ("--no-index", "--no-build-isolation", "--no-deps")
        self._pip("install", *offline, str(self._source))

    def uninstall(self) -> None:
        self._pip("uninstall", "--yes", PACKAGE)

    def _pip(self, *args: str) -> None:
        argv = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", *args]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class VenvNetplug(Netplug):
    """The daemon, run by the interpreter of a virtual environment."""

    def __init__(self, host: Host, venv: Venv) -> None:
        self.venv = venv
        super().__init__(host)

    def command(self) -> list[str]:
        return [str(self.venv.python), "-c", START, *super().command()[1:]]


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    venv = Venv(tmp_path / "venv")
    venv.install()
    return venv


@pytest.fixture
def routing(host: Host, venv: Venv) -> Iterator[VenvNetplug]:
    it = VenvNetplug(host, venv)
    yield it
    it.stop()


def refusal(netplug: Netplug, *args: str) -> str:
    with pytest.raises(CommandError) as caught:
        netplug.cli(*args)
    return caught.value.stderr.strip()


def link_of(one: Container, dockerd: Dockerd, net: str) -> str:
    (ident,) = [it for it in dockerd.inspect(net)["Containers"] if it == one.id]
    return "np-" + dockerd.inspect(net)["Containers"][ident]["EndpointID"][:12]


def test_mode_of_another_package_comes_goes_and_returns(
    host: Host, dockerd: Dockerd, venv: Venv, routing: VenvNetplug
) -> None:
    with docker_network(dockerd, "--subnet", "10.93.79.0/24") as first, container(dockerd, "--network", first):
        pass
    links_are_gone(host)
    before = snapshot(host, routing)
    options = ("-o", "mode=routed", "-o", "proxy_arp=true", "--subnet", "10.93.77.0/24")
    with (
        docker_network(dockerd, "--subnet", "10.93.78.0/24") as other,
        docker_network(dockerd, *options) as net,
        container(dockerd, "--network", other) as bystander,
        container(dockerd, "--network", net) as one,
        container(dockerd, "--network", net) as two,
    ):
        shown = dockerd.inspect(net)["Options"]
        assert (shown["mode"], shown["proxy_arp"]) == ("routed", "true")
        assert routing.json("network", "inspect", net)["options"]["proxy_arp"] == "true"
        assert one.pings("10.93.77.1")
        assert one.pings(two.ip())
        link = link_of(one, dockerd, net)
        assert f"{one.ip()} dev {link}" in host.run(["ip", "route"]).stdout
        assert "master" not in json.loads(host.run(["ip", "-json", "link", "show", link]).stdout)[0]
        assert not routing.drift()

        venv.uninstall()
        routing.restart()
        why = "there is no driver for mode 'routed'"
        assert why in routing.drift()
        assert net not in [it["name"] for it in routing.json("network", "ls")]
        listed = host.run([str(COMMAND), "network", "ls"], env={"NETPLUG_RUN_DIR": RUN_DIR})
        assert "1 more cannot be used: see netplug diff" in listed.stderr
        assert why in refusal(routing, "network", "inspect", net)
        with pytest.raises(CommandError, match=why):
            dockerd.docker("run", "--rm", "--network", net, "bb:1", "true")
        with pytest.raises(CommandError, match="must be one of bridge, host, macvlan, none, overlay"):
            dockerd.docker("network", "create", "-d", "pynet", "-o", "mode=routed", "another")
        assert one.pings("10.93.77.1"), "what the driver made stays"
        assert bystander.pings("10.93.78.1")
        with container(dockerd, "--network", other) as late:
            assert late.pings(bystander.ip())
        with cli_network(routing):
            pass

        venv.install()
        routing.restart()
        assert not routing.drift()
        assert one.pings(two.ip())
        with container(dockerd, "--network", net) as three:
            assert three.pings(one.ip())
        gone = link_of(two, dockerd, net)
        dockerd.docker("network", "disconnect", net, two.id)
        wait_until(lambda: gone not in host.run(["ip", "link"]).stdout, what="the end of its link")
    assert_same(before, lambda: snapshot(host, routing))
