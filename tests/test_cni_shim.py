"""The CNI executable, in C and in Python: one protocol, and nothing that a call was given is lost."""

import asyncio
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from shutil import copy, which

import pytest
from test_cni_server import served

from netplug.cli import OK, cni_executable, main
from netplug.frontends.cni import shim

REAL = sys.executable
ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "packaging" / "cni" / "shim.c"
CONFIG = '{"cniVersion": "0.4.0", "name": "blue"}'
DEADLINE_S = 20


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as it is in this checkout, without a warning of the compiler's."""
    if which("cc") is None:
        pytest.skip("there is no C compiler here")
    path = tmp_path_factory.mktemp("program") / "cni-shim"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", path, SOURCE], check=True)
    return path


@dataclass(frozen=True)
class Plugin:
    """An installed executable. `engine`: the Python that it becomes without a daemon."""

    path: Path
    run_dir: Path
    engine: Path

    def __call__(self, stdin: str = CONFIG, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [self.path, *args]
        return subprocess.run(
            command, input=stdin, env=env, capture_output=True, text=True, check=False, timeout=DEADLINE_S
        )


@pytest.fixture(params=["C", "Python"])
def plugin(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Plugin:
    """The executable that is installed if the program was built, and if not. The engine prints what it was given."""
    built = request.getfixturevalue("program") if request.param == "C" else tmp_path / "none"
    monkeypatch.setattr(cni_executable, "PROGRAM", built)
    engine = tmp_path / "engine"
    engine.write_text(f'#!/bin/sh\nshift 3\necho "$@;$CNI_COMMAND;${shim.LINE};$(cat)"\n')
    engine.chmod(0o755)
    monkeypatch.setattr(cni_executable, "PYTHON", Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(engine))
    assert (
        main(["cni", "install", "--bin-dir", str(tmp_path / "bin"), "--name", "bluenet", "--run-dir", str(tmp_path)])
        == OK
    )
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes().startswith(b"\x7fELF" if request.param == "C" else b"#!")
    return Plugin(path, tmp_path, engine)


@contextmanager
def daemon(run_dir: Path, serve: Callable[[socket.socket], bytes]) -> Iterator["Future[bytes]"]:
    """Listen as the daemon does, and serve one connection; yield what that returns."""
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(run_dir / shim.SOCKET))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield pool.submit(_serve, listener, serve)
    (run_dir / shim.SOCKET).unlink()


def _serve(listener: socket.socket, serve: Callable[[socket.socket], bytes]) -> bytes:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(DEADLINE_S)
        return serve(connection)


def _answering(reply: bytes) -> Callable[[socket.socket], bytes]:
    """Read a request up to its end, and answer it."""

    def serve(connection: socket.socket) -> bytes:
        with connection.makefile("rb") as stream:
            request = stream.read()
        connection.sendall(reply)
        return request

    return serve


def _reply(code: int, stdout: str, stderr: str = "") -> bytes:
    return f"{code} {len(stdout.encode())}\n{stdout}{stderr}".encode()


def test_executable_answers_version_without_anybody(plugin: Plugin) -> None:
    assert stat.S_IMODE(plugin.path.stat().st_mode) == 0o755
    done = plugin('{ "cniVersion" : "0.3.1" }', CNI_COMMAND="VERSION")
    assert json.loads(done.stdout) == {"cniVersion": "0.3.1", "supportedVersions": list(shim.SPEC_VERSIONS)}
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"cniVersion"', '{"cniVersion": 7}', '{"cniVersion": ""}', '{"cniVersion": "a\\"b"}', "\0\0"]
)
def test_version_of_a_strange_configuration_is_the_newest(plugin: Plugin, text: str) -> None:
    done = plugin(text, CNI_COMMAND="VERSION")
    assert json.loads(done.stdout)["cniVersion"] == shim.SPEC_VERSIONS[-1]


@pytest.mark.parametrize("args", [(), ("info",)])
def test_plugin_tells_of_itself(plugin: Plugin, args: tuple[str, ...]) -> None:
    done = plugin("", *args)
    assert json.loads(done.stdout) == {"version": shim.VERSION, "api_version": shim.NETAVARK_API}
    assert done.stderr.splitlines() == [
        f"CNI bluenet plugin v{shim.VERSION}",
        "CNI protocol versions supported: " + ", ".join(shim.SPEC_VERSIONS),
    ]


@pytest.mark.parametrize("code", [0, 1, 255])
def test_daemon_is_given_all_and_its_answer_is_handed_on(plugin: Plugin, code: int) -> None:
    env = {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=\u00e4;B=", "CNI_IFNAME": "", "HOME": "/"}
    stdin, stdout, stderr = "{\n" + "\u00e4" * 100_000 + "}\n", "{}\n" * 100_000, "a \u00e4\n"
    with daemon(plugin.run_dir, _answering(_reply(code, stdout, stderr))) as asked:
        done = plugin(stdin, **env)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)
    name, *words, rest = asked.result().decode().split("\0")
    assert (name, rest, words.pop()) == ("bluenet", stdin, "")
    assert sorted(words) == ["CNI_ARGS=A=\u00e4;B=", "CNI_COMMAND=ADD", "CNI_IFNAME="]


@pytest.mark.parametrize("stdin", ["", "not JSON", "a\0b\0\0c"])
def test_configuration_is_the_daemons_to_judge(plugin: Plugin, stdin: str) -> None:
    """And so are variables that are missing."""
    with daemon(plugin.run_dir, _answering(_reply(1, '{"code": 6}\n'))) as asked:
        done = plugin(stdin, CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout) == (1, '{"code": 6}\n')
    assert asked.result().decode() == f"bluenet\0CNI_COMMAND=ADD\0\0{stdin}"


def test_netavarks_arguments_become_words(plugin: Plugin) -> None:
    with daemon(plugin.run_dir, _answering(_reply(0, "{}"))) as asked:
        assert plugin(CONFIG, "setup", "/run/netns/a b").stdout == "{}"
    words = f"bluenet\0NETAVARK_COMMAND=setup\0NETAVARK_NETNS=/run/netns/a b\0\0{CONFIG}"
    assert asked.result().decode() == words


def test_environment_names_another_daemon(plugin: Plugin, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with daemon(tmp_path / "other", _answering(_reply(0, "other"))):
        assert plugin(CNI_COMMAND="ADD", NETPLUG_RUN_DIR=str(tmp_path / "other")).stdout == "other"
    for unusable in (str(tmp_path / "nobody"), "/x" * 100):
        assert plugin(CNI_COMMAND="ADD", NETPLUG_RUN_DIR=unusable).stdout == f"bluenet;ADD;{unusable};{CONFIG}\n"


def test_links_and_copies_are_the_same_plugin(plugin: Plugin, tmp_path: Path) -> None:
    """Also alone in another folder, as in an image."""
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "linked").symlink_to(plugin.path)
    copy(plugin.path, tmp_path / "image" / "copied")
    plugin.path.rename(tmp_path / "image" / "moved")
    (tmp_path / "image" / "linked").unlink()
    (tmp_path / "image" / "linked").symlink_to("moved")
    for name in ("linked", "copied", "moved"):
        done = Plugin(tmp_path / "image" / name, tmp_path, plugin.engine)(CNI_COMMAND="ADD")
        assert done.stdout == f"{name};ADD;{tmp_path};{CONFIG}\n"


# Without a daemon, or with one that dies


def test_call_that_no_daemon_answers_is_done_all_the_same(plugin: Plugin) -> None:
    stdin = CONFIG + "\u00e4" * 100_000
    assert plugin(stdin, CNI_COMMAND="DEL").stdout == f"bluenet;DEL;{plugin.run_dir};{stdin}\n"
    assert plugin(CONFIG, "create", "x").stdout == f"bluenet create x;;{plugin.run_dir};{CONFIG}\n"
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(plugin.run_dir / shim.SOCKET))
    assert plugin(CNI_COMMAND="DEL").stdout == f"bluenet;DEL;{plugin.run_dir};{CONFIG}\n"


