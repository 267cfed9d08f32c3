"""Listening in a sandbox in front of another name server: what is sent there comes to us, but for our own questions.

A table of ours in the sandbox leads port 53 of the server's address to our sockets, before the chains of iptables and
the tables of Docker do (verified on 20.10, whose chains are of iptables). Questions that bear `MARK` pass, so that
the other server can be asked by us. The table goes with our netlink socket: should we be killed, the other server is
asked again from that moment on.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address

from netplug.errors import NetplugError
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, NetlinkError
from netplug.kernel.netlink.nf_tables import L4PROTO, BaseChain, Set, Table, dnat, equal, meta, padded, payload, verdict
from netplug.kernel.sandbox.netns import netlink_in, open_netns, run_in

MARK = 0x6E70_0035
_MARK = meta(3, 4)
_PRIORITY = -110
"""Before our own `forwards`, and before iptables (NF_IP_PRI_NAT_DST, -100)."""
_DESTINATION = payload(1, 16, 4)
_SERVICE, _TARGET = ("inet_proto", "inet_service"), ("ipv4_addr", "inet_service")
TABLE = Table(
    nft.IPV4,
    "netplug-dns",
    (Set("servers", ("ipv4_addr", *_SERVICE), _TARGET),),
    (
        BaseChain(
            "output",
            "nat",
            nft.OUTPUT,
            _PRIORITY,
            (
                ("asked by netplug", equal(_MARK, MARK.to_bytes(4, sys.byteorder)) + verdict(nft.RETURN)),
                ("names", dnat("servers", nft.IPV4, 4, _DESTINATION, L4PROTO, payload(2, 2, 2))),
            ),
        ),
    ),
)
TABLES = (replace(TABLE, flags=nft.OWNED), TABLE)
"""The second for kernels that know no owners: there it stays behind when we are killed, until we are back."""
_PROTOCOLS = (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
_UNKNOWN_FLAG = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_BACKLOG = 128


class Interception:
    """Sockets in a sandbox, to which port 53 of `server` leads until `end`. The sockets are the caller's to close."""

    def __init__(self, path: str, server: IPv4Address) -> None:
        """Set it up; what a former life left is taken over. Blocks for a millisecond.

        Raises:
            NetplugError: "not_found", the sandbox is gone; "unavailable", it cannot be done there.
        """
        self._path = path
        with _translated_errors(path), _opened(path) as fd:
            self.udp, self.tcp = run_in(fd, lambda: _listen(server))
            port = self.udp.getsockname()[1]
            try:
                tables = Tables(netlink_in(fd, NETLINK_NETFILTER))
                try:
                    redirect_dns(tables, server, port)
                except BaseException:
                    tables.close()
                    raise
                self._tables: Tables | None = tables
            except BaseException:
                self.udp.close()
                self.tcp.close()
                raise

    def open(self, family: int, kind: int, _: object = None) -> socket.socket:
        """Return a socket of the sandbox by which the other server itself is asked; blocks for 0.3 ms.

        Raises:
            OSError: the sandbox is gone.
        """

        def opened() -> socket.socket:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            return sock

        with _opened(self._path) as fd:
            return run_in(fd, opened)

    def end(self) -> None:
        """Leave the other server alone again; that the sandbox is gone is fine."""
        tables, self._tables = self._tables, None
        if tables is None:
            return
        try:
            tables.remove_table(TABLE)
        finally:
            tables.close()


def _listen(server: IPv4Address) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket with the same port, at the address that they stand in for."""
    udp, tcp = (
        socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
    )
    try:
        tcp.bind((str(server), 0))
        udp.bind(tcp.getsockname())
        tcp.listen(_BACKLOG)
    except BaseException:
        udp.close()
        tcp.close()
        raise
    return udp, tcp


def redirect_dns(tables: Tables, server: IPv4Address, port: int, forms: Sequence[Table] = TABLES) -> Table:
    """Lead port 53 of a server to a port, by the first form of the table that the kernel knows, and return that.

    Raises:
        NetlinkError: it knows none, or the table is another process's.
    """
    target = padded(server.packed, port.to_bytes(2, "big"))
    keys = [padded(server.packed, bytes((protocol,)), (53).to_bytes(2, "big")) for protocol in _PROTOCOLS]
    for form in forms:
        try:
            tables.ensure_table(form)
        except NetlinkError as error:
            if form is forms[-1] or error.errno not in _UNKNOWN_FLAG:
                raise
        else:
            tables.ensure(form, {"servers": dict.fromkeys(keys, target)}, lambda _, key: key in keys)
            return form
    raise ValueError("no form to choose from")


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = open_netns(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _translated_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NetplugError("not_found", f"sandbox {path} is gone") from error
    except OSError as error:
        words = f"names of sandbox {path} cannot be served: {error.strerror or error}"
        raise NetplugError("unavailable", words) from error
