"""Network namespaces: opening them, and opening sockets in them.

setns(2) moves the calling thread. So a short-lived thread enters the namespace, opens a socket and ends (`run_in`). A
thread that may block can also enter and return (`run_here`). No child process is used: forking a daemon of this size
takes 6 ms and is unsafe with threads.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import structlog

from netplug.kernel import libc
from netplug.kernel.netlink.connection import IPV6_CONF, NETLINK_ROUTE, Netlink
from netplug.kernel.sandbox.proc_mount import SANDBOXES
from netplug.kernel.threads import in_new_thread

log = structlog.get_logger(__name__)

NAMED = Path("/run/netns")
"""Where ip-netns(8) keeps named namespaces."""

_CLONE_NEWNET = 0x40000000
_NS_GET_ID = 0x8008B70D
"""_IOR(NSIO, 13, __u64), since Linux 6.18; returns the cookie of a network namespace."""
_SO_NETNS_COOKIE = 71
_UNKNOWN = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOPROTOOPT})
_SELF = "/proc/thread-self/ns/net"
RETRY_S = 0.1
_T = TypeVar("_T")
Enter: TypeAlias = Callable[[int, Callable[[], Any]], Any]
"""`run_in` or `run_here`."""


def path_of(netns: str) -> str:
    """Return the path of a namespace that is given by path or name."""
    return netns if "/" in netns else str(NAMED / netns)


def open_netns(netns: str) -> int:
    """Open a namespace by path or name and return the file descriptor, which the caller closes.

    Raises:
        FileNotFoundError: it is gone.
    """
    return os.open(path_of(netns), os.O_RDONLY | os.O_CLOEXEC)


def identity(fd: int, inside: socket.socket | None = None) -> str:
    """Return a string that identifies an open namespace among all namespaces of the past and future.

    ``DEVICE:INODE:BOOT:COOKIE``. The kernel reuses inodes, but no cookie during one boot (socket(7), SO_NETNS_COOKIE).
    Kernels before 5.14 have no cookie. `inside`: a socket in the namespace; before Linux 6.18 it saves a thread.
    """
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}:{_boot()}:{_cookie(fd, inside)}"


def _cookie(fd: int, inside: socket.socket | None) -> str:
    data = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_ID, data)
        return str(int.from_bytes(data, sys.byteorder))
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise

    def read_cookie() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)

    try:
        raw = inside.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) if inside else run_in(fd, read_cookie)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return ""
    return str(struct.unpack("=Q", raw)[0])


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]


def run_in(fd: int, work: Callable[[], _T]) -> _T:
    """Run a short function in the namespace, in a new thread, and return its result."""

    def enter() -> _T:
        _setns(fd)
        return work()

    return in_new_thread("netplug-setns", enter)


def run_here(fd: int, work: Callable[[], _T]) -> _T:
    """Run a short function in the namespace, in this thread, which then returns to its own. Not for the event loop.

    Takes a fifth of the time of `run_in`.
    """
    own = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
        try:
            return work()
        finally:
            _return(own)
    finally:
        os.close(own)


def _return(own: int) -> None:
    """Return to the thread's own namespace. Retry for ever: later work of this thread must not affect the sandbox."""
    while True:
        try:
            _setns(own)
        except OSError as error:
            log.error("netns.return_failed", error=error.strerror)  # noqa: TRY400 - a traceback adds nothing
            time.sleep(RETRY_S)
        else:
            return


def netlink_in(fd: int, protocol: int = NETLINK_ROUTE, enter: Enter = run_in) -> Netlink:
    """Return a netlink socket in the namespace, whose descriptor stays open as long as the socket is used."""
    netlink: Netlink = enter(fd, lambda: Netlink.open(protocol))
    netlink.open_ipv6_conf = partial(enter, fd, partial(SANDBOXES.open, IPV6_CONF))
    return netlink


@contextmanager
def temporary_netns() -> Iterator[None]:
    """Move this thread into a new network namespace during the block. Threads and processes it starts inherit it.

    For tests. Needs CAP_SYS_ADMIN.
    """
    before = os.open(_SELF, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            yield
        finally:
            _setns(before)
    finally:
        os.close(before)


def _setns(fd: int) -> None:
    _call("setns", fd, _CLONE_NEWNET)


def _call(function: str, *args: int) -> None:
    try:
        libc.call(function, *args)
    except OSError as error:
        raise OSError(error.errno, f"{function}: {error.strerror}") from None


class Sandboxes:
    """The sandboxes' sockets during one call. They are not kept longer, since a socket keeps its namespace alive.

    `new_links`: path of the sandbox and name of the links that the call created.

    Args:
        enter: `run_in`, or `run_here` in a thread that may change its namespace.
    """

    def __init__(self, enter: Enter = run_in) -> None:
        self.new_links: set[tuple[str, str]] = set()
        self._enter = enter
        self._open: dict[str, tuple[int, Netlink]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets and descriptors."""
        for fd, nl in self._open.values():
            nl.close()
            os.close(fd)
        self._open.clear()

    def get(self, netns: str, netns_id: str = "") -> tuple[int, Netlink]:
        """Return file descriptor and socket of a sandbox, by path or name. `netns_id`: its `identity`, if known.

        Raises:
            FileNotFoundError: it is gone, or another namespace is at this path.
        """
        fd, nl = self._opened(netns)
        if netns_id and identity(fd, nl.sock) != netns_id:
            raise FileNotFoundError(errno.ENOENT, "another namespace", path_of(netns))
        return fd, nl

    def _opened(self, netns: str) -> tuple[int, Netlink]:
        if netns not in self._open:
            fd = open_netns(netns)
            try:
                self._open[netns] = fd, netlink_in(fd, enter=self._enter)
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EINVAL:
                    # `ip netns del` unmounts the namespace first and then removes the empty file.
                    raise FileNotFoundError(errno.ENOENT, "no namespace", path_of(netns)) from error
                raise
        return self._open[netns]