@pytest.mark.parametrize("said", [b"", b"0", b"0 7\n", b"0 7\n{}", b"x y\n", b"0 \n", b"\n\n"])
def test_call_is_not_lost_with_a_daemon_that_dies_over_it(plugin: Plugin, said: bytes) -> None:
    with daemon(plugin.run_dir, _answering(said)) as asked:
        done = plugin(CNI_COMMAND="DEL")
        assert asked.result()
    assert (done.stdout, done.returncode) == (f"bluenet;DEL;{plugin.run_dir};{CONFIG}\n", 0)


def test_call_is_not_lost_with_a_daemon_that_dies_while_it_is_told(plugin: Plugin) -> None:
    stdin = CONFIG + " " * 3_000_000
    with daemon(plugin.run_dir, lambda connection: connection.recv(10)):
        done = plugin(stdin, CNI_COMMAND="DEL")
    assert (done.stdout, done.returncode) == (f"bluenet;DEL;{plugin.run_dir};{stdin}\n", 0)


def test_answer_to_a_request_that_is_not_heard_to_the_end_counts(plugin: Plugin) -> None:
    def serve(connection: socket.socket) -> bytes:
        begun = connection.recv(10)
        connection.sendall(_reply(1, "too much"))
        return begun

    with daemon(plugin.run_dir, serve):
        done = plugin(CONFIG + " " * 3_000_000, CNI_COMMAND="DEL")
    assert (done.stdout, done.returncode) == ("too much", 1)


