"""Answers what waits in the sockets of systemd, if the settings keep the daemon from starting.

Waiting mends no mistake. Without an answer, dockerd would not finish its own start, nor a command end.
"""

import contextlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path

from netplug.config import CNI_SOCKET

_MOST = 4096
"""Connections of one socket: more than wait in its queue."""
_PATIENCE_S = 0.5
"""For one that has connected and not asked. Clients ask at once."""


def refuse_waiting(inherited: Mapping[Path, socket.socket], reason: str) -> int:
    """Answer each request that waits with the reason, as the daemon's front ends do; return how many.

    CNI calls stay in their queue: runtimes have a deadline of their own.
    """
    words = f"the netplug daemon does not start: {reason}"
    hint = "correct it: journalctl -u netplug"
    error = {"kind": "unreachable", "message": words, "hint": hint}
    body = json.dumps({"Err": words, "Error": words, "error": error}).encode()
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    answer = b"HTTP/1.1 503 Service Unavailable\r\n" + head.encode() + body
    return sum(_refuse(sock, answer) for path, sock in inherited.items() if path.name != CNI_SOCKET)


def _refuse(sock: socket.socket, answer: bytes) -> int:
    refused = 0
    with contextlib.suppress(OSError):  # BlockingIOError: nobody waits any more
        while refused < _MOST:
            connection, _ = sock.accept()
            refused += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_PATIENCE_S)
                connection.recv(1 << 16)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):  # what is left unread would reset the connection
                    pass
    return refused
