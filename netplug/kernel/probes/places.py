"""Network namespaces, for the process that probes. It does without `sandbox.netns`, which takes long to import."""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from netplug.kernel import libc
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.threads import in_new_thread

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


def run_in(netns: str, work: Callable[[], _T]) -> _T:
    """Run something in a namespace, in a new thread. Sockets that it opens stay there.

    Raises:
        ProbeError: there is no such namespace.
    """
    if not netns:
        return work()
    fd = opened(netns)

    def enter() -> _T:
        try:
            libc.call("setns", fd, _CLONE_NEWNET)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Of a container that ends meanwhile, the file is left without the namespace.
            raise ProbeError(f"namespace {netns} is gone: its container has ended") from error
        return work()

    try:
        return in_new_thread("probe-setns", enter)
    finally:
        os.close(fd)


def opened(netns: str) -> int:
    """Return a descriptor of a namespace, which the caller closes.

    Raises:
        ProbeError: there is none.
    """
    path = netns or "/proc/self/ns/net"
    path = path if "/" in path else f"/run/netns/{path}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ProbeError(f"namespace {path} cannot be opened: {(error.strerror or '').lower()}") from error


def number(netns: str) -> int:
    """Return the inode of a namespace, by which the kernel names it."""
    fd = opened(netns)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
