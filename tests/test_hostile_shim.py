"""The CNI executable with what is wrong in stdin, arguments, environment and answers; in C with sanitizers."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import IO

import pytest
from hostile import TEXTS, often, raw_texts
from hypothesis import example, given
from hypothesis import strategies as st

from netplug.cli import OK, cni_executable, main

SOURCE = Path(__file__).parent.parent / "packaging" / "cni" / "shim.c"
FLAGS = ("-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FAILED = 99
"""Exit code of a program that a sanitizer ends."""
CONFIG = b'{"cniVersion": "0.4.0", "name": "blue"}'
WHOLE = re.compile(rb"([0-9]{1,3}) ([0-9]{1,10})\n")
WAY = b"engine says "
DEADLINE_S = 30


@dataclass
class Scene:
    """An executable, and a daemon that answers `reply`: after the whole request, or before it (`rude`)."""

    path: Path
    reply: bytes = b""
    pieces: int = 1
    rude: bool = False
    asked: list[bytes] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                try:
                    request = b"" if self.rude else stream.read()
                    self.asked.append(request)
                    size = max(1, len(self.reply) // self.pieces)
                    for at in range(0, len(self.reply), size):
                        connection.sendall(self.reply[at : at + size])
                except OSError:
                    pass

    def run(
        self, stdin: bytes, *args: bytes, env: dict[bytes, bytes], stdout: IO[bytes] | int = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        self.asked.clear()
        env = {b"ASAN_OPTIONS": b"detect_leaks=0:exitcode=%d" % FAILED, **env}
        done = subprocess.run(
            [self.path, *args],
            input=stdin,
            env=env,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            timeout=DEADLINE_S,
        )
        for sign in (b"Sanitizer", b"runtime error", b"Traceback"):
            assert sign not in done.stderr, done.stderr.decode(errors="replace")
        assert done.returncode >= 0
        return done


def compiled(target: Path) -> bool:
    return which("cc") is not None and not subprocess.run(["cc", *FLAGS, "-o", target, SOURCE], check=False).returncode


@pytest.fixture(scope="module", params=["C", "Python"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("shim")
    built = folder / "built"
    if request.param == "C" and not compiled(built):
        pytest.skip("there is no C compiler with sanitizers here")
    engine = folder / "engine"
    engine.write_text(f"#!/bin/sh\nshift 3\nprintf '{WAY.decode()}'\nexec cat\n")
    engine.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cni_executable, "PROGRAM", built)
        patch.setattr(cni_executable, "PYTHON", Path(sys.executable).resolve())
        patch.setattr(sys, "executable", str(engine))
        given = ["--bin-dir", str(folder / "bin"), "--name", "bluenet", "--run-dir", str(folder)]
        assert main(["cni", "install", *given]) == OK
    it = Scene(folder / "bin" / "bluenet")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "cni.sock"))
        listener.listen(64)
        threading.Thread(target=it.serve, args=(listener,), daemon=True).start()
        yield it
        listener.shutdown(socket.SHUT_RDWR)


def octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"")


WORDS = st.one_of(st.sampled_from(TEXTS).map(octets), st.binary(max_size=40).map(lambda it: it.replace(b"\0", b"")))
HUGE = b"A=" + b"x" * 100_000
NAMES = (
    b"CNI_ARGS",
    b"CNI_NETNS",
    b"CNI_IFNAME",
    b"CNI_CONTAINERID",
    b"CNI_PATH",
    b"CNI_",
    b"CNI_X\xff",
    b"CNIX",
    b"\xff",
)
STDIN = st.one_of(raw_texts(CONFIG), st.binary(max_size=300), st.integers(0, 200_000).map(lambda size: b"\0{" * size))
ENV = st.dictionaries(st.sampled_from(NAMES), WORDS | st.just(HUGE), max_size=5)


@often(40)
@given(STDIN, ENV, st.sampled_from([b"ADD", b"DEL", b"x", b"\xff\xfe", b"ADD\n", HUGE]))
def test_runtime_says_anything(scene: Scene, stdin: bytes, env: dict[bytes, bytes], command: bytes) -> None:
    """The daemon gets it as it is, and its answer is handed on."""
    scene.reply, scene.pieces, scene.rude = b"7 2\n{}x", 1, False
    done = scene.run(stdin, env={**env, b"CNI_COMMAND": command})
    assert (done.returncode, done.stdout, done.stderr) == (7, b"{}", b"x")
    (request,) = scene.asked
    head, _, rest = request.partition(b"\0\0")
    assert rest == stdin
    words = {b"%s=%s" % pair for pair in env.items() if pair[0].startswith(b"CNI_")}
    assert set(head.split(b"\0")) == words | {b"bluenet", b"CNI_COMMAND=" + command}


@often(20)
@given(STDIN, st.lists(WORDS | st.just(HUGE), min_size=2, max_size=4))
def test_netavark_says_anything(scene: Scene, stdin: bytes, args: list[bytes]) -> None:
    scene.reply, scene.pieces, scene.rude = b"7 2\n{}x", 1, False
    done = scene.run(stdin, *args, env={})
    assert (done.returncode, done.stdout) == (7, b"{}")
    words = b"NETAVARK_COMMAND=%s\0NETAVARK_NETNS=%s" % (args[0], args[-1])
    assert scene.asked == [b"bluenet\0" + words + b"\0\0" + stdin]


@often(20)
@given(STDIN)
def test_version_of_anything_is_told(scene: Scene, stdin: bytes) -> None:
    done = scene.run(stdin, env={b"CNI_COMMAND": b"VERSION"})
    assert done.returncode == 0
    assert re.fullmatch(rb'\{"cniVersion": "[0-9A-Za-z.]{1,31}", "supportedVersions": \[.*\]\}\n', done.stdout)


NUMBERS = st.sampled_from(
    [b"0", b"1", b"255", b"256", b"1000", b"-1", b"+2", b" 2", b"", b"0x2", b"9" * 10, b"9" * 30, b"9" * 5000]
)
REPLIES = st.one_of(
    st.binary(max_size=40),
    st.tuples(
        NUMBERS,
        st.sampled_from([b" ", b"  ", b"\t", b"\0", b""]),
        NUMBERS,
        st.sampled_from([b"\n", b"", b" \n", b"\r\n"]),
    )
    .map(b"".join)
    .flatmap(lambda head: st.binary(max_size=9).map(lambda rest: head + rest)),
    st.integers(0, 300_000).map(lambda size: b"0 %d\n%s" % (size, b"x" * size)),
)


@often(70)
@given(REPLIES, st.sampled_from([1, 2, 50]), st.booleans())
@example(b"0 " + b"9" * 5000 + b"\n", 1, False)
@example(b"0 -1\n{}", 1, False)
@example(b"-1 2\n{}", 1, False)
@example(b"256 2\n{}", 1, False)  # would be a success
def test_daemon_answers_anything(scene: Scene, reply: bytes, pieces: int, rude: bool) -> None:
    """A whole answer is handed on. With any other the call is done without a daemon, and nothing of stdin is lost."""
    scene.reply, scene.pieces, scene.rude = reply, pieces, rude
    done = scene.run(CONFIG, env={b"CNI_COMMAND": b"DEL"})
    found = WHOLE.match(reply)
    code, length = map(int, found.groups()) if found else (0, 0)
    rest = reply[found.end() :] if found else b""
    if found and code < 256 and length <= len(rest):
        said = (code, rest[:length], rest[length:])
        alone = (0, WAY + CONFIG, b"")
        assert (done.returncode, done.stdout, done.stderr) in ([said, alone] if rude else [said])
    else:
        assert (done.returncode, done.stdout) == (0, WAY + CONFIG)


def test_answer_that_finds_no_room_is_a_failure(scene: Scene) -> None:
    scene.reply, scene.pieces, scene.rude = b"0 2\n{}", 1, False
    with Path("/dev/full").open("wb") as full:
        done = scene.run(CONFIG, env={b"CNI_COMMAND": b"ADD"}, stdout=full)
    assert (done.returncode, done.stderr) == (1, b"")
