"""`netplug cni`: the executable that it writes, and the configurations that it prints."""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from netplug import cni_shim
from netplug.cli import NO, OK, USAGE, main
from netplug.lock import Held, lock_file, turn


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = OK) -> str:
    capsys.readouterr()
    assert main(["cni", *args]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.fixture
def plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = run(capsys, "install", "--bin-dir", str(tmp_path / "bin"), "--name", "bluenet", "--run-dir", str(tmp_path))
    return Path(path.strip())


def call(plugin: Path, stdin: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([plugin], input=stdin, env=env, capture_output=True, text=True, check=False)


def test_executable_is_small_and_answers_version_without_anybody(plugin: Path) -> None:
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
    first, *rest = plugin.read_text().splitlines()
    assert first.endswith(" -IS")
    assert len(rest) < 10
    done = call(plugin, '{ "cniVersion" : "0.3.1" }', CNI_COMMAND="VERSION")
    assert json.loads(done.stdout) == {"cniVersion": "0.3.1", "supportedVersions": list(cni_shim.SPEC_VERSIONS)}
    assert done.stderr == ""
    assert "CNI bluenet plugin" in call(plugin, "").stderr


@pytest.mark.parametrize("text", ["", "{}", '{"cniVersion": 7}', '{"cniVersion": "a\\"b"}'])
def test_version_of_a_strange_configuration_is_the_newest(plugin: Path, text: str) -> None:
    done = call(plugin, text, CNI_COMMAND="VERSION")
    assert json.loads(done.stdout)["cniVersion"] == cni_shim.SPEC_VERSIONS[-1]


def test_executable_imports_only_what_the_interpreter_has_built_in(plugin: Path) -> None:
    """But for the shim itself: anything else would cost more than the daemon's whole answer."""
    interpreter = plugin.read_text().split()[0].removeprefix("#!")
    more = _imports(interpreter, str(plugin)) - _imports(interpreter, "-c", "0")
    assert "cni_shim" in more
    assert more <= {"cni_shim", "_socket", "__future__"}, more


def _imports(interpreter: str, *args: str) -> set[str]:
    """Return the modules that a run imports."""
    command = [interpreter, "-IS", "-X", "importtime", *args]
    env = os.environ | {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(command, input="{}", env=env, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def test_installing_again_replaces_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pynet").write_text("old")
    assert run(capsys, "install", "--bin-dir", str(tmp_path)) == f"{tmp_path}/pynet\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "pynet"]
    assert "cni_shim" in (tmp_path / "pynet").read_text()


def test_wrong_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a/b" in run(capsys, "install", "--bin-dir", str(tmp_path), "--name", "a/b", code=USAGE)
    assert "9.9" in run(capsys, "config", "blue", "--cni-version", "9.9", code=USAGE)
    (tmp_path / "file").write_text("")
    assert "file" in run(capsys, "install", "--bin-dir", str(tmp_path / "file"), code=NO)


@pytest.mark.parametrize("version", cni_shim.SPEC_VERSIONS)
def test_conflist_without_a_daemon_takes_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    args = ("config", "blue", "--cni-version", version, "--type", "bluenet", "--run-dir", str(tmp_path))
    listed = json.loads(run(capsys, *args))
    assert (listed["cniVersion"], listed["name"]) == (version, "blue")
    (plugin,) = listed["plugins"]
    assert plugin["type"] == "bluenet"
    assert plugin["capabilities"]["portMappings"] is True


def test_turns_are_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with lock_file(path), pytest.raises(Held), turn(path, 0.02):
        pytest.fail("two at once")
    with turn(path, 0), pytest.raises(Held):
        lock_file(path)
