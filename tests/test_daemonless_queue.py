"""CNI calls without a daemon: they stand in line, and wait without haste."""

import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from netplug.daemon import daemonless
from netplug.daemon.daemonless_queue import CallQueue
from netplug.daemon.lock import lock_file
from netplug.daemon.namespace_lock import claim_namespace
from netplug.frontends.cni.shim import SOCKET
from netplug.frontends.cni.wire import Reply

CALL = b"pynet\0CNI_COMMAND=STATUS\0\0{}"
NETAVARK = b"pynet\0NETAVARK_COMMAND=create\0\0{}"
DEADLINE_S = 20

pytestmark = pytest.mark.usefixtures("own_log")


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
    first, second = CallQueue(str(run_dir)), CallQueue(str(run_dir))
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
    first, second = CallQueue(str(run_dir)), CallQueue(str(run_dir))
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
    first, second = CallQueue(str(run_dir)), CallQueue(str(run_dir), patience_s=1.0)
    first.wait(CALL)
    with server(run_dir, b"") as asked:
        assert second.wait(CALL) == b""
    assert 2 <= len(asked) <= 20


def test_line_that_cannot_be_made_is_empty(run_dir: Path) -> None:
    (run_dir / "file").touch()
    line = CallQueue(str(run_dir / "file"))
    assert line.wait(CALL) == b""
    assert not line.goes_on()


@pytest.fixture
def state(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NETPLUG_STATE_DIR", str(run_dir / "state"))
    monkeypatch.setenv("NETPLUG_RUN_DIR", str(run_dir))
    own = partial(claim_namespace, f"\0netplug-test-{os.getpid()}", run_dir / "namespaces")
    monkeypatch.setattr(daemonless, "claim_namespace", own)  # this machine may have a daemon
    (run_dir / "state").mkdir()
    return run_dir / "state"


def test_state_that_is_held_while_nobody_answers_is_waited_for(run_dir: Path, state: Path) -> None:
    with lock_file(state / "lock"), server(run_dir, b"") as asked:
        said = daemonless.answer(CALL, CallQueue(str(run_dir), patience_s=1.0))
    assert said.code == 1
    assert "is in use by" in said.stdout
    assert 2 <= len(asked) <= 20


def test_who_waited_in_line_has_only_the_rest_of_his_time_for_the_state(run_dir: Path, state: Path) -> None:
    first, second = CallQueue(str(run_dir)), CallQueue(str(run_dir), patience_s=0.2)
    first.wait(CALL)
    assert second.wait(CALL) == b""
    with lock_file(state / "lock"), server(run_dir, b"") as asked:
        said = daemonless.answer(CALL, second)
    assert (said.code, asked) == (1, [])


def failed(request: bytes, capfd: pytest.CaptureFixture[str], run_dir: Path) -> dict[str, Any]:
    """Return the answer to a call that fails, with nothing else on stdout."""
    said = daemonless.answer(request, CallQueue(str(run_dir)))
    assert (said.code, capfd.readouterr().out) == (1, "")
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


def test_wrong_settings_are_told_in_the_answer_alone(
    run_dir: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETPLUG_LOG_FORMAT", "loud")
    for request, key in ((CALL, "msg"), (NETAVARK, "error")):
        answer = failed(request, capfd, run_dir)
        assert "setting log_format (NETPLUG_LOG_FORMAT) is 'loud'" in answer[key]
        assert ("code" in answer) == (key == "msg")


def test_state_that_cannot_be_read_is_told(run_dir: Path, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(state / "netplug.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    answer = failed(CALL, capfd, run_dir)
    assert (answer["code"], "written by a newer netplug" in answer["msg"]) == (11, True)
    assert "written by a newer netplug" in failed(NETAVARK, capfd, run_dir)["error"]
    (state / "netplug.db").unlink()
    (state / "netplug.db").mkdir()
    assert str(state / "netplug.db") in failed(CALL, capfd, run_dir)["msg"]


def test_whatever_fails_is_told(
    run_dir: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(daemonless, "claim_namespace", full)
    answer = failed(CALL, capfd, run_dir)
    assert (answer["code"], "Too many open files" in answer["msg"]) == (100, True)
    assert failed(NETAVARK, capfd, run_dir)["error"].startswith("internal error: [Errno 24] Too many open files")
