"""Listening sockets of the name server (steps `Resolver`). Each accepts queries from one link only.

Without SO_BINDTODEVICE a container could query the gateway of a network that it is not in. Queries that arrive before a
socket is served wait in its queue.
"""

import errno
import socket

from netplug.drivers.steps import Resolver
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.sandbox.api import Serve, Served

_BACKLOG = 128
_BUFFER = 1 << 20
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
"""Bind before the address exists, or while it is tentative (ip(7), linux/in6.h)."""


class _NotServed:
    """A pair of sockets that is not served yet."""

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        self.sockets = udp, tcp

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class Resolvers:
    """The open sockets, by key of their step, with the index of the link that they are bound to."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Resolver, int, Served]] = {}
        self._serve: Serve | None = None

    def serve_resolvers(self, serve: Serve) -> None:
        """Serve all sockets from now on, including those that are open already."""
        self._serve = serve
        for key, (step, index, served) in self._open.items():
            if isinstance(served, _NotServed):
                self._open[key] = step, index, serve(step, *served.sockets)

    def ensure(self, step: Resolver) -> Outcome:
        """Open the sockets of a step unless they are open. After its link was created anew, they are opened anew."""
        what = self.drift(step)
        if not what:
            return Outcome.EQUAL
        self.remove(step)
        index = _index(step.link)
        if not index:
            raise StepError("not_found", step, f"link {step.link!r} is missing")
        try:
            sockets = _open(step)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise taken(step) from error
            words = f"the name server cannot listen at {step.address} port {step.port}: {error.strerror}"
            raise StepError("internal", step, words) from error
        self._open[step.key] = step, index, self._serve(step, *sockets) if self._serve else _NotServed(*sockets)
        return Outcome.CREATED if what == MISSING else Outcome.ADJUSTED

    def remove(self, step: Resolver) -> None:
        """Close the sockets of a step."""
        found = self._open.pop(step.key, None)
        if found:
            found[2].close()

    def drift(self, step: Resolver) -> str:
        """Return how the sockets differ from a step; empty if they do not."""
        found = self._open.get(step.key)
        if found is None:
            return MISSING
        if found[0] != step:
            return f"listens at port {found[0].port} for network {found[0].network[:12]}"
        index = _index(step.link)
        return MISSING if not index else "" if found[1] == index else "listens on a deleted link"

    def close(self) -> None:
        """Close all sockets."""
        for _, _, served in self._open.values():
            served.close()
        self._open.clear()


def taken(step: Resolver) -> StepError:
    """Return the error for a port that is in use."""
    words = f"the name server cannot listen at {step.address} port {step.port}: it is in use on this host"
    return StepError("unavailable", step, words, hint="stop what listens there (ss -lntup), or -o dns=off")


def _index(link: str) -> int:
    try:
        return socket.if_nametoindex(link)
    except OSError:
        return 0


def _open(step: Resolver) -> tuple[socket.socket, socket.socket]:
    v6 = step.address.version == 6
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            made.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # So that a container can publish this port on all addresses; see `ports`.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, step.link.encode())
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.bind((str(step.address), step.port))
        udp, tcp = made
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        tcp.listen(_BACKLOG)
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return udp, tcp
