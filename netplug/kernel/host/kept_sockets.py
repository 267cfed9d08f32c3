"""Sockets that outlive this process, so that ports stay reserved while it restarts. Who keeps them is not said here."""

import socket
from typing import Protocol

from netplug.drivers.steps import HostPort


class Keeper(Protocol):
    """Keeps sockets for the next life of this process, by name."""

    def take(self, name: str) -> socket.socket | None:
        """Return the socket that the former life had; from now on it is the caller's."""

    def left(self) -> list[str]:
        """Return the names of the sockets of the former life that were not taken."""

    def drop(self, name: str) -> None:
        """Close one of them, and wait until nobody has it any more."""

    def keep(self, name: str, sock: socket.socket) -> None:
        """Keep a socket. It stays the caller's, who calls `forget` before it is closed for good."""

    def forget(self, name: str) -> None:
        """Keep a socket no more; no effect if it is not kept."""

    async def settled(self) -> None:
        """Wait until nobody has the sockets that are kept no more."""


class KeepsNone:
    """A `Keeper` that keeps nothing."""

    def take(self, name: str) -> socket.socket | None:  # noqa: ARG002 - the signature of `Keeper`
        return None

    def left(self) -> list[str]:
        return []

    def drop(self, name: str) -> None:
        """Do nothing."""

    def keep(self, name: str, sock: socket.socket) -> None:
        """Do nothing."""

    def forget(self, name: str) -> None:
        """Do nothing."""

    async def settled(self) -> None:
        return


def name_of(step: HostPort) -> str:
    """Return the name of the socket that reserves a port. It has no ":", as sd_pid_notify_with_fds(3) demands.

    >>> from ipaddress import ip_address
    >>> from netplug.drivers.steps import Proto
    >>> name_of(HostPort(Proto.TCP, ip_address("192.0.2.1"), 8080))
    'port-tcp-c0000201-8080'
    """
    return f"port-{step.proto}-{step.address.packed.hex()}-{step.port}"


def may_conflict(step: HostPort, name: str) -> bool:
    """Return whether a kept socket has the same port as a step, at whatever address of the IP version."""
    parts, mine = name.split("-"), name_of(step).split("-")
    return len(parts) == len(mine) and (parts[1], len(parts[2]), parts[3]) == (mine[1], len(mine[2]), mine[3])
