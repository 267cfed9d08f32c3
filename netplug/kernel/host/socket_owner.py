"""Finds the process that serves a Unix socket, also with systemd's socket activation.

SO_PEERCRED (unix(7)) names the process that listens. With socket activation that is systemd. So the sender of a reply
is used (SCM_CREDENTIALS), which the kernel adds to each message.
"""

import socket
import struct
from contextlib import suppress

from netplug.kernel.host import runtimes

DEADLINE_S = 5.0
"""For the reply to a greeting. A process that has not replied by then hangs."""
_CREDENTIALS = struct.Struct("=iII")


def answering_process(path: str, greeting: bytes) -> str:
    """Return the identity of the process that replies to a greeting (`runtimes.process_identity`).

    It is empty for a process outside our PID namespace. Blocks.

    Raises:
        TimeoutError: no process replies.
        OSError: no process listens.
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
