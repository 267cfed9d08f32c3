"""The daemon and systemd: inherited sockets, requests that wait for the next daemon, signs of life."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from living import DEADLINE_S, Living, living, settings_in, until
from quiet import quiet_log

from netplug.cli import UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.config import Settings
from netplug.daemon import status as daemon_status
from netplug.daemon.refusing import refuse_waiting
from netplug.daemon.systemd import inherited_sockets, watchdog_s
from netplug.engine.conditions import QUARANTINE, Difference
from netplug.kernel.fake.kernel import FakeKernel

CHILD = """
import json, os
from netplug.daemon.refusing import refuse_waiting
from netplug.daemon.systemd import inherited_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
found = inherited_sockets()
left = [name for name in os.environ if name.startswith("LISTEN_")]
inheritable = [sock.get_inheritable() for sock in found.values()]
print(json.dumps([sorted(map(str, found)), inheritable, left, len(inherited_sockets())]))
"""


@contextmanager
def listening(*paths: Path) -> Iterator[dict[Path, socket.socket]]:
    """Listen at paths, as a socket unit does, and keep them until the end."""
    with ExitStack() as stack:
        found = {}
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            sock = found[path] = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(path))
            sock.listen(128)
        yield found


def paths_of(settings: Settings) -> tuple[Path, Path, Path]:
    return settings.plugin_socket, settings.api_socket, settings.cni_socket


def duplicates(kept: Mapping[Path, socket.socket]) -> dict[Path, socket.socket]:
    """What a process inherits: descriptors of its own of sockets that are kept."""
    found = {path: sock.dup() for path, sock in kept.items()}
    for sock in found.values():
        sock.setblocking(False)
    return found


def passed(*socks: socket.socket, names: str = "", pid: str = "") -> list[Any]:
    """Run a process that gets sockets as systemd passes them, and return what it found."""
    numbers = [sock.fileno() for sock in socks]
    low = " ".join(f"{3 + index}<&{number}" for index, number in enumerate(numbers))
    script = f'exec {low}; exec "$0" -c "$1"' if low else 'exec "$0" -c "$1"'
    env = {**os.environ, "LISTEN_FDS": str(len(socks)), "LISTEN_FDNAMES": names}
    child = CHILD.replace("str(os.getpid())", repr(pid)) if pid else CHILD
    command = ["bash", "-c", script, sys.executable, child]
    done = subprocess.run(command, env=env, pass_fds=numbers, capture_output=True, text=True, check=True, timeout=30)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return [*found, done.stdout + done.stderr]


def test_listening_sockets_of_systemd_are_found_once_by_their_paths(tmp_path: Path) -> None:
    with listening(tmp_path / "a.sock", tmp_path / "b.sock") as kept:
        found, inheritable, left, again, _ = passed(*kept.values(), names="a:b")
    assert found == [str(tmp_path / "a.sock"), str(tmp_path / "b.sock")]
    assert inheritable == [False, False]
    assert left == []
    assert again == 0


def test_sockets_for_another_process_are_not_taken(tmp_path: Path) -> None:
    with listening(tmp_path / "a.sock") as kept:
        assert passed(*kept.values(), pid="1")[0] == []


def test_sockets_of_other_kinds_are_refused_and_named(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "a.sock") as kept,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as deaf,
    ):
        datagrams.bind(str(tmp_path / "datagrams"))
        deaf.bind(str(tmp_path / "deaf"))
        found, *_, said = passed(datagrams, *kept.values(), deaf, names="one:two:three")
    assert found == [str(tmp_path / "a.sock")]
    assert "it is not a unix stream socket" in said
    assert "it does not listen" in said
    assert "three" in said


def test_no_sockets_without_systemd() -> None:
    assert inherited_sockets({}) == {}
    assert inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == {}


def test_inherited_sockets_stay_and_requests_wait_for_the_next_daemon(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with quiet_log(), listening(*paths_of(settings)) as kept:
        first = Living(settings, inherited=duplicates(kept)).start()
        first.client.post("networks", body={"name": "blue"})
        first.stop()
        assert first.error is None
        assert all(path.is_socket() for path in kept)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(first.client.get("networks")))
        asking.start()
        second = Living(settings, inherited=duplicates(kept), kernel=FakeKernel()).start()
        asking.join(DEADLINE_S)
        second.stop()
    assert [it["name"] for it in answers[0]["networks"]] == ["blue"]


def test_each_connection_serves_one_request_behind_systemd_and_many_without(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "1")
    with quiet_log(), listening(*paths_of(settings)) as kept:
        daemon = Living(settings, inherited=duplicates(kept)).start()
        assert asked(settings.plugin_socket).connection == "close"
        daemon.stop()
    with living(tmp_path / "2") as other:
        assert asked(other.settings.plugin_socket).connection is None


class Answer(NamedTuple):
    """An answer of the plugin. `connection`: the header, which says whether it stays open."""

    connection: str | None
    data: bytes


def asked(path: Path, method: str = "Plugin.Activate", body: bytes = b"") -> Answer:
    connection = http.client.HTTPConnection("netplug")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(DEADLINE_S)
    connection.sock.connect(str(path))
    connection.request("POST", f"/{method}", body)
    answer = connection.getresponse()
    found = Answer(answer.getheader("Connection"), answer.read())
    connection.close()
    return found


@pytest.mark.parametrize("which", ["plugin_socket", "cni_socket"])
def test_who_has_connected_is_answered_even_if_the_daemon_stops_meanwhile(tmp_path: Path, which: str) -> None:
    with living(tmp_path) as daemon, socket.socket(socket.AF_UNIX) as sock:
        path = getattr(daemon.settings, which)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(path))
        daemon.client.get("version")  # asked later than that: so it has accepted both
        daemon.tell_to_stop()
        until(lambda: not path.exists(), "the stop has begun")
        sock.sendall(REQUESTS[which])
        if which == "cni_socket":
            sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert EXPECTED[which] in answer


REQUESTS = {
    "plugin_socket": b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "cni_socket": json.dumps({"env": {"CNI_COMMAND": "VERSION"}, "stdin": '{"cniVersion": "1.0.0"}'}).encode(),
}
EXPECTED = {"plugin_socket": b"NetworkDriver", "cni_socket": b"unknown CNI_COMMAND"}


def test_connection_without_a_request_delays_a_stop_for_a_moment_only(tmp_path: Path) -> None:
    with quiet_log():
        daemon = Living(settings_in(tmp_path)).start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(str(daemon.settings.plugin_socket))
            asked(daemon.settings.plugin_socket)
            daemon.stop()
            assert sock.recv(1) == b""
    assert daemon.error is None


def test_sockets_of_other_settings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr("netplug.daemon.life.log.warning", lambda event, **keys: said.append({"event": event, **keys}))
    settings = settings_in(tmp_path, driver_name="blue")
    other = settings.plugin_dir / "pynet.sock"
    with listening(other, settings.api_socket, settings.cni_socket) as kept:
        daemon = Living(settings, inherited=duplicates(kept)).start()
        assert settings.plugin_socket.is_socket()
        daemon.stop()
        assert other.is_socket()
    assert not settings.plugin_socket.exists()
    told = next(it for it in said if it["event"] == "socket.differs")
    assert told["not_of_systemd"] == [str(settings.plugin_socket)]
    assert told["not_of_settings"] == [str(other)]
    assert "netplug.socket" in told["hint"]


def test_wrong_settings_are_told_to_who_waits(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with listening(*paths_of(settings)) as kept, ThreadPoolExecutor() as pool:
        plugin = [pool.submit(asked, settings.plugin_socket, "NetworkDriver.Join", b"x" * 100_000) for _ in range(2)]
        command = pool.submit(Client(settings.run_dir).get, "networks")
        own = duplicates(kept)
        refused = 0

        def all_refused() -> bool:
            nonlocal refused
            refused += refuse_waiting(own, "setting store is 'papyrus'")
            return refused == 3

        until(all_refused, "three requests are answered")
        assert [json.loads(it.result().data)["Err"] for it in plugin] == [
            "the netplug daemon does not start: setting store is 'papyrus'"
        ] * 2
        with pytest.raises(CliError, match="does not start: setting store is 'papyrus'") as caught:
            command.result()
        assert caught.value.code == UNREACHABLE
        for sock in own.values():
            sock.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_watchdog_is_that_of_this_process(environ: dict[str, str], seconds: float) -> None:
    assert watchdog_s(environ) == seconds


def test_daemon_is_ready_also_if_the_queue_of_systemd_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the sockets of many published ports, which systemd gets before."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, ExitStack() as stack:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        others = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        others.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                others.sendto(b"FDSTORE=1", str(address))
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        with living(tmp_path) as daemon:
            assert daemon.client.get("version")  # it serves meanwhile
            expect(systemd, b"READY=1")


def test_daemon_gives_signs_of_life_and_says_what_is_degraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        with living(tmp_path) as daemon:
            assert systemd.recv(1000) == b"READY=1"
            expect(systemd, b"WATCHDOG=1")
            expect(systemd, b"STATUS=0 networks, 0 endpoints")
            daemon.client.post("networks", body={"name": "blue"})
            expect(systemd, b"STATUS=1 networks, 0 endpoints")
            fault = Difference("host", "x", "broken")
            daemon.do(lambda it: it._parts.engine.conditions.report(QUARANTINE, [fault]))
            daemon.do(lambda it: it._parts.engine.conditions.report("task dns", [fault]))
            words = b"1 networks, 0 endpoints; 1 records in quarantine; degraded: task 1; see netplug diff"
            expect(systemd, b"STATUS=" + words)
            expect(systemd, b"WATCHDOG=1")
            with daemon.held():
                drain(systemd)
                systemd.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    systemd.recv(1000)
                systemd.settimeout(DEADLINE_S)
            expect(systemd, b"WATCHDOG=1")


def expect(systemd: socket.socket, words: bytes) -> None:
    while systemd.recv(1000) != words:
        pass


def drain(systemd: socket.socket) -> None:
    """Read what was sent before the loop stopped."""
    systemd.settimeout(0.05)
    try:
        while True:
            systemd.recv(1000)
    except TimeoutError:
        return


def test_status_is_old_at_most_ten_seconds() -> None:
    assert daemon_status.LOOK_S <= 10


class Docker:
    """Asks as dockerd does: it keeps its connection, unless the answer says that it closes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: http.client.HTTPConnection | None = None
        self.answers = 0

    def ask_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if self._connection is None:
                self._connection = http.client.HTTPConnection("netplug")
                self._connection.sock = socket.socket(socket.AF_UNIX)
                self._connection.sock.settimeout(DEADLINE_S)
                self._connection.sock.connect(str(self._path))
            self._connection.request("POST", "/Plugin.Activate")
            answer = self._connection.getresponse()
            assert b"NetworkDriver" in answer.read()
            self.answers += 1
            if answer.will_close:
                self._connection.close()
                self._connection = None


def test_no_request_is_lost_while_daemons_follow_each_other(tmp_path: Path) -> None:
    settings, stop, kernel = settings_in(tmp_path), threading.Event(), FakeKernel()
    with quiet_log(), listening(*paths_of(settings)) as kept, ThreadPoolExecutor() as pool:
        clients = [Docker(settings.plugin_socket) for _ in range(4)]
        asking = [pool.submit(client.ask_until, stop) for client in clients]
        try:
            for _ in range(6):
                answered = [client.answers for client in clients]
                daemon = Living(settings, inherited=duplicates(kept), kernel=kernel).start()
                until(lambda: all(c.answers > n for c, n in zip(clients, answered, strict=True)), "all get answers")  # noqa: B023
                daemon.stop()
                world = kernel._world
                kernel = FakeKernel()  # another, since each belongs to one event loop, of the same world
                kernel._world = world
            last = Living(settings, inherited=duplicates(kept), kernel=kernel).start()
        finally:
            stop.set()
        for it in asking:
            it.result(DEADLINE_S)
        last.stop()
