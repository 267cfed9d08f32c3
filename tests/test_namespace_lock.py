"""One daemon a network namespace, and nobody keeps it from starting who could run none."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from living import Living, a_namespace, settings_in

from netplug.daemon.lock import Held
from netplug.daemon.namespace_lock import claim_namespace

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
NOBODY = 65534
NET_ADMIN = 12
CODE = """
import ctypes, os, socket, sys
name, user, cap, listens = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX)
if int(user):
    os.setuid(int(user))
if int(cap) >= 0:
    ctypes.CDLL(None).prctl(24, int(cap), 0, 0, 0)  # PR_CAPBSET_DROP, of effect at the next execve
    if sys.stdin.readline() == "again\\n":
        os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], name, user, "-1", listens])
sock.bind("\\0" + name)
if listens == "True":
    sock.listen(1)
print(1, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(name: str, *, user: int = 0, without: int = -1, listens: bool = True) -> Iterator[int]:
    """Have another process hold the abstract socket."""
    arguments = [name.strip("\0"), str(user), str(without), str(listens)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CODE, *arguments], text=True, **pipes) as process:  # type: ignore[call-overload]
        if without >= 0:
            process.stdin.write("again\n")
            process.stdin.flush()
        assert process.stdout.readline() == "1\n"
        yield process.pid
        process.stdin.close()


def test_it_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    name = a_namespace()
    for locks in (tmp_path, tmp_path / "another"):  # as two mount namespaces see it
        with claim_namespace(name, tmp_path), pytest.raises(Held, match=rf"process {os.getpid()} \("):
            claim_namespace(name, locks)
    claim_namespace(name, tmp_path).close()


def test_folder_that_cannot_be_made_leaves_the_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = a_namespace()
    with claim_namespace(name, tmp_path / "file"), pytest.raises(Held):
        claim_namespace(name, tmp_path / "file")


@NEEDS_ROOT
@pytest.mark.parametrize(
    "stranger",
    [
        lambda name: holder(name, user=NOBODY),
        lambda name: holder(name, user=NOBODY, listens=False),
        lambda name: holder(name, without=NET_ADMIN),
    ],
    ids=["user", "user that does not answer", "root in a container"],
)
def test_socket_of_who_can_run_no_daemon_prevents_nothing(
    tmp_path: Path, stranger: Callable[..., Iterator[int]]
) -> None:
    name = a_namespace()
    with stranger(name):  # type: ignore[attr-defined]
        with claim_namespace(name, tmp_path), pytest.raises(Held, match=rf"process {os.getpid()} \("):
            claim_namespace(name, tmp_path)
        daemon = Living(settings_in(tmp_path), namespace=name).start()
        daemon.stop()
        assert daemon.error is None


def test_another_daemon_is_named(tmp_path: Path) -> None:
    name = a_namespace()
    with holder(name) as pid, pytest.raises(Held, match=rf"process {pid} \("):
        claim_namespace(name, tmp_path)
