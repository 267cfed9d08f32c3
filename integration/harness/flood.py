"""Datagrams that are not to arrive."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from .netns import open_socket
from .traffic import Placed, SeenServer

_EVERY_S = 0.002


@contextmanager
def flood(sender: Placed, receiver: Placed, address: str, port: int, *, source: str = "") -> Iterator[SeenServer]:
    """Send a datagram every 2 ms during the block. What arrives nevertheless is in `seen`."""
    over = Event()
    with SeenServer(receiver, "udp", port) as server, open_socket(sender.netns, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))

        def send() -> None:
            while not over.wait(_EVERY_S):
                with suppress(OSError):
                    sock.sendto(b"?", (address, port))

        thread = Thread(target=send, name=f"flood-{port}")
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join()
