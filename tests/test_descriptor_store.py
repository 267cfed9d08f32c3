"""Published ports stay reserved while the daemon restarts: a service manager keeps their sockets, as systemd does."""

import asyncio
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from living import until
from structlog.testing import capture_logs

from netplug.daemon.descriptor_store import DescriptorStore
from netplug.drivers.steps import HostPort, Proto
from netplug.kernel.host.kept_sockets import name_of
from netplug.kernel.host.ports import Ports

ANY, LOOPBACK = ip_address("0.0.0.0"), ip_address("127.0.0.1")


class Manager:
    """Does what systemd does with notifications. `held`: what it keeps; `said`: what it was told, in order."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.held: dict[str, socket.socket] = {}
        self.said: list[str] = []
        self.polled: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread: threading.Thread | None = None

    def read(self, timeout_s: float = 0) -> bool:
        """Handle one notification; tell whether there was one."""
        self._socket.settimeout(timeout_s)
        try:
            text, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
        except (BlockingIOError, TimeoutError):
            return False
        told = dict(line.partition("=")[::2] for line in text.decode().splitlines())
        name = told.get("FDNAME", "")
        self.said.append(f"{next(iter(told))} {name}".strip())
        if "FDSTOREREMOVE" in told:
            self.held.pop(name).close()
        elif "FDSTORE" in told:
            assert name not in self.held
            assert told["FDPOLL"] == "0"
            self.held[name] = socket.socket(fileno=fds.pop())
        for fd in fds:
            os.close(fd)
        return True

    def read_all(self) -> None:
        while self.read():
            pass

    def serve(self) -> None:
        """Handle notifications from now on, in a thread."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self.read(timeout_s=5) and self.said[-1] != "END":
            pass

    def passed(self) -> dict[str, socket.socket]:
        """Return what the next life of the service gets."""
        return {name: sock.dup() for name, sock in self.held.items()}

    def end(self) -> None:
        """Keep nothing any more, and take no notifications."""
        if self._thread:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
                sock.sendto(b"END=1", self.address)
            self._thread.join()
            self._thread = None
        for sock in self.held.values():
            sock.close()
        self.held.clear()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(tmp_path / "notify")
    yield it
    it.end()


@pytest.fixture
def lives() -> Iterator[ExitStack]:
    """Closes the ports of all lives."""
    with ExitStack() as stack:
        yield stack


def started(manager: Manager, lives: ExitStack) -> tuple[DescriptorStore, Ports]:
    """Start a life of the daemon, with what the manager has of the former one."""
    store = DescriptorStore(manager.address, manager.passed())
    ports = Ports(store)
    lives.callback(ports.close)
    lives.callback(store.close)
    return store, ports


async def sent() -> None:
    """Let the loop send what it can."""
    for _ in range(3):
        await asyncio.sleep(0)


