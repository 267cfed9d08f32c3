"""Another program that holds the kernel's rtnetlink lock, for exactly as long as a block takes.

ETHTOOL_SGSO reads its argument from the caller's memory while it holds the lock (net/ethtool/ioctl.c). Here that memory
is a page which does not exist until the block is over: userfaultfd(2) tells of the access, and has it wait. Mass ends
of containers hold the lock as long, but not for a time that can be chosen.
"""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
_API, _MISSING = 0xAA, 1
_SIOCETHTOOL, _SGSO = 0x8946, 0x24
_PAGE = mmap.PAGESIZE
_WORD = 4

_libc = ctypes.CDLL(None, use_errno=True)


def userfaultfd() -> int:
    """Return a new descriptor, which the caller closes.

    Raises:
        OSError: the kernel has none (CONFIG_USERFAULTFD), or forbids it.
    """
    fd: int = _libc.syscall(_SYS_USERFAULTFD[os.uname().machine], os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "userfaultfd")
    return fd


@contextmanager
def rtnl_held() -> Iterator[None]:
    """Hold the lock during the block, in which nothing may wait for it: no command of ip(8), no new link."""
    fd = userfaultfd()
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(struct.pack("=QQQ", _API, 0, 0)))
        with mmap.mmap(-1, 2 * _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            start = ctypes.addressof(anchor := ctypes.c_char.from_buffer(memory))
            del anchor
            absent = start + _PAGE
            fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", absent, _PAGE, _MISSING, 0)))
            # The command is read before the lock is taken, its value after that.
            memory[_PAGE - _WORD : _PAGE] = struct.pack("=I", _SGSO)
            thread = Thread(target=_ask, args=(absent - _WORD,), name="rtnl")
            thread.start()
            try:
                os.read(fd, 32)  # the kernel has come to the page, so it holds the lock
                yield
            finally:
                fcntl.ioctl(fd, _UFFDIO_ZEROPAGE, bytearray(struct.pack("=QQQq", absent, _PAGE, 0, 0)))
                thread.join()
    finally:
        os.close(fd)


def _ask(address: int) -> None:
    """Turn GSO of the loopback off, which no packet there needs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = ctypes.create_string_buffer(struct.pack("=16sQ8x", b"lo", address))
        _libc.ioctl(ctypes.c_int(sock.fileno()), ctypes.c_ulong(_SIOCETHTOOL), request)
