"""DNS interception of the fake kernel: sockets on the host's loopback link, to which tests send queries."""

import socket
from ipaddress import IPv4Address


class FakeInterception:
    """Sockets for the sandbox at `path`, listed in `active` until `end`. `at`: the address they listen on."""

    def __init__(self, active: "dict[str, FakeInterception]", path: str, server: IPv4Address) -> None:
        self.udp, self.tcp = (
            socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        self.tcp.bind((str(server), 0))
        self.tcp.listen()
        self.udp.bind(self.tcp.getsockname())
        self.at = self.udp.getsockname()
        self._active, self._path = active, path
        active[path] = self

    def open(self, family: int, kind: int, _: object = None) -> socket.socket:
        """Return a socket in this namespace."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)

    def end(self) -> None:
        """Remove the interception from the active ones."""
        if self._active.get(self._path) is self:
            del self._active[self._path]
