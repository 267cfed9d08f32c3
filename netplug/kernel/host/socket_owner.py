"""Which process answers at a Unix socket, also where systemd listens in its place.

Who listens is what a connection tells of its peer (unix(7), SO_PEERCRED), and with socket activation that is systemd,
whoever answers. So the sender of an answer is looked at (SCM_CREDENTIALS), which the kernel names with each message.
"""

import socket
import struct
from contextlib import suppress

from netplug.kernel.host import runtimes

DEADLINE_S = 5.0
"""For a greeting; who does not answer it by then hangs."""
_CREDENTIALS = struct.Struct("=iII")


def answering_process(path: str, greeting: bytes) -> str:
    """Return which process answers a greeting: its id and its start; empty where that cannot be seen.

    It cannot be of a process outside of our PID namespace. Blocks.

    Raises:
        TimeoutError: nobody answers.
        OSError: nobody listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(DEADLINE_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.connect(path)
        sock.sendall(greeting)
        _, messages, _, _ = sock.recvmsg(1024, socket.CMSG_SPACE(_CREDENTIALS.size))
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size:
            with suppress(OSError, IndexError):
                return runtimes.process_identity(_CREDENTIALS.unpack(data)[0])
    return ""
