"""The Debian package: built twice, checked, installed on a machine with systemd and Docker, used, and purged."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from harness import Booted, assert_same, unbootable
from harness.packaged import Debian

ROOT = Path(__file__).parent.parent
BUILD = (sys.executable, str(ROOT / "packaging/debian/build.py"))
BUILD_TIMEOUT_S = 300
DOCUMENT = ROOT / "docs/installing.md"
UNITS = ("netplug.socket", "netplug.service")
ELSEWHERE = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7"}

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not which("dpkg-deb"), reason="needs dpkg-deb: packages of Debian are built on Debian"),
]


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package, built twice at once: the second time by somebody with other habits."""
    folders = [tmp_path_factory.mktemp(name) for name in ("deb", "deb-again")]
    running = [
        subprocess.Popen([*BUILD, "--out", str(folder)], env=os.environ | env, umask=umask, stderr=subprocess.PIPE)
        for folder, env, umask in zip(folders, ({}, ELSEWHERE), (0o022, 0o077), strict=True)
    ]
    for build in running:
        _, said = build.communicate(timeout=BUILD_TIMEOUT_S)
        assert build.returncode == 0, said.decode()
    one, other = (next(folder.glob("netplug_*.deb")) for folder in folders)
    return one, other


def test_two_builds_give_the_same_bytes(builds: tuple[Path, Path]) -> None:
    one, other = builds
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.skipif(not which("lintian"), reason="needs lintian (make setup)")
def test_lintian_finds_no_error(builds: tuple[Path, Path]) -> None:
    command = ["lintian", "--allow-root", "--fail-on=error", "--tag-display-limit=0", str(builds[0])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


FILES = (
    "/etc/netplug/netplug.toml",
    "/usr/bin/netplug",
    "/usr/lib/NetworkManager/conf.d/90-netplug.conf",
    "/usr/lib/cni/pynet",
    "/usr/lib/netavark/pynet",
    "/usr/lib/systemd/network/05-netplug.network",
    *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS),
    "/usr/share/bash-completion/completions/netplug",
    "/usr/share/doc/netplug/CHANGELOG.md.gz",
    "/usr/share/doc/netplug/copyright",
    "/usr/share/fish/vendor_completions.d/netplug.fish",
    "/usr/share/man/man1/netplug-attach.1.gz",
    "/usr/share/man/man1/netplug.1.gz",
    "/usr/share/man/man5/netplug.toml.5.gz",
    "/usr/share/zsh/vendor-completions/_netplug",
)


@pytest.fixture
def debian() -> Iterator[Debian]:
    """A machine with this one's programs."""
    with Booted("deb") as machine:
        yield Debian(machine)


def pasted(heading: str) -> list[str]:
    """Return the commands below a heading of the document."""
    part = re.split(r"^##+ ", DOCUMENT.read_text().split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]
    return [line[2:] for block in re.findall(r"```console\n(.*?)```", part, re.DOTALL) for line in block.splitlines()]


@pytest.mark.skipif(bool(unbootable()), reason=unbootable())
def test_machine_installs_uses_and_purges_it_and_is_as_before(debian: Debian, builds: tuple[Path, Path]) -> None:
    machine = debian.machine
    before = debian.state()
    debian.install(builds[0])
    for unit in UNITS:
        assert machine.show(unit, "ActiveState", "UnitFileState") == {
            "ActiveState": "active",
            "UnitFileState": "enabled",
        }
    assert [name for name in FILES if not machine.path(name).exists()] == []
    try_it, clean_up = pasted("Try it"), pasted("Clean up")
    assert len(try_it) == 5
    said = [machine.output("sh", "-c", command) for command in try_it]
    assert "0% packet loss" in said[2]
    assert said[3] == debian.docker.docker("inspect", "-f", "{{.Config.Hostname}}", "web")
    assert "8080->80/tcp" in said[4]
    assert machine.output("/usr/lib/cni/pynet", "info").startswith("{")
    assert "no differences" in machine.output("netplug", "diff")
    for command in clean_up:
        machine.output("sh", "-c", command)
    debian.apt("purge", "netplug")
    assert_same(before, debian.state)
