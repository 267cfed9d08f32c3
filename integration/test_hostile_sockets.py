"""Clients that hold connections, or are slow, on every socket that the daemon listens on; and all others meanwhile.

The deadlines are the real ones, so the slow ones are slow all at once.
"""

import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
from harness import Host, Namespace, Netplug, namespace, wait_until
from harness.netns import in_netns

from netplug.dns import tcp as dns
from netplug.frontends import connections, patient, tcp
from netplug.frontends.cni import server as cni

PAGE_PORT = 9820
GATEWAY = "10.1.0.1"
IDLE = 5_000
TIMEOUT_S = 20
SLACK_S = 10
"""On a busy machine."""
HOLD = 0.6
"""Part of one core that would be busy waiting."""
ADDRESSES = {
    "plugin": "/run/docker/plugins/pynet.sock",
    "api": "/run/netplug/netplug.sock",
    "cni": "/run/netplug/cni.sock",
    "page": ("127.0.0.1", PAGE_PORT),
    "dns": (GATEWAY, 53),
}
MOST = {
    "plugin": connections.MOST,
    "api": connections.MOST,
    "cni": connections.MOST,
    "page": tcp.CONNECTIONS,
    "dns": 64,
}
QUERY = b"\0\1\1\0\0\1\0\0\0\0\0\0\3web\4blue\7netplug\x08internal\0\0\1\0\1"
REQUESTS = {
    "plugin": b"POST /NetworkDriver.GetCapabilities HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "api": b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n",
    "cni": b'pynet\0CNI_COMMAND=STATUS\0\0{"cniVersion": "1.1.0", "name": "blue", "type": "pynet"}',
    "page": b"GET /v1/version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "dns": len(QUERY).to_bytes(2) + QUERY,
}
BODIES = {"plugin": b"/NetworkDriver.CreateNetwork", "api": b"/v1/networks"}
"""What reads a body."""
METRICS = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ANSWERS = {"plugin": b"200 OK", "api": b"200 OK", "cni": b"", "page": b"200 OK", "dns": b"\x0a\x01\x00"}


class Activated(Netplug):
    """A daemon that gets its Unix sockets as from systemd."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", ACTIVATE, *super().command()]


ACTIVATE = """
import os, pathlib, socket, sys
paths = ("/run/netplug/netplug.sock", "/run/docker/plugins/pynet.sock", "/run/netplug/cni.sock")
held = []
for number, path in enumerate(paths):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(4096)
    held.append(os.fdopen(os.dup2(os.dup(sock.fileno()), 100 + number), closefd=False))
