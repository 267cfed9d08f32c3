"""Clients that are slow, do not read, do not end, or speak no HTTP, on the daemon's sockets; and others meanwhile."""

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from living import DEADLINE_S, Living, connect, living, until
from pydantic import ValidationError

from netplug.cli import CliError
from netplug.cli.client import Client
from netplug.frontends import connections, http, patient
from netplug.frontends.cni import server as cni
from netplug.frontends.connections import Connections
from netplug.frontends.docker import wire as docker_wire
from netplug.frontends.rest.ports_wire import PortsIn
from netplug.frontends.rest.wire import AttachIn
from netplug.insight import event_log

ACTIVATE = b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
VERSION = b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: x\r\n"
CREATE = b"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost: x\r\n"
LAST = re.compile(rb"HTTP/1\.1 (\d{3} (?:(?!HTTP/1\.1 \d).)*)", re.DOTALL)
LENGTH = re.compile(rb"content-length: (\d+)\r\n")
FEW = 8
QUICK_S = 0.3


class Place:
    """The sockets of a daemon, and what is well formed on each."""

    def __init__(self, daemon: Living) -> None:
        self.daemon = daemon
        settings = daemon.settings
        self.http = {settings.plugin_socket: ACTIVATE, settings.api_socket: VERSION}
        self.cni = settings.cni_socket

    def serves(self) -> None:
        """Assert that others are answered."""
        for path, request in self.http.items():
            with connect(path) as sock:
                assert ask(sock, request).startswith(b"HTTP/1.1 200 OK\r\n")
        with connect(self.cni) as sock:
            sock.sendall(b"garbage")
            sock.shutdown(socket.SHUT_WR)
            assert b'"code": 4' in rest(sock)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with living(tmp_path) as daemon:
        yield Place(daemon)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as it:
        yield it


def ask(sock: socket.socket, request: bytes) -> bytes:
    """Send a request and return its answer; of one without a length, the beginning."""
    sock.sendall(request)
    said = b""
    while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < int(*LENGTH.findall(said)):
        part = sock.recv(65536)
        assert part, said
        said += part
    return said


def rest(sock: socket.socket) -> bytes:
    """Return what comes until the connection is closed; a timeout is an error."""
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def words(answer: bytes) -> tuple[int, str]:
    """Return status and message of the last answer, in whichever of the two forms."""
    head, _, body = LAST.findall(answer)[-1].partition(b"\r\n\r\n")
    said = json.loads(body)
    return int(head[:3]), said["Err"] if "Err" in said else said["error"]["message"]


