"""`netplug cni`: the executable that it writes, and the configurations that it prints."""

import json
import stat
from pathlib import Path

import pytest

from netplug.cli import NO, OK, USAGE, main
from netplug.daemon.lock import Held, exclusive, lock_file
from netplug.frontends.cni import shim


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = OK) -> str:
    capsys.readouterr()
    assert main(["cni", *args]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_installing_again_replaces_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pynet").write_text("old")
    assert run(capsys, "install", "--bin-dir", str(tmp_path)) == f"{tmp_path}/pynet\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "pynet"]
    assert stat.S_IMODE((tmp_path / "pynet").stat().st_mode) == 0o755


def test_wrong_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a/b" in run(capsys, "install", "--bin-dir", str(tmp_path), "--name", "a/b", code=USAGE)
    assert "9.9" in run(capsys, "config", "blue", "--cni-version", "9.9", code=USAGE)
    (tmp_path / "file").write_text("")
    assert "file" in run(capsys, "install", "--bin-dir", str(tmp_path / "file"), code=NO)


@pytest.mark.parametrize("version", shim.SPEC_VERSIONS)
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
    with lock_file(path), pytest.raises(Held), exclusive(path, 0.02):
        pytest.fail("two at once")
    with exclusive(path, 0), pytest.raises(Held):
        lock_file(path)


def test_configuration_goes_to_a_file_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "blue.conflist"
    arguments = ("config", "--out", str(path), "--run-dir", str(tmp_path / "nowhere"))
    assert main(["cni", *arguments, "blue!"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert main(["cni", *arguments, "blue"]) == 0
    assert json.loads(path.read_text())["name"] == "blue"
    assert path.stat().st_mode & 0o777 == 0o644
    assert main(["cni", "config", "blue", "--out", str(path / "x.conflist")]) != 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_of_a_configuration_is_made(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "net.d" / "blue.conflist"
    assert main(["cni", "config", "blue", "--out", str(path), "--run-dir", str(tmp_path / "nowhere")]) == 0
    assert json.loads(path.read_text())["name"] == "blue"