for number in range(len(paths)):
    os.dup2(100 + number, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(paths))}
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass
class Scene:
    netplug: Netplug
    asker: Namespace
    holder: Namespace

    def connect(self, name: str, number: int = 1, *, holds: bool = False) -> list[socket.socket]:
        """Open connections to a socket. `holds`: those of the attacker."""
        address = ADDRESSES[name]
        if isinstance(address, str):
            path = str(self.netplug.host.path(address))
            return [_connected(socket.AF_UNIX, path) for _ in range(number)]
        place: Path = self.netplug.host.netns
        if name == "dns":
            place = (self.holder if holds else self.asker).netns
        return in_netns(place, lambda: [_connected(socket.AF_INET, address) for _ in range(number)])

    def serve(self, *, metrics: bool = True) -> float:
        """Assert that each socket answers, and return the longest time that one took, in seconds."""
        longest = 0.0
        for name, request in REQUESTS.items():
            for data in (request, METRICS) if name == "page" and metrics else (request,):
                began = time.monotonic()
                (sock,) = self.connect(name)
                with sock:
                    ask(sock, name, data)
                longest = max(longest, time.monotonic() - began)
        return longest

    @property
    def stat(self) -> Path:
        assert self.netplug.process
        return Path(f"/proc/{self.netplug.process.pid}")

    def files(self) -> int:
        return len(list((self.stat / "fd").iterdir()))

    def memory_kb(self) -> int:
        return int(self.stat.joinpath("status").read_text().partition("VmRSS:")[2].split()[0])

    def cpu_s(self) -> float:
        words = (self.stat / "stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / 100


def _connected(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    sock = socket.socket(family)
    # A connect() with a timeout of Python's is refused at once while the queue of the socket is full (unix(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", TIMEOUT_S, 0))
    sock.connect(address)
    sock.settimeout(TIMEOUT_S)
    return sock


def ask(sock: socket.socket, name: str, request: bytes) -> None:
    """Send a request and assert that it is answered."""
    sock.sendall(request)
    if name == "cni":
        sock.shutdown(socket.SHUT_WR)
    said = b""
    while not said or (b"HTTP/1.1" in said and not _whole(said)):
        part = sock.recv(65536)
        assert part, (name, said)
        said += part
    assert ANSWERS[name] in said, (name, said)


def _whole(said: bytes) -> bool:
    head, _, body = said.partition(b"\r\n\r\n")
    return len(body) >= int(*re.findall(rb"content-length: (\d+)", head))


@pytest.fixture(scope="module", params=[Netplug, Activated], ids=["own sockets", "sockets of systemd"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with ExitStack() as stack:
        host = stack.enter_context(Host("sockets"))
        host.run(["ip", "link", "set", "lo", "up"])
        netplug = request.param(host, "--docker-host", "none", "--http", f"127.0.0.1:{PAGE_PORT}")
        netplug.client.post("networks", body={"name": "blue", "subnets": [{"subnet": "10.1.0.0/24"}]})
        asker, holder = (stack.enter_context(namespace(host)) for _ in range(2))
        asker.attach(netplug, "blue", "--name", "web", "--ip", "10.1.0.10")
        holder.attach(netplug, "blue", "--name", "holder")
        it = Scene(netplug, asker, holder)
        wait_until(lambda: it.serve() > 0, TIMEOUT_S, "all sockets answer", ignoring=(OSError,))
        yield it


def test_five_thousand_idle_connections_cost_little_and_lock_out_nobody(scene: Scene) -> None:
    files, memory, usual_s = scene.files(), scene.memory_kb(), scene.serve()
    log = scene.netplug.log.stat().st_size
    with ExitStack() as stack:
        for name, most in MOST.items():
            idle = scene.connect(name, IDLE if name != "dns" else 200, holds=True)
            for sock in idle:
                stack.callback(sock.close)
            first_s, then_s = scene.serve(), scene.serve()
            for sock in idle[:-most]:
                sock.close()  # the daemon has closed them already
            opened, more = scene.files(), scene.memory_kb() - memory
            times = f"{first_s * 1e3:.0f} ms at first, then {then_s * 1e3:.0f} ms (usual {usual_s * 1e3:.0f} ms)"
            print(f"{name}: {len(idle)} idle connections: {opened - files} files, {more} kB in all, {times}")
            assert opened - files <= most + 20, name
            assert first_s < TIMEOUT_S / 2, name
            files = opened
        assert more < 60_000
        assert scene.serve() < max(20 * usual_s, 1)
        spent, began = scene.cpu_s(), time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1, 3)
        assert scene.cpu_s() - spent < HOLD, "it is busy with those who ask for nothing"
    wait_until(lambda: scene.serve() and scene.files() < MOST["plugin"], TIMEOUT_S, "it closes what its clients closed")
    assert scene.netplug.log.stat().st_size - log < 20_000
    assert "Traceback" not in scene.netplug.log.read_text()


@dataclass(frozen=True)
class Slow:
    """A client that is slow. `first`: what it sends at once; `drip`: each second, for ever."""

    socket: str
    what: str
    first: bytes
    drip: bytes
    limit_s: float


def slow_ones() -> list[Slow]:
    """On each socket: a byte a second, a head without an end, chunks without an end."""
    found = []
    for name, deadline_s in (("plugin", patient.REQUEST_S), ("api", patient.REQUEST_S), ("page", 1.5 * tcp.PATIENCE_S)):
        line = REQUESTS[name].partition(b"\r\n")[0]
        chunks = line if name == "page" else b"POST %b HTTP/1.1" % BODIES[name]
        chunks += b"\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        found += [
            Slow(name, "a byte a second", b"", b"G", deadline_s),
            Slow(name, "a head without an end", line + b"\r\n", b"X: y\r\n", deadline_s),
            Slow(name, "chunks without an end", chunks, b"1\r\n \r\n", deadline_s),
            Slow(name, "nothing more", REQUESTS[name][:12], b"", deadline_s),
        ]
    found.append(Slow("cni", "a byte a second", b"pynet\0", b" ", cni.REQUEST_S))
    found.append(Slow("dns", "a byte a second", b"", b"\0", dns.IDLE_S))
    found.append(Slow("dns", "half a message", REQUESTS["dns"][:9], b"", dns.MESSAGE_S))
    return found


class Dripping(Thread):
    """Runs a slow client until it is closed; `took_s` says when, and `said` what it was told."""

    def __init__(self, sock: socket.socket, slow: Slow) -> None:
        super().__init__(name=f"{slow.socket}: {slow.what}", daemon=True)
        self.slow = slow
        self.said = b""
        self.took_s = 0.0
        self._sock = sock

    def run(self) -> None:
        began = time.monotonic()
        with self._sock as sock, suppress(BrokenPipeError, ConnectionResetError):
            sock.settimeout(1)
            sock.sendall(self.slow.first)
            while time.monotonic() < began + self.slow.limit_s + 2 * SLACK_S:
                try:
                    if not (part := sock.recv(65536)):
                        break
                    self.said += part
                except TimeoutError:
                    sock.sendall(self.slow.drip)
        self.took_s = time.monotonic() - began


def never_read(scene: Scene, name: str) -> Callable[[], bool]:
    """Ask without reading, and return what tells whether the connection was closed."""
    (sock,) = scene.connect(name)
    sock.setblocking(False)

    def closed() -> bool:
        try:
            for _ in range(1000):
                sock.send(REQUESTS[name])
        except BlockingIOError:
            return False
        except OSError:
            sock.close()
            return True
        return False

    return closed


def test_slow_clients_are_closed_at_their_deadline_and_hold_up_nobody(scene: Scene) -> None:
    usual_s = max(scene.serve() for _ in range(3))
    resting = {name: scene.connect(name)[0] for name in ("plugin", "api")}
    silent = {name: scene.connect(name)[0] for name in ("plugin", "api")}
    if type(scene.netplug) is Netplug:  # else a connection serves one request
        for name, sock in resting.items():
            ask(sock, name, REQUESTS[name])
    slow = [Dripping(scene.connect(it.socket, holds=True)[0], it) for it in slow_ones() for _ in range(8)]
    deaf = {name: never_read(scene, name) for name in ("plugin", "api", "page") if type(scene.netplug) is Netplug}
    for it in slow:
        it.start()
    times = []
    left = dict(deaf)
    began = time.monotonic()
    while [it.join(0.02) for it in slow if it.is_alive()] or left:
        assert time.monotonic() < began + max(patient.REQUEST_S, patient.READ_S) + 2 * SLACK_S, ([*left], slow)
        times.append(scene.serve())
        left = {name: closed for name, closed in left.items() if not closed()}
    for it in slow:
        assert it.took_s < it.slow.limit_s + SLACK_S, it.name
        if it.slow.socket in ("plugin", "api"):
            assert it.took_s > it.slow.limit_s - 1, it.name
    for name, sock in [*resting.items(), *silent.items()]:
        with sock:  # one that rests is not closed
            ask(sock, name, REQUESTS[name])
    times.sort()
    print(
        f"usual {usual_s * 1e3:.0f} ms; meanwhile {times[len(times) // 2] * 1e3:.0f}, at most {times[-1] * 1e3:.0f} ms"
    )
    assert times[len(times) // 2] < max(10 * usual_s, 0.5)
    assert "Traceback" not in scene.netplug.log.read_text()
