"""The Debian package: built twice, checked, installed on a machine with systemd and Docker, used, and purged."""

import os
import subprocess
from pathlib import Path
from shutil import which

import pytest
from harness import Booted, unbootable
from harness.packaged import BUILD, Debian, installs_uses_and_purges

BUILD_TIMEOUT_S = 300
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


@pytest.mark.skipif(bool(unbootable()), reason=unbootable())
def test_machine_installs_uses_and_purges_it_and_is_as_before(builds: tuple[Path, Path]) -> None:
    """With the programs of this machine; `make deb-test` does the same with Debian 12 and 13."""
    with Booted("deb") as machine:
        installs_uses_and_purges(Debian(machine), builds[0])
