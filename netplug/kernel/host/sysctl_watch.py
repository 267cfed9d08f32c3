"""Notices foreign writes to sysctls of ours, by inotify(7) on their files in /proc/sys.

Of most sysctls the kernel sends no notification, but a write to a file is told whatever the file system. Not told is
what is written through another mount of /proc, that of a container with a PID namespace of its own: the comparison at
intervals finds it. For forwarding there is a notification of its own, see `netlink.watch`.
"""

import asyncio
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from netplug.drivers.steps import Sysctl
from netplug.kernel import libc
from netplug.kernel.host import sysctl

_IN_MODIFY = 0x2
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 14


class SysctlWatch:
    """Calls `on_change` once when a sysctl is not any more as its step wants it. Belongs to one loop and namespace.

    `note` and `forget` may be called in any thread of the namespace.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._wanted: dict[int, Sysctl] = {}
        self._watches: dict[str, int] = {}
        self._told: set[int] = set()
        """Those that differed when they were last written. To open a file and to write to it are two events."""
        self._fd = -1
        with suppress(OSError):  # too many instances of this user
            self._fd = libc.call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
            self._loop.add_reader(self._fd, self._read)

    def note(self, step: Sysctl) -> None:
        """Watch a sysctl. Its file is another one once its link was made anew, or got its name back."""
        if self._fd < 0:
            return
        try:  # of a file that is watched it returns the same watch
            watch = libc.call("inotify_add_watch", self._fd, os.fsencode(sysctl.ROOT / step.name), _IN_MODIFY)
        except OSError:  # it is missing, or there are too many watches
            return
        former = self._watches.get(step.name, watch)
        self._watches[step.name], self._wanted[watch] = watch, step
        if former != watch:
            self._remove(former)
        elif watch in self._told and not sysctl.drift(step):
            self._told.discard(watch)  # the next foreign write is told: not all repairs write to the file

    def forget(self, step: Sysctl) -> None:
        """Watch a sysctl no more."""
        watch = self._watches.pop(step.name, None)
        if watch is not None:
            self._remove(watch)

    def _remove(self, watch: int) -> None:
        self._wanted.pop(watch, None)
        self._told.discard(watch)
        with suppress(OSError):
            libc.call("inotify_rm_watch", self._fd, watch)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return
        at, changed = 0, set[int]()
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if watch < 0:  # IN_Q_OVERFLOW
                self._on_change()
            elif mask & _IN_MODIFY:
                changed.add(watch)
        differ = {watch for watch in changed if watch in self._wanted and sysctl.drift(self._wanted[watch])}
        fresh = differ - self._told
        self._told = (self._told - changed) | differ
        if fresh:
            self._on_change()

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
