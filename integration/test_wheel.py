"""The wheel in a clean environment, with its dependencies from the index: what `pipx install netplug` gives.

It runs on the interpreter of the tests; PYTHONS="python3.12 python3.13" names others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from harness import Host, Netplug

from netplug import __version__

ROOT = Path(__file__).parents[1]
PYTHONS = os.environ.get("PYTHONS", sys.executable).split()

pytestmark = pytest.mark.timeout(600)  # the index may be slow


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    ignored = ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "cni-shim")
    copytree(ROOT, source, symlinks=True, ignore=ignored)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (made,) = out.glob("netplug-*.whl")
    return made


@pytest.fixture(scope="module", params=PYTHONS)
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the commands."""
    folder = tmp_path_factory.mktemp("venv")
    run(request.param, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    return folder / "bin"


def test_a_wheel_brings_all_that_it_needs(installed: Path) -> None:
    run(installed / "python", "-m", "pip", "check")
    assert run(installed / "netplug", "version") == f"netplug {__version__}"
    assert json.loads(run(installed / "netplug-cni", "info"))["version"] == __version__


def test_an_installed_daemon_connects_namespaces(installed: Path, tmp_path: Path) -> None:
    class Installed(Netplug):
        executable = installed / "netplug"

    with Host("wheel") as host:
        netplug = Installed(host, "--docker-host", "none")
        assert json.loads(netplug.cli("version", "--json")) == {"version": __version__, "daemon": __version__}
        netplug.cli("network", "create", "blue", "--subnet", "10.91.0.0/24")
        host.run(["ip", "netns", "add", "box"])
        assert json.loads(netplug.cli("attach", "blue", "--netns", "box"))["addresses"] == ["10.91.0.2/24"]
        host.run(["ip", "netns", "exec", "box", "busybox", "ping", "-c", "1", "-W", "2", "10.91.0.1"])
        assert netplug.drift() == ""
        assert netplug.cli("graph").count("blue") == 1
        netplug.cli("cni", "install", "--bin-dir", str(tmp_path))
        assert (tmp_path / "pynet").exists()
        netplug.cli("detach", "blue", "--netns", "box")
        netplug.cli("network", "rm", "blue")
        netplug.stop()