def test_netplug_that_is_gone_is_told_in_the_words_of_the_caller(plugin: Plugin) -> None:
    plugin.engine.unlink()
    words = f"no netplug daemon answers, and {plugin.engine} cannot be started: No such file or directory"
    done = plugin(CNI_COMMAND="ADD")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"cniVersion": "0.4.0", "code": 11, "msg": words})
    done = plugin(CONFIG, "create")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"error": words})


# The other end


async def test_daemon_reads_what_the_plugin_writes_and_the_reverse(plugin: Plugin) -> None:
    async with served(plugin.run_dir / shim.SOCKET):
        config = '{"cniVersion": "1.1.0", "name": "blue", "type": "bluenet"}'
        done = await asyncio.to_thread(plugin, config, CNI_COMMAND="STATUS")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        for text, code in (("", 6), ('{"cniVersion": "7", "name": "blue"}', 1), ('{"cniVersion": "1.1.0"}', 7)):
            done = await asyncio.to_thread(plugin, text, CNI_COMMAND="STATUS")
            assert (done.returncode, json.loads(done.stdout)["code"]) == (1, code)
        done = await asyncio.to_thread(plugin, config, CNI_COMMAND="ADD", CNI_IFNAME="eth0")
        assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 4)
        done = await asyncio.to_thread(plugin, "{", "create")
        assert (done.returncode, json.loads(done.stdout).keys()) == (1, {"error"})


def test_netplug_without_a_daemon_reads_what_the_plugin_passes_on(plugin: Plugin) -> None:
    plugin.engine.write_text(f'#!/bin/sh\nexec "{REAL}" "$@"\n')
    done = plugin(CNI_COMMAND="STATUS", NETPLUG_STATE_DIR="/proc/nowhere")
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 11)
    done = plugin("{}", "create", NETPLUG_STATE_DIR="/proc/nowhere")
    assert (done.returncode, json.loads(done.stdout).keys()) == (1, {"error"})


# Files and signals


def test_stdin_that_cannot_be_read_is_told(plugin: Plugin) -> None:
    with Path(os.devnull).open("wb") as unreadable:
        done = subprocess.run(
            [plugin.path], env={"CNI_COMMAND": "ADD"}, stdin=unreadable, capture_output=True, text=True, check=False
        )
    words = "stdin cannot be read: Bad file descriptor"
    assert json.loads(done.stdout) == {"cniVersion": "1.1.0", "code": shim.IO_FAILURE, "msg": words}
    assert done.returncode == 1


