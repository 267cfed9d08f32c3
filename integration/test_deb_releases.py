"""The Debian package on Debian 12 and 13: installed, upgraded, removed and purged. `make deb-test` runs this."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from harness import Booted, Container, Stream, Talk, assert_same, snapshot, unbootable
from harness.packaged import BUILD, ROOT, UNITS, Debian, installs_uses_and_purges

from netplug import __version__

ROOTS = ROOT / ".venv/roots"
"""Made by `packaging/setup.sh roots`."""
RELEASES = ("bookworm", "trixie")
SETTINGS = "/etc/netplug/netplug.toml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(unbootable()), reason=unbootable()),
]


def _built(folder: Path, *options: str) -> Path:
    subprocess.run([*BUILD, "--out", folder, *options], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("netplug_*.deb"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a newer version."""
    return _built(tmp_path_factory.mktemp("newer"), "--version", "99.0")


@pytest.fixture(params=RELEASES)
def debian(request: pytest.FixtureRequest) -> Iterator[Debian]:
    root = ROOTS / request.param
    if not root.exists():
        pytest.skip(f"needs a root of Debian {request.param} (packaging/setup.sh roots)")
    with Booted(request.param, root=root) as machine:
        yield Debian(machine)


@contextmanager
def traffic(debian: Debian) -> Iterator[Container]:
    """Two containers that talk without a gap through all of the block."""
    docker = debian.docker
    debian.shell("docker network create -d pynet blue")
    web, db = (docker.run("--network", "blue", "--name", name) for name in ("web", "db"))
    address = web.ip("blue")
    with ExitStack() as stack:
        stream = stack.enter_context(Stream(db, web, address))
        stack.enter_context(Talk(db, web, address, 7300))
        yield web
    assert stream.lost == []
    assert stream.sent > 20


def test_release_installs_uses_and_purges_it_and_is_as_before(debian: Debian, package: Path) -> None:
    installs_uses_and_purges(debian, package)


def test_upgrade_and_return_keep_traffic_settings_and_what_the_admin_disabled(
    debian: Debian, package: Path, newer: Path
) -> None:
    machine = debian.machine
    debian.install(package)
    changed = machine.path(SETTINGS).read_text() + 'log_level = "debug"\n'
    machine.write(SETTINGS, changed)
    machine.systemctl("disable", *UNITS)
    with traffic(debian) as web:
        for version, deb in (("99.0", newer), (__version__, package)):
            before = machine.show("netplug.service", "MainPID")["MainPID"]
            debian.install(deb)
            assert debian.shell("dpkg-query -W -f '${Version}' netplug") == version
            assert machine.show("netplug.service", "MainPID")["MainPID"] not in {before, "0"}
            assert debian.units() == [("active", "disabled")] * len(UNITS)
            assert machine.path(SETTINGS).read_text() == changed
            assert "no differences" in debian.shell("netplug diff")
            assert web.pings(web.ip("blue"))


def test_other_python_gets_its_files_compiled_and_the_daemon_restarted(debian: Debian, package: Path) -> None:
    """As Debian calls it when /usr/bin/python3 becomes another version."""
    debian.install(package)
    before = debian.machine.show("netplug.service", "MainPID")["MainPID"]
    debian.shell("find /usr/lib/netplug -name '*.pyc' -delete")
    debian.shell("/usr/share/python3/runtime.d/netplug.rtupdate rtupdate 3.11 3.13")
    assert int(debian.shell("find /usr/lib/netplug -name '*.pyc' | wc -l")) > 1000
    assert debian.machine.show("netplug.service", "MainPID")["MainPID"] not in {before, "0"}


def test_environment_reads_the_folder_for_drivers_of_other_packages(debian: Debian, package: Path) -> None:
    debian.install(package)
    debian.machine.write("/usr/local/lib/netplug/drivers/netplug_added.py", "print('found')\n")
    assert debian.shell("/usr/lib/netplug/bin/python -I -c 'import netplug_added'") == "found"


def test_removal_leaves_attached_containers_their_network_for_the_next_installation(
    debian: Debian, package: Path
) -> None:
    machine = debian.machine
    debian.install(package)
    with traffic(debian):
        before = snapshot(machine)
        debian.apt("remove", "netplug")
        assert not machine.path("/run/docker/plugins/pynet.sock").exists()
        assert not machine.path("/usr/lib/netplug").exists()
        assert machine.path(SETTINGS).exists()
        debian.install(package)
        assert "no differences" in debian.shell("netplug diff")
        assert_same(before, lambda: snapshot(machine))
    assert debian.shell("ls -d /var/lib/netplug-removed || true") == ""


def test_removal_without_containers_leaves_records_and_no_links(debian: Debian, package: Path) -> None:
    machine = debian.machine
    before = snapshot(machine)
    debian.install(package)
    debian.shell("netplug network create blue --subnet 10.20.0.0/24")
    debian.apt("remove", "netplug")
    assert_same(before, lambda: snapshot(machine))
    debian.install(package)
    assert "10.20.0.0/24" in debian.shell("netplug network ls")
    assert "no differences" in debian.shell("netplug diff")


def test_purge_takes_the_networks_of_attached_containers_too(debian: Debian, package: Path) -> None:
    before = debian.state()
    debian.install(package)
    debian.shell("docker network create -d pynet blue")
    debian.shell("docker run -d --name web --network blue -p 8080:80 busybox sleep 600")
    assert "netplug-removed" not in debian.apt("purge", "netplug")
    debian.shell("docker kill web")
    assert_same(before, debian.state)
