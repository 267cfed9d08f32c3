"""Listening in a sandbox in front of a name server, on the real kernel."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from uuid import uuid4

import pytest

from netplug.drivers.tables import text
from netplug.errors import NetplugError
from netplug.kernel.netlink.connection import NETLINK_NETFILTER
from netplug.kernel.sandbox.interception import MARK, TABLE, Interception, redirect_dns
from netplug.kernel.sandbox.netns import netlink_in, open_netns, run_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

SERVER = IPv4Address("127.0.0.11")
AT = (str(SERVER), 53)
KINDS = [socket.SOCK_DGRAM, socket.SOCK_STREAM]
TIMEOUT_S = 20


def ip(*argv: str) -> str:
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def path() -> Iterator[str]:
    name = f"np-test-{uuid4().hex[:8]}"
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    yield f"/run/netns/{name}"
    if name in ip("netns", "list"):
        ip("netns", "del", name)


@pytest.fixture
def inside(path: str) -> Iterator[Callable[[socket.SocketKind], socket.socket]]:
    """Make a socket in the sandbox, for the length of the test."""
    with ExitStack() as stack:

        def make(kind: socket.SocketKind) -> socket.socket:
            fd = open_netns(path)
            try:
                sock = stack.enter_context(run_in(fd, lambda: socket.socket(socket.AF_INET, kind)))
            finally:
                os.close(fd)
            sock.settimeout(TIMEOUT_S)
            return sock

        yield make


@pytest.fixture
def other(inside: Callable[[socket.SocketKind], socket.socket]) -> dict[int, socket.socket]:
    """The sockets of the server that we stand in front of."""
    made = {}
    for kind in KINDS:
        made[int(kind)] = inside(kind)
        made[int(kind)].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made[int(kind)].bind(AT)
    made[int(socket.SOCK_STREAM)].listen()
    return made


def reaches(client: socket.socket, server: socket.socket) -> None:
    """Assert that what is sent to the server's address arrives here, and that the answer comes back as from there."""
    client.settimeout(TIMEOUT_S)
    server.settimeout(TIMEOUT_S)
    client.connect(AT)
    if client.type == socket.SOCK_STREAM:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"answer")
            assert client.recv(100) == b"answer"
        return
    client.send(b"question")
    data, peer = server.recvfrom(100)
    assert data == b"question"
    server.sendto(b"answer", peer)
    assert client.recv(100) == b"answer"


def tables(path: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net={path}", "nft", "list", "tables"], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_of_the_server_comes_to_us_until_the_end(
    path: str,
    inside: Callable[[socket.SocketKind], socket.socket],
    other: dict[int, socket.socket],
    kind: socket.SocketKind,
) -> None:
    reaches(inside(kind), other[kind])
    it = Interception(path, SERVER)
    with it.udp, it.tcp:
        reaches(inside(kind), it.udp if kind == socket.SOCK_DGRAM else it.tcp)
        with it.open(socket.AF_INET, kind) as own:
            reaches(own, other[kind])
        it.end()
        it.end()
        reaches(inside(kind), other[kind])
    assert tables(path) == ""


def test_what_a_former_life_left_is_taken_over(
    path: str, inside: Callable[[socket.SocketKind], socket.socket], other: dict[int, socket.socket]
) -> None:
    # Left by a kernel that knows no owners: one that does refuses the flag in the same way.
    fd = open_netns(path)
    netlink = netlink_in(fd, NETLINK_NETFILTER)
    os.close(fd)
    redirect_dns(netlink, SERVER, 9, (0x40, 0)).close()
    assert TABLE in tables(path)
    it = Interception(path, SERVER)
    with it.udp, it.tcp:
        for kind in KINDS:
            reaches(inside(kind), it.udp if kind == socket.SOCK_DGRAM else it.tcp)
            with it.open(socket.AF_INET, kind) as own:
                reaches(own, other[kind])
        it.end()
    assert tables(path) == ""


HOLD = """
import sys, time
from ipaddress import IPv4Address
from netplug.kernel.sandbox.interception import Interception
it = Interception(sys.argv[1], IPv4Address(sys.argv[2]))
print("there", flush=True)
time.sleep(60)  # until it is killed
"""


def test_who_is_killed_leaves_the_server_alone_at_once(
    path: str, inside: Callable[[socket.SocketKind], socket.socket], other: dict[int, socket.socket]
) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path, str(SERVER)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        assert TABLE in tables(path)
        with pytest.raises(NetplugError, match="cannot be answered"):
            Interception(path, SERVER)
        process.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while tables(path):  # the kernel takes them away after the process
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for kind in KINDS:
        reaches(inside(kind), other[kind])


def test_only_port_53_of_the_server_is_led_elsewhere(
    path: str, inside: Callable[[socket.SocketKind], socket.socket]
) -> None:
    elsewhere = inside(socket.SOCK_DGRAM)
    elsewhere.bind(("127.0.0.12", 53))
    it = Interception(path, SERVER)
    with it.udp, it.tcp, inside(socket.SOCK_DGRAM) as client:
        client.sendto(b"question", elsewhere.getsockname())
        assert elsewhere.recv(100) == b"question"
        it.end()


def test_sandbox_that_is_gone_is_named(path: str) -> None:
    it = Interception(path, SERVER)
    it.udp.close()
    it.tcp.close()
    ip("netns", "del", path.rpartition("/")[2])
    it.end()
    with pytest.raises(OSError, match="No such file"):
        it.open(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(NetplugError, match=path) as caught:
        Interception(path, SERVER)
    assert caught.value.kind == "not_found"


def test_mark_of_what_we_send_is_that_of_the_table() -> None:
    assert f"meta mark {MARK:#x} accept" in text("resolver")


def test_file_that_is_no_namespace_is_refused() -> None:
    with pytest.raises(NetplugError, match="cannot be answered") as caught:
        Interception("/etc/hostname", SERVER)
    assert caught.value.kind == "unavailable"