MALFORMED = {
    "garbage": (b"\x16\x03\x01\x02\x00hello\r\n\r\n", 400, "illegal request line"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "host"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "host"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/2.0"),
    "space in a header": (b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", 400, "illegal header line"),
    "NUL": (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400, "illegal header line"),
    "header flood": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 50_000, 431, "too long"),
    "endless URL": (b"GET /" + b"a" * 300_000, 431, "too long"),
    "two lengths": (CREATE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400, "conflicting"),
    "length and chunks": (
        CREATE + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + ACTIVATE,
        400,
        "both Content-Length and Transfer-Encoding",
    ),
    "negative length": (CREATE + b"Content-Length: -1\r\n\r\n", 400, "bad Content-Length"),
    "unknown encoding": (CREATE + b"Transfer-Encoding: chunked, gzip\r\n\r\n", 501, "chunked"),
    "no chunks": (CREATE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "illegal chunk header"),
    "garbage after a request": (VERSION + b"\x00\r\n\r\n", 400, "illegal request line"),
    "a large body": (CREATE + b"Content-Length: 10485760\r\n\r\n{}", 413, "larger than"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_request_is_refused_with_its_cause_and_is_the_last(place: Place, case: str) -> None:
    data, status, word = MALFORMED[case]
    for path in place.http:
        with connect(path) as sock:
            with suppress(BrokenPipeError):
                sock.sendall(data)
            said = words(rest(sock))
            assert said[0] == status, said
            assert word.lower() in said[1].lower()
            assert "bytearray" not in said[1]
    place.serves()


def test_no_library_says_anything_of_it(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    for path, request in place.http.items():
        with connect(path) as sock:
            assert ask(sock, request.removesuffix(b"\r\n") + upgrade).startswith(b"HTTP/1.1 200 OK\r\n")
            assert words(ask(sock, b"\0\r\n\r\n") + rest(sock))[0] == 400
        with connect(path) as sock:
            sock.sendall(CREATE + b"Content-Length: 100\r\n\r\n{")
    place.serves()
    assert not caplog.records


BEGUN = {
    "a line": b"GET /v1/ver",
    "HTTP/0.9": b"GET /v1/version\r\n",
    "a head": b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-A: b\r\n",
    "a body": POST + b'Content-Length: 100\r\n\r\n{"Network',
    "chunks": POST + b'Transfer-Encoding: chunked\r\n\r\n4\r\n{"Ne\r\n',
    "the body of a refused request": b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
}


def test_a_request_without_an_end_is_closed_at_its_deadline_and_resting_connections_are_not(
    place: Place, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    resting = [(stack.enter_context(connect(path)), request) for path, request in place.http.items()]
    silent = [(stack.enter_context(connect(path)), request) for path, request in place.http.items()]
    for sock, request in resting:
        assert ask(sock, request).startswith(b"HTTP/1.1 200 OK\r\n")
    monkeypatch.setattr(patient, "REQUEST_S", QUICK_S)
    slow = {(what, path): stack.enter_context(connect(path)) for path in place.http for what in BEGUN}
    for (what, path), sock in slow.items():
        method = b"/NetworkDriver.CreateNetwork" if path == place.daemon.settings.plugin_socket else b"/v1/networks"
        sock.sendall(BEGUN[what].replace(b"%b", method))
    place.serves()
    for (what, _), sock in slow.items():
        said = rest(sock)
        if what == "the body of a refused request":
            assert said.startswith(b"HTTP/1.1 404 ")
            assert said.count(b"HTTP/1.1") == 1
        else:
            assert words(said) == (408, f"the request has not come to its end in {QUICK_S} s"), what
    for sock, request in [*resting, *silent]:
        assert ask(sock, request).startswith(b"HTTP/1.1 200 OK\r\n")
    place.serves()


def test_one_byte_at_a_time_does_not_prolong_the_deadline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "REQUEST_S", QUICK_S)
    for path in place.http:
        with connect(path) as sock:
            sock.settimeout(0.02)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                _drip(sock)


def _drip(sock: socket.socket) -> None:
    for _ in range(round(DEADLINE_S / 0.02)):
        sock.sendall(b"a")
        try:
            sock.recv(1)
        except TimeoutError:
            continue


def test_a_request_that_takes_long_to_answer_has_no_deadline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "REQUEST_S", QUICK_S)
    with connect(place.daemon.settings.api_socket) as sock:
        stream = VERSION.replace(b"version", b"events/stream")
        assert b"text/event-stream" in ask(sock, stream)
        sock.settimeout(3 * QUICK_S)
        with pytest.raises(TimeoutError):
            rest(sock)


def _flood(sock: socket.socket, requests: bytes) -> None:
    while True:
        sock.sendall(requests)


@pytest.mark.parametrize("path", ["version", "events"])
def test_who_does_not_read_answers_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(patient, "READ_S", QUICK_S)
    with connect(place.daemon.settings.api_socket) as sock, pytest.raises(ConnectionError):  # no timeout
        _flood(sock, VERSION.replace(b"version", path.encode()) * 100)
    place.serves()


def test_a_stream_whose_reader_does_not_read_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "READ_S", QUICK_S)
    monkeypatch.setattr(event_log, "BACKLOG", 1 << 20)
    daemon = place.daemon

    def followers() -> int:
        return daemon.do_and_get(lambda it: it._parts.events.followers)

    refused = CREATE.replace(b"CreateNetwork", b"x" * 100) + b"Content-Length: 2\r\n\r\n{}"  # each is told
    with connect(daemon.settings.api_socket) as sock, connect(daemon.settings.plugin_socket) as other:
        assert b"text/event-stream" in ask(sock, VERSION.replace(b"version", b"events/stream"))
        until(lambda: followers() == 1, "it follows")
        until(lambda: [ask(other, refused) for _ in range(50)] and not followers(), "it is closed")
        assert 50_000 < len(rest(sock)) < 1_000_000
    place.serves()


def test_idle_connections_make_room_for_who_comes(
    place: Place, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST", FEW)
    served = [(stack.enter_context(connect(path)), request) for path, request in place.http.items()]
    for sock, request in served:
        ask(sock, request)
    for path in (*place.http, place.cni):
        idle = [stack.enter_context(connect(path)) for _ in range(3 * FEW)]
        place.serves()
        assert all(rest(sock) == b"" for sock in idle[: 2 * FEW])
    for sock, request in served:
        assert ask(sock, request).startswith(b"HTTP/1.1 200 OK\r\n"), "dockerd's connection was closed"


def test_a_socket_full_of_work_refuses_with_a_cause(
    place: Place, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST", FEW)
    path = place.daemon.settings.api_socket
    for _ in range(FEW):
        assert b"event-stream" in ask(stack.enter_context(connect(path)), VERSION.replace(b"version", b"events/stream"))
    with connect(path) as sock:
        assert words(rest(sock)) == (503, "too many requests at a time")


def test_a_call_of_cni_without_an_end_is_closed(
    place: Place, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cni, "REQUEST_S", QUICK_S)
    slow = [stack.enter_context(connect(place.cni)) for _ in range(2 * cni.LARGE_AT_A_TIME)]
    for sock in slow:
        sock.sendall(b"pynet\0" + b" " * (cni.LARGE + 1))
    place.serves()
    assert [rest(sock) for sock in slow] == [b""] * len(slow)
    place.serves()


class Held:
    def __init__(self, peer: str, *, waits: bool = True, served: bool = False) -> None:
        self.peer, self.waits, self.served, self.dropped = peer, waits, served, False

    def drop(self) -> None:
        self.dropped = True


def dropped(held: Sequence[Held]) -> list[int]:
    return [number for number, it in enumerate(held) if it.dropped]


def test_who_never_asked_goes_first_then_who_holds_most_then_the_oldest() -> None:
    held = [Held("dockerd", served=True), Held("few"), Held("many"), Held("many"), Held("work", waits=False)]
    room = Connections(len(held))
    assert all(map(room.admit, held))
    for expected in ([2], [1, 2], [1, 2, 3], [0, 1, 2, 3]):
        assert room.admit(Held("new", waits=False))
        assert dropped(held) == expected
    assert not room.admit(Held("new"))
    assert len(room) == len(held)


def test_few_files_allow_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((64, 8), (1024, 128), (1 << 20, 512)):
        monkeypatch.setattr("resource.getrlimit", lambda _, files=files: (files, files))
        assert connections.affordable() == most


def test_a_command_waits_while_the_queue_of_the_socket_is_full(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "netplug.sock"
    full = stack.enter_context(socket.socket(socket.AF_UNIX))
    full.bind(str(path))
    full.listen(0)
    stack.enter_context(connect(path))
    with pytest.raises(CliError, match="did not answer in 1 s"):
        Client(tmp_path, 1.0).get("version")


def _many(values: int) -> bytes:
    return b'{"name": "x", "subnets": [' + b"[]," * (values // 2) + b"[]]}"


@pytest.mark.parametrize(
    ("path", "most"),
    [("/v1/networks", http.FEW), ("/v1/publish", http.MANY), ("/NetworkDriver.CreateNetwork", http.FEW)],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_read(place: Place, path: str, most: int) -> None:
    """pydantic says of each value what is wrong with it: of a few million that took gigabytes, and most of a minute."""
    settings = place.daemon.settings
    at = settings.api_socket if path.startswith("/v1") else settings.plugin_socket
    for values, status in ((2 * most + 10, 413), (most // 2, 0)):
        body = _many(values)
        with connect(at) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            said = words(ask(sock, head.encode() + body))
        assert (said[0] == 413) == bool(status), said
        assert ("values" in said[1]) == bool(status)
    place.serves()


def test_of_a_list_of_ports_the_first_fault_is_told() -> None:
    for model, wrong in (
        (docker_wire.SandboxOptions, {"com.docker.network.portmap": [{}] * 1000}),
        (PortsIn, {"endpoint": "web", "ports": [{}] * 1000}),
        (AttachIn, {"network": "blue", "netns": "x", "ports": [{}] * 1000}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(wrong)  # type: ignore[attr-defined]
        assert caught.value.error_count() < 3


def test_a_configuration_of_too_many_values_is_refused(place: Place) -> None:
    head = b'pynet\0CNI_COMMAND=ADD\0\0{"cniVersion": "1.1.0", "name": "x", "type": "pynet", "runtimeConfig": {"ips": ['
    for values, word in ((cni.MOST_VALUES + 10, b"has more than 330000 values"), (cni.MOST_VALUES // 2, b'"code"')):
        with connect(place.cni) as sock:
            sock.sendall(head + b"[]," * values + b"[]]}}")
            sock.shutdown(socket.SHUT_WR)
            assert word in rest(sock)
    place.serves()
