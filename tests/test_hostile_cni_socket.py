"""The socket of the CNI executable: whatever comes, in whichever pieces, gets one whole answer or none."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hostile import INTERNAL, TEXTS, mutated, often, raw_texts
from hypothesis import example, given
from hypothesis import strategies as st
from living import Living, connect, living, until

from netplug.daemon.life import Daemon
from netplug.errors import NetplugError

CONFIG = {"cniVersion": "1.1.0", "name": "blue", "type": "pynet", "ipam": {"type": "netplug-ipam"}}
ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/box", "CNI_IFNAME": "eth0"}
STATUS = b"pynet\0CNI_COMMAND=STATUS\0\0" + json.dumps(CONFIG).encode()
NETAVARK = b"pynet\0NETAVARK_COMMAND=info\0\0"


def framed(words: list[bytes], stdin: bytes, separator: bytes = b"\0", end: bytes = b"\0\0") -> bytes:
    """Return what the executable sends of its name, its environment and its stdin."""
    return separator.join(words) + end + stdin


NAMES = st.sampled_from((b"pynet", b"netplug-ipam", b"", b"../pynet", b"\xff", b"a=b", b"x" * 5000))
VERBS = st.sampled_from(("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "", "ADD\n"))
WORDS = st.one_of(
    VERBS.map(lambda it: f"CNI_COMMAND={it}".encode()),
    st.sampled_from(("setup", "teardown", "create", "info", "version", ""))
    .map("NETAVARK_COMMAND={}".format)
    .map(str.encode),
    st.tuples(st.sampled_from(sorted(ENV)), st.sampled_from(TEXTS)).map(
        lambda it: "=".join(it).encode(errors="surrogatepass")
    ),
    st.sampled_from((b"=", b"==", b"CNI_ARGS", b"CNI_ARGS=", b"CNI_ARGS=;;=;a=b=c", b"K=" + b"v" * 100_000)),
    st.binary(max_size=12),
)
STDIN = st.one_of(
    mutated(CONFIG).map(lambda it: json.dumps(it).encode()), raw_texts(json.dumps(CONFIG).encode()), st.just(b"")
)
FRAMES = st.one_of(
    st.builds(
        lambda name, words, stdin: framed(
            [name, *(f"{key}={value}".encode() for key, value in ENV.items()), *words], stdin
        ),
        NAMES,
        st.lists(WORDS, max_size=4),
        STDIN,
    ),
    st.builds(
        framed,
        st.lists(st.one_of(NAMES, WORDS), max_size=5),
        STDIN,
        st.sampled_from((b"\0", b"", b"\n", b"\0\0")),
        st.sampled_from((b"\0\0", b"\0", b"", b"\0\0\0")),
    ),
    st.binary(max_size=200),
)
CUTS = st.lists(st.integers(0, 400), max_size=4)
ENDS = st.sampled_from(("whole", "whole", "whole", "closed", "unread"))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Living]:
    with living(tmp_path_factory.mktemp("cni")) as it:
        yield it


def send(sock: socket.socket, data: bytes, cuts: list[int]) -> None:
    """Send it in pieces that end at these octets."""
    last = 0
    for cut in [*sorted(it for it in cuts if it < len(data)), len(data)]:
        sock.sendall(data[last:cut])
        last = cut


def answer(sock: socket.socket) -> bytes:
    """Return all until the end; a connection that is reset is a failure."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read(said: bytes) -> tuple[int, Any, str]:
    """Return exit code, JSON and stderr of an answer, which has to be whole."""
    head, newline, rest = said.partition(b"\n")
    assert newline, said[:200]
    code, length = (int(it) for it in head.split(b" "))
    assert head == b"%d %d" % (code, length)
    out = rest[:length]
    assert len(out) == length, said[:200]
    return code, json.loads(out) if out else None, rest[length:].decode()


def judge(said: bytes) -> None:
    code, out, stderr = read(said)
    assert code in {0, 1}
    assert out is None or isinstance(out, dict)
    words = " ".join(str(out.get(key, "")) for key in ("msg", "details", "error")) + stderr if code and out else stderr
    assert not INTERNAL.search(words), words
    assert "\x1b" not in words
    assert not code or out or stderr


def clear(daemon: Living) -> None:
    """Delete what a frame asked for, also what is still being made for one that did not wait."""

    async def delete(it: Daemon) -> bool:
        engine = it._parts.engine
        for record in engine.registry.endpoints():
            await engine.endpoints.delete(record.endpoint.network, record.endpoint.id)
        with suppress(NetplugError):  # it has a newer endpoint
            for network in engine.registry.networks():
                await engine.networks.delete(network.network.id, by=network.front_end)
        return not engine.registry.networks()

    until(lambda: daemon.wait_for(delete), "all is deleted")


@often(120)
@given(FRAMES, CUTS, ENDS)
@example(STATUS, [1, 6, 18], "whole")
@example(NETAVARK, [], "closed")
@example(b"\0" * 300, [5], "whole")
@example(b"\0\0", [1], "unread")
def test_frame(daemon: Living, data: bytes, cuts: list[int], end: str) -> None:
    with connect(daemon.settings.cni_socket) as sock:
        send(sock, data, cuts)
        if end != "closed":
            sock.shutdown(socket.SHUT_WR)
        if end == "whole":
            said = answer(sock)
            assert bool(said) == bool(data)  # nothing is asked by nothing
            if data:
                judge(said)
    with connect(daemon.settings.cni_socket) as sock:  # others are answered
        sock.sendall(STATUS)
        sock.shutdown(socket.SHUT_WR)
        assert read(answer(sock))[::2] == (0, "")
    clear(daemon)
    assert daemon.error is None
