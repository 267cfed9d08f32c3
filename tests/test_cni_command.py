"""`netplug cni`: the executable that it writes, and the configurations that it prints."""

import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netplug import cni_shim
from netplug.cli import NO, OK, USAGE, cni_executable, main
from netplug.lock import Held, lock_file, turn


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = OK) -> str:
    capsys.readouterr()
    assert main(["cni", *args]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.fixture(params=["Perl", "Python alone"])
def plugin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """The executable of systems with a Perl, and of those without."""
    if request.param != "Perl":
        monkeypatch.setattr(cni_executable, "PERL", tmp_path / "none")
    elif not cni_executable.PERL.exists():
        pytest.skip("there is no Perl here")
    path = run(capsys, "install", "--bin-dir", str(tmp_path / "bin"), "--name", "bluenet", "--run-dir", str(tmp_path))
    return Path(path.strip())


def call(plugin: Path, stdin: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([plugin], input=stdin, env=env, capture_output=True, text=True, check=False)


def test_executable_is_small_and_answers_version_without_anybody(plugin: Path) -> None:
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o755
    assert len(plugin.read_text().splitlines()) < 50
    done = call(plugin, '{ "cniVersion" : "0.3.1" }', CNI_COMMAND="VERSION")
    assert json.loads(done.stdout) == {"cniVersion": "0.3.1", "supportedVersions": list(cni_shim.SPEC_VERSIONS)}
    assert done.stderr == ""
    assert "CNI bluenet plugin" in call(plugin, "").stderr


@pytest.mark.parametrize("text", ["", "{}", '{"cniVersion": 7}', '{"cniVersion": "a\\"b"}'])
def test_version_of_a_strange_configuration_is_the_newest(plugin: Path, text: str) -> None:
    done = call(plugin, text, CNI_COMMAND="VERSION")
    assert json.loads(done.stdout)["cniVersion"] == cni_shim.SPEC_VERSIONS[-1]


@pytest.mark.parametrize("code", [0, 1])
def test_daemon_is_given_all_and_its_answer_is_handed_on(plugin: Path, tmp_path: Path, code: int) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=\u00e4;B=", "CNI_IFNAME": "", "HOME": "/"}
    stdin, stdout, stderr = "{\n" + "\u00e4" * 100_000 + "}\n", "{}\n" * 100_000, "a \u00e4\n"
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / cni_shim.SOCKET))
        listener.listen()
        listener.settimeout(20)
        asked = pool.submit(_answer, listener, f"{code} {len(stdout)}\n{stdout}{stderr}".encode())
        done = call(plugin, stdin, **env)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)
    name, *words, rest = asked.result().decode().split("\0")
    assert (name, rest, words.pop()) == ("bluenet", stdin, "")
    assert sorted(words) == ["CNI_ARGS=A=\u00e4;B=", "CNI_COMMAND=ADD", "CNI_IFNAME="]


def _answer(listener: socket.socket, reply: bytes) -> bytes:
    connection, _ = listener.accept()
    listener.close()
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(20)
        request = stream.read()
        connection.sendall(reply)
    return request


def test_configuration_is_not_lost_with_the_daemon(plugin: Path, tmp_path: Path) -> None:
    """It took the request, and died."""
    plugin.write_text(plugin.read_text().replace(sys.executable, str(tmp_path / "engine")))
    (tmp_path / "engine").write_text('#!/bin/sh\nshift 3\necho "$@" "$CNI_COMMAND" "$(cat)"\n')
    (tmp_path / "engine").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(tmp_path / cni_shim.SOCKET))
        listener.listen()
        listener.settimeout(20)
        asked = pool.submit(_answer, listener, b"")
        done = call(plugin, '{"name": "x"}', CNI_COMMAND="DEL")
        assert asked.result()
    assert done.stdout == 'bluenet DEL {"name": "x"}\n'


def test_netplug_that_is_gone_is_told_in_the_words_of_the_caller(plugin: Path, tmp_path: Path) -> None:
    text, none = plugin.read_text(), str(tmp_path / "none")
    texts = [text.replace(sys.executable, none)]
    if text.startswith(f"#!{cni_executable.PERL}"):
        texts.append(text.replace(str(cni_executable.PYTHON), none))
    for one in texts:
        plugin.write_text(one)
        for env, key in (({"CNI_COMMAND": "ADD"}, "msg"), ({}, "error")):
            done = subprocess.run([plugin, "create"], input="{}", env=env, capture_output=True, text=True, check=False)
            said = json.loads(done.stdout)
            assert (done.returncode, said.get("code")) == (1, 11 if env else None)
            assert "cannot be started: No such file or directory" in said[key]


def test_shim_imports_only_what_the_interpreter_has_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for itself: anything else would cost more than the daemon's whole answer."""
    monkeypatch.setattr(cni_executable, "PERL", tmp_path / "none")
    (tmp_path / "plugin").write_text(cni_executable.executable(tmp_path))
    interpreter = (tmp_path / "plugin").read_text().split()[0].removeprefix("#!")
    more = _imports(interpreter, str(tmp_path / "plugin")) - _imports(interpreter, "-c", "0")
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
