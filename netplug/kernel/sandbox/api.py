"""Network namespaces of containers, and DNS sockets for them: as the engine sees them. Real in `sandbox.service`."""

import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol

from netplug.drivers.steps import IPAddress, Resolver


class Served(Protocol):
    """What serves a pair of sockets, which are its own, until it is closed."""

    def close(self) -> None: ...


class Interception(Protocol):
    """Sockets in a sandbox, to which what is asked of a name server there comes; they are the caller's to close."""

    udp: socket.socket
    tcp: socket.socket

    def open(self, family: int, kind: int, peer: object) -> socket.socket:
        """Return a socket of the sandbox by which that name server itself is asked; blocks for 0.3 ms.

        Raises:
            OSError: the sandbox is gone.
        """

    def end(self) -> None:
        """Leave that name server alone again, of whose sandbox nothing may be left; blocks for a millisecond."""


Serve = Callable[[Resolver, socket.socket, socket.socket], Served]
"""Is given a step, its UDP and its TCP socket."""


class Sandboxes(Protocol):
    """Network namespaces."""

    async def find(self, ref: str) -> tuple[str, str]:
        """Find a network namespace by its path, or by its name below /run/netns.

        Returns its absolute path and its identity, which no other namespace has, had or will have
        (`netplug.kernel.sandbox.netns.identity`).

        Raises:
            NetplugError: "not_found"; "invalid" when it is no network namespace, or the host's own.
        """

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether a process lives in the network namespace of this path; False when there is none.

        With an identity, that one is meant, whatever is at the path by now.
        """

    async def gateways(self, path: str) -> frozenset[IPAddress]:
        """Return the gateways of a sandbox's default routes, one of each IP version; empty where there is none."""

    async def intercept(self, path: str, server: IPv4Address) -> Interception:
        """Have what a sandbox asks of the name server at an address come to us; a former life's is taken over.

        Raises:
            NetplugError: "not_found", there is no sandbox of this path; "unavailable", it cannot be done there.
        """


class ResolverSockets(Protocol):
    """The sockets of `Resolver` steps."""

    def serve_resolvers(self, serve: Serve) -> None:
        """Have the sockets of `Resolver` steps served from now on, also of those ensured before.

        Who serves them closes them when told to close. Without anybody, what is asked waits in their queues.
        """
