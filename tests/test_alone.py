"""CNI calls without a daemon: they stand in line, and wait without haste."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netplug import working_alone
from netplug.alone import Line
from netplug.cni_shim import SOCKET
from netplug.frontends.cni_wire import Reply
from netplug.lock import lock_file

CALL = b"pynet\0CNI_COMMAND=STATUS\0\0{}"
DEADLINE_S = 20


@contextmanager
def server(run_dir: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Give everybody the same answer, and yield what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / SOCKET))
        sock.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.makefile("rb").read())
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        sock.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


def until(condition: object, wanted: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while condition() != wanted:  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_who_waits_is_answered_by_who_is_first(run_dir: Path) -> None:
    first, second = Line(str(run_dir)), Line(str(run_dir))
    assert first.wait(CALL) == b""
    assert not first.goes_on()
    said: list[bytes] = []
    waiting = threading.Thread(target=lambda: said.append(second.wait(CALL)))
    waiting.start()
    until(first.goes_on, wanted=True)
    answer = Reply(0, "done").render()
    with server(run_dir, answer) as asked:
        waiting.join(DEADLINE_S)
    assert (said, asked) == ([answer], [CALL])


def test_next_in_line_works_when_who_was_first_ends(run_dir: Path) -> None:
    first, second = Line(str(run_dir)), Line(str(run_dir))
    assert first.wait(CALL) == b""
    said: list[bytes] = []
    waiting = threading.Thread(target=lambda: said.append(second.wait(CALL)))
    waiting.start()
    until(first.goes_on, wanted=True)
    first.close()
    waiting.join(DEADLINE_S)
    assert said == [b""]
    assert not second.goes_on()


def test_waiting_asks_now_and_then(run_dir: Path) -> None:
    """Whoever is at work may not answer: it starts, it ends, or it is a daemon of another run directory."""
    first, second = Line(str(run_dir)), Line(str(run_dir))
    first.wait(CALL)
    with server(run_dir, b"") as asked:
        assert second.wait(CALL, patience_s=1.0) == b""
    assert 2 <= len(asked) <= 20


def test_line_that_cannot_be_made_is_empty(run_dir: Path) -> None:
    (run_dir / "file").touch()
    line = Line(str(run_dir / "file"))
    assert line.wait(CALL) == b""
    assert not line.goes_on()


def test_state_that_is_held_while_nobody_answers_is_waited_for(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETPLUG_STATE_DIR", str(run_dir / "state"))
    monkeypatch.setenv("NETPLUG_RUN_DIR", str(run_dir))
    monkeypatch.setattr(working_alone, "PATIENCE_S", 1.0)
    with lock_file(run_dir / "state" / "lock"), server(run_dir, b"") as asked:
        said = working_alone.answer(CALL, Line(str(run_dir)))
    assert said.code == 1
    assert "is in use by" in said.stdout
    assert 2 <= len(asked) <= 20
