"""Locks and socket paths: the live are respected, the dead are replaced."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplug.daemon.lock import ClaimedSocket, Held, claim_socket, lock_file, release_socket
from netplug.errors import NetplugError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "n.sock"


@pytest.fixture
def claimed(path: Path) -> Iterator[ClaimedSocket]:
    claimed = claim_socket(path, 0o600)
    yield claimed
    claimed.close()


def dead_socket(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


def test_a_lock_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/netplug", "serve", "--store", "a b"])
    path = tmp_path / "state" / "lock"
    with lock_file(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(Held) as caught:
            lock_file(path)
    assert caught.value.kind == "unavailable"
    holder = f"process {os.getpid()} (netplug serve --store 'a b')"
    assert caught.value.message == f"state directory {path.parent} is in use by {holder}"
    assert "--state-dir" in caught.value.hint


def test_a_released_lock_can_be_taken_again(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "lock")
    lock.release()
    lock.release()
    with lock_file(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_bytes() == b""


def test_the_text_of_a_dead_holder_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 (netplug serve and more)")
    with lock_file(tmp_path / "lock") as lock:
        assert lock.path.read_text().startswith(f"process {os.getpid()} (")


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, netplug.daemon.lock\n"
        "lock = netplug.daemon.lock.lock_file(pathlib.Path(sys.argv[1]))\n"
        "print(1, flush=True)\n"
        "input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(Held, match=f"process {child.pid} "):
            lock_file(tmp_path / "lock")
        child.kill()
    lock_file(tmp_path / "lock").release()


def test_a_lock_file_that_cannot_be_opened_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetplugError, match=r"file/lock cannot be opened: .*/file is not a directory"):
        lock_file(tmp_path / "file" / "lock")


def test_a_claimed_socket_answers_and_has_its_mode(path: Path, claimed: ClaimedSocket) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not claimed.getblocking()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    release_socket(claimed)
    assert not path.exists()
    assert claimed.fileno() == -1


def test_the_mode_is_what_was_asked_for_whatever_the_mask(path: Path) -> None:
    before = os.umask(0)
    try:
        release = claim_socket(path, 0o660)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    release_socket(release)


def test_the_socket_of_a_live_process_is_left_and_named(path: Path, claimed: ClaimedSocket) -> None:
    with pytest.raises(Held) as caught:
        claim_socket(path, 0o600)
    assert caught.value.kind == "unavailable"
    assert caught.value.message == f"socket {path} is in use by process {os.getpid()}"
    assert path.is_socket()


def test_a_busy_listener_is_alive(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(Held, match="busy"):
            claim_socket(path, 0o600)
    assert path.is_socket()


def test_a_datagram_socket_is_alive(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(Held, match="another type"):
            claim_socket(path, 0o600)


def test_a_dead_socket_is_replaced(path: Path) -> None:
    dead_socket(path)
    release_socket(claim_socket(path, 0o600))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_not_a_socket_is_left(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        dead_socket(path.with_name("other"))
        path.symlink_to("other")
    with pytest.raises(NetplugError, match="exists and is not a socket"):
        claim_socket(path, 0o600)
    assert os.path.lexists(path)


def test_a_socket_of_a_successor_is_left(path: Path, claimed: ClaimedSocket) -> None:
    path.unlink()
    successor = claim_socket(path, 0o600)
    release_socket(claimed)
    assert path.is_socket()
    release_socket(successor)
    assert not path.exists()


def test_releasing_what_is_gone_is_no_error(path: Path, claimed: ClaimedSocket) -> None:
    path.unlink()
    path.parent.rmdir()
    release_socket(claimed)
    assert claimed.fileno() == -1


def test_a_path_beyond_the_limit_is_refused_with_it(tmp_path: Path) -> None:
    with pytest.raises(NetplugError, match=r"is \d+ bytes long, the limit is 107"):
        claim_socket(tmp_path / ("x" * 108), 0o600)


def test_a_directory_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetplugError, match=r"socket .* cannot be created: .*/file is not a directory"):
        claim_socket(tmp_path / "file" / "n.sock", 0o600)