def taken(port: int, kind: int = socket.SOCK_STREAM, address: str = "0.0.0.0") -> bool:
    """Whether a process that does what most do cannot have a port."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        try:
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen()
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            return True
        return False


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize("proto", [Proto.TCP, Proto.UDP])
async def test_port_is_never_free_between_two_lives(manager: Manager, lives: ExitStack, proto: Proto) -> None:
    kind = socket.SOCK_STREAM if proto is Proto.TCP else socket.SOCK_DGRAM
    store, ports = started(manager, lives)
    port = ports.reserve(proto, ANY, 0, 0)
    step = HostPort(proto, ANY, port)
    await sent()
    manager.read_all()
    assert list(manager.held) == [name_of(step)]
    store.close()
    ports.close()
    assert taken(port, kind)
    _, ports = started(manager, lives)
    ports.ensure(step)
    assert inode(ports._held[step.key]) == inode(manager.held[name_of(step)])
    await sent()
    assert not manager.read()  # it keeps the socket already
    assert taken(port, kind)


async def test_released_port_can_be_had_by_others_at_once(manager: Manager, lives: ExitStack) -> None:
    _, ports = started(manager, lives)
    port = ports.reserve(Proto.TCP, ANY, 0, 0)
    await sent()
    manager.read_all()
    ports.remove(HostPort(Proto.TCP, ANY, port))
    await sent()
    assert taken(port)  # by the manager
    manager.serve()
    await ports.settled()
    assert not taken(port)
    assert manager.said[1:] == [f"FDSTOREREMOVE port-tcp-00000000-{port}", "BARRIER"]


async def test_port_that_is_published_again_is_kept_again(manager: Manager, lives: ExitStack) -> None:
    _, ports = started(manager, lives)
    port = ports.reserve(Proto.UDP, LOOPBACK, 0, 0)
    step = HostPort(Proto.UDP, LOOPBACK, port)
    ports.remove(step)
    await sent()
    assert not manager.read()  # it was never told
    ports.ensure(step)
    await sent()
    manager.read_all()
    ports.remove(step)
    manager.serve()
    await ports.settled()
    ports.ensure(step)
    await sent()
    until(lambda: manager.held.keys() == {name_of(step)}, "it is kept")


async def test_many_ports_wait_for_a_manager_that_is_busy(manager: Manager, lives: ExitStack) -> None:
    _, ports = started(manager, lives)
    steps = [HostPort(Proto.UDP, LOOPBACK, ports.reserve(Proto.UDP, LOOPBACK, 0, 0)) for _ in range(100)]
    full = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    full.setblocking(False)
    filler = 0
    with full, suppress(BlockingIOError):
        for _ in range(100_000):
            full.sendto(b"FILLER=1", manager.address)
            filler += 1
    await sent()  # does not wait
    manager.read_all()
    while len(manager.held) < len(steps):
        await sent()
        manager.read_all()
    assert manager.held.keys() == {name_of(step) for step in steps}
    assert manager.said[filler:] == [f"FDSTORE {name_of(step)}" for step in steps]


async def test_manager_that_does_not_answer_or_is_gone_stops_nothing(
    manager: Manager, lives: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netplug.daemon.descriptor_store.PATIENCE_S", 0.01)
    store, ports = started(manager, lives)
    port = ports.reserve(Proto.TCP, ANY, 0, 0)
    await sent()
    manager.read_all()
    ports.remove(HostPort(Proto.TCP, ANY, port))
    await ports.settled()
    manager.end()
    with capture_logs() as said:
        others = []
        for _ in range(3):
            others.append(ports.reserve(Proto.TCP, ANY, 0, 0))
            await sent()
        assert all(taken(other) for other in others)
        for other in others:
            ports.remove(HostPort(Proto.TCP, ANY, other))
        await ports.settled()
    assert [it["event"] for it in said] == ["ports.not_kept"]  # once, not for each port
    assert not any(taken(other) for other in others)
    store.close()


async def test_last_ports_are_kept_when_the_daemon_ends(manager: Manager, lives: ExitStack) -> None:
    store, ports = started(manager, lives)
    port = ports.reserve(Proto.TCP, ANY, 0, 0)
    manager.serve()
    store.close()
    assert manager.held.keys() == {f"port-tcp-00000000-{port}"}
    ports.close()
    assert taken(port)


async def test_more_ports_than_select_takes_are_kept_when_the_daemon_ends(manager: Manager, lives: ExitStack) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"needs 4096 open files, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    lives.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    store, ports = started(manager, lives)
    for _ in range(1030):
        ports.reserve(Proto.UDP, LOOPBACK, 0, 0)
    manager.serve()
    store.close()
    assert len(manager.held) == 1030


async def test_ports_that_are_not_published_any_more_are_released(manager: Manager, lives: ExitStack) -> None:
    store, ports = started(manager, lives)
    kept, gone = (ports.reserve(Proto.TCP, ANY, 0, 0) for _ in range(2))
    await sent()
    manager.read_all()
    store.close()
    ports.close()
    store, ports = started(manager, lives)
    ports.ensure(HostPort(Proto.TCP, ANY, kept))
    store.drop_left()
    manager.serve()
    await store.settled()
    assert (taken(kept), taken(gone)) == (True, False)


async def test_port_is_moved_to_another_address(manager: Manager, lives: ExitStack) -> None:
    """The release that starts reserves at other addresses than the one that ended."""
    store, ports = started(manager, lives)
    port = ports.reserve(Proto.TCP, ANY, 0, 0)
    await sent()
    manager.read_all()
    store.close()
    ports.close()
    store, ports = started(manager, lives)
    manager.serve()
    ports.ensure(HostPort(Proto.TCP, LOOPBACK, port))
    assert store.left() == []
    assert taken(port, address="127.0.0.1")
    await sent()
    until(lambda: manager.held.keys() == {f"port-tcp-7f000001-{port}"}, "the other one is kept")


async def test_what_is_passed_to_another_process_is_not_taken() -> None:
    """The environment of a service is inherited by what it starts."""
    environment = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "port-tcp-00000000-80"}
    assert DescriptorStore.of_service(environment).left() == []
