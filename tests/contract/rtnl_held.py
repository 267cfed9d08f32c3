"""Somebody who holds the kernel's rtnl mutex for as long as a test likes, in the namespaces of all.

SIOCGIFCONF writes to its caller's memory under the mutex. Here that memory is not there until the caller provides it
(userfaultfd(2)). A process of its own does it, so that the mutex is free again however the test ends.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

AT_MOST_S = 5
"""It is let go then: whoever needs it to let it go would wait for ever."""

_HOLDER = """
import ctypes, fcntl, mmap, os, select, socket, struct, sys, threading

NEW, API, REGISTER, ZEROPAGE, IFCONF = 0xAA00, 0xC018AA3F, 0xC020AA00, 0xC020AA04, 0x8912
fault = fcntl.ioctl(os.open("/dev/userfaultfd", os.O_RDWR), NEW, os.O_CLOEXEC)
fcntl.ioctl(fault, API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
page = mmap.mmap(-1, mmap.PAGESIZE)
place = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(fault, REGISTER, bytearray(struct.pack("QQQQ", place, len(page), 1, 0)))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    asked = bytearray(struct.pack("ixxxxP", len(page), place))
    holder = threading.Thread(target=fcntl.ioctl, args=(sock, IFCONF, asked))
    holder.start()
    os.read(fault, 32)
    print(flush=True)
    select.select([sys.stdin], [], [], float(sys.argv[1]))
    fcntl.ioctl(fault, ZEROPAGE, bytearray(struct.pack("QQQQ", place, len(page), 0, 0)))
    holder.join()
"""


class Held:
    """It, while its process lives."""

    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._holder = holder

    def __bool__(self) -> bool:
        return self._holder.poll() is None

    def release(self) -> None:
        """Let it go, if it is held."""
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait()


@contextmanager
def rtnl_held() -> Iterator[Held]:
    """Hold it; some link of this namespace needs an address. For short: nobody on this machine gets it meanwhile."""
    command = [sys.executable, "-c", _HOLDER, str(AT_MOST_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stderr
        if not holder.stdout.readline():
            pytest.skip(f"nobody can hold the mutex: {holder.stderr.read().decode().splitlines()[-1]}")
        held = Held(holder)
        try:
            yield held
        finally:
            held.release()