def test_answer_that_nobody_reads_is_a_failure(plugin: Plugin) -> None:
    unread, stdout = os.pipe()
    os.close(unread)
    try:
        for args, env, reply in (((), {"CNI_COMMAND": "ADD"}, True), (("info",), {}, False)):
            with daemon(plugin.run_dir, _answering(_reply(0, "{}"))) if reply else nullcontext():
                done = subprocess.run(
                    [plugin.path, *args], input=b"", env=env, stdout=stdout, stderr=subprocess.PIPE, check=False
                )
            assert done.returncode == 1
    finally:
        os.close(stdout)


def test_engine_is_given_no_more_files_than_the_plugin(plugin: Plugin) -> None:
    plugin.engine.write_text("#!/bin/sh\nexec ls /proc/self/fd\n")
    usual = subprocess.run([plugin.engine], input="", capture_output=True, text=True, check=True)
    with daemon(plugin.run_dir, _answering(b"")):
        assert plugin(CNI_COMMAND="ADD").stdout == usual.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_runtime_ends_a_call_that_takes_too_long(plugin: Plugin, number: signal.Signals) -> None:
    """The daemon sees the end of it."""

    def serve(connection: socket.socket) -> bytes:
        end = select.poll()
        end.register(connection, 0)
        with connection.makefile("rb") as stream:
            stream.read()
        os.kill(_peer(connection), number)
        return b"ended" if end.poll(DEADLINE_S * 1000) == [(connection.fileno(), select.POLLHUP)] else b""

    with daemon(plugin.run_dir, serve) as ended:
        done = plugin(CNI_COMMAND="ADD")
        assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")
        assert ended.result() == b"ended"


def test_call_that_is_stopped_goes_on_where_it_was(plugin: Plugin) -> None:
    def serve(connection: socket.socket) -> bytes:
        pid = _peer(connection)
        with connection.makefile("rb") as stream:
            request = stream.read()
        for part in (b"0 ", b"4\n", b"{}", b"\n\nerr"):
            os.kill(pid, signal.SIGSTOP)
            _until_stopped(pid)
            os.kill(pid, signal.SIGCONT)
            connection.sendall(part)
        return request

    with daemon(plugin.run_dir, serve):
        done = plugin(CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{}\n\n", "err")


def _peer(connection: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _until_stopped(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)


# How it is installed


@pytest.mark.parametrize("content", [b"", b"#!/bin/false\n", b"\x7fELF of another machine"])
def test_program_that_does_not_run_here_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "cni-shim").write_bytes(content)
    (tmp_path / "cni-shim").chmod(0o755)
    monkeypatch.setattr(cni_executable, "PROGRAM", tmp_path / "cni-shim")
    assert cni_executable.executable(tmp_path).startswith(b"#!")


@pytest.mark.parametrize("folder", ["with space", "long" * 40])
def test_script_runs_whatever_its_interpreter_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """The kernel takes neither spaces nor long paths in a first line."""
    interpreter = tmp_path / folder / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(cni_executable, "PYTHON", tmp_path / "none")
    monkeypatch.setattr(sys, "executable", str(interpreter))
    (tmp_path / "plugin").write_text(cni_executable.script(tmp_path))
    (tmp_path / "plugin").chmod(0o755)
    done = Plugin(tmp_path / "plugin", tmp_path, interpreter)(CNI_COMMAND="VERSION")
    assert (json.loads(done.stdout)["cniVersion"], done.stderr) == ("0.4.0", "")


def test_script_imports_only_what_the_interpreter_has_built_in(tmp_path: Path) -> None:
    """But for the module: anything else would cost more than the daemon's whole answer."""
    (tmp_path / "plugin").write_text(cni_executable.script(tmp_path))
    interpreter = (tmp_path / "plugin").read_text().split()[0].removeprefix("#!")
    more = _imports(interpreter, str(tmp_path / "plugin")) - _imports(interpreter, "-c", "0")
    assert "shim" in more
    assert more <= {"shim", "_socket", "__future__"}, more


def _imports(interpreter: str, *args: str) -> set[str]:
    """Return the modules that a run imports."""
    command = [interpreter, "-IS", "-X", "importtime", *args]
    env = os.environ | {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(command, input="{}", env=env, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}
