"""Work in another network namespace without a process there: a short-lived thread enters it.

A socket belongs for life to the namespace it was made in, so the caller uses it from any thread afterwards.
"""

import ctypes
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

CLONE_NEWNET = 0x40000000

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def in_netns(netns: Path, work: Callable[[], T]) -> T:
    """Return `work()`, called in a thread that is in the network namespace."""

    def entered() -> T:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(netns))
        finally:
            os.close(fd)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()


def open_socket(netns: Path, kind: socket.SocketKind, *, family: int = 4) -> socket.socket:
    """Return a new socket of the namespace."""
    return in_netns(netns, lambda: socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, kind))
