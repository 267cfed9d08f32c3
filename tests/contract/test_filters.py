"""A filter that many sockets share lets the same packets through as one that each has of its own."""

import socket
from collections.abc import Iterator

import pytest

from netplug.kernel.host import socket_filters
from netplug.kernel.host.socket_filters import EQUAL, LOAD, RETURN, WHOLE, Filter

_PAYLOAD = 0x100000000 - 0x100000 + 28
"""Of an IPv4 datagram without options, from its network header on."""
WORDS = (b"abcd", b"efgh")
BOTH = [
    (LOAD, 0, 0, _PAYLOAD),
    (EQUAL, 0, 3, int.from_bytes(WORDS[0], "big")),
    (LOAD, 0, 0, _PAYLOAD + 4),
    (EQUAL, 0, 1, int.from_bytes(WORDS[1], "big")),
    (RETURN, 0, 0, WHOLE),
    (RETURN, 0, 0, 0),
]


@pytest.fixture
def heard() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets, of which one sends to the other."""
    with socket.socket(type=socket.SOCK_DGRAM) as ear, socket.socket(type=socket.SOCK_DGRAM) as mouth:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        mouth.connect(ear.getsockname())
        yield ear, mouth


def passes(heard: tuple[socket.socket, socket.socket], data: bytes) -> bool:
    ear, mouth = heard
    mouth.send(data)  # the loopback link delivers before it returns
    try:
        return ear.recv(100) == data
    except BlockingIOError:
        return False


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "classic"])
def test_filter_lets_through_what_it_says(heard: tuple[socket.socket, socket.socket], shared: bool) -> None:
    both, nothing, everything = Filter(BOTH), Filter([(RETURN, 0, 0, 0)]), Filter([(RETURN, 0, 0, WHOLE)])
    for it in (both, nothing, everything):
        if shared:
            assert it._shared or not _may_load()
        else:
            it.__dict__["_shared"] = b""
    both.attach(heard[0])
    assert passes(heard, b"abcdefgh")
    assert passes(heard, b"abcdefghijkl")
    for other in (b"", b"abcd", b"abcdefgX", b"Xbcdefgh", b"efghabcd"):
        assert not passes(heard, other), other
    nothing.attach(heard[0])
    assert not passes(heard, b"abcdefgh")
    everything.attach(heard[0])
    assert passes(heard, b"X")
    socket_filters.attach(heard[0], BOTH)
    assert not passes(heard, b"X")
    both.attach(heard[0])
    for it in (both, nothing, everything):
        it.close()
    assert passes(heard, b"abcdefgh")
    assert not passes(heard, b"X")


def _may_load() -> bool:
    try:
        socket_filters._load(socket_filters._translated([(RETURN, 0, 0, 0)]))
    except PermissionError:
        return False
    return True
