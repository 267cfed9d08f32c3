"""What stands in for listening in a sandbox: sockets on this host's own loopback link, that tests can ask."""

import socket
from ipaddress import IPv4Address


class FakeInterception:
    """One of `all_of`, by the path of the sandbox, until its end. `at`: where it listens."""

    def __init__(self, all_of: "dict[str, FakeInterception]", path: str, server: IPv4Address) -> None:
        self.udp, self.tcp = (
            socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        self.tcp.bind((str(server), 0))
        self.tcp.listen()
        self.udp.bind(self.tcp.getsockname())
        self.at = self.udp.getsockname()
        self._all, self._path = all_of, path
        all_of[path] = self

    def open(self, family: int, kind: int, _: object = None) -> socket.socket:
        """Return a socket of this namespace."""
        return socket.socket(family, kind | socket.SOCK_NONBLOCK)

    def end(self) -> None:
        """Be one of them no more."""
        if self._all.get(self._path) is self:
            del self._all[self._path]
