"""Observation posts: packet sockets that see what a link receives and sends (packet(7))."""

import socket
from collections.abc import Iterator, Sequence

from netplug.kernel.host import socket_filters
from netplug.kernel.probes import places, socket_code, timestamps
from netplug.kernel.probes.api import Job, Post
from netplug.kernel.probes.errors import ProbeError

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_ROOM = 1 << 22
_ETHERNET = frozenset({1, 772})
"""Hardware types (ARPHRD_ETHER, ARPHRD_LOOPBACK). Frames of others have no such header, and are given one."""
SNAP = 2048
"""Bytes of a packet that are read."""
Seen = tuple[bytes, bool, int]
"""Frame, whether it was received, and when (nanoseconds of the clock)."""


def open_posts(job: Job) -> dict[socket.socket, Post]:
    """Open all posts of a job.

    Raises:
        ProbeError: a namespace or link is gone.
    """
    opened: dict[socket.socket, Post] = {}
    try:
        for netns in dict.fromkeys(post.netns for post in job.posts):
            mine = [post for post in job.posts if post.netns == netns]
            opened.update(places.run_in(netns, lambda posts=mine: _open_all(posts, job)))  # type: ignore[misc]
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _open_all(posts: Sequence[Post], job: Job) -> dict[socket.socket, Post]:
    return {_open(post, job): post for post in posts}


def _open(post: Post, job: Job) -> socket.socket:
    # Of protocol 0 it receives nothing until it is bound again, when the filter is there.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        sock.bind((post.link, 0))
        ethernet = sock.getsockname()[3] in _ETHERNET
        socket_filters.attach(sock, socket_code.for_frames(job, ethernet=ethernet))
        timestamps.request(sock)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        sock.bind((post.link, _ETH_P_ALL))
    except OSError as error:
        sock.close()
        where = f" in namespace {post.netns}" if post.netns else ""
        raise ProbeError(f"link {post.link!r}{where} cannot be watched: {(error.strerror or '').lower()}") from error
    sock.setblocking(False)
    return sock


def read_all(sock: socket.socket) -> Iterator[Seen]:
    """Yield all packets that wait at a post."""
    while True:
        try:
            frame, control, _, address = sock.recvmsg(SNAP, 64)
        except BlockingIOError:
            return
        except OSError:  # the link went down, or is gone
            return
        if address[3] not in _ETHERNET:
            frame = bytes(12) + address[1].to_bytes(2, "big") + frame
        yield frame, address[2] != socket.PACKET_OUTGOING, timestamps.time_ns(control)
