"""Notifications to systemd, which starts the daemon as a service of `Type=notify`."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Notify systemd (sd_notify(3)), if the service expects it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)
