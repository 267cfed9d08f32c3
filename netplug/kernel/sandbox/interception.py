"""DNS interception: queries that a sandbox sends to another name server are redirected to our sockets.

A table in the sandbox translates port 53 of the server's address to our sockets (DNAT). Its priority is before
iptables, and before the rules of Docker (verified on 20.10, which uses iptables). Queries that we send to the server
ourselves have the mark `MARK` and are not redirected. The table is owned by our netlink socket. If this process is
killed, the kernel removes the table, and queries reach the server again.
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
"""Before our own `forwards` (-101) and iptables (NF_IP_PRI_NAT_DST, -100)."""
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
                ("sent by netplug", equal(_MARK, MARK.to_bytes(4, sys.byteorder)) + verdict(nft.RETURN)),
                ("redirect queries", dnat("servers", nft.IPV4, 4, _DESTINATION, L4PROTO, payload(2, 2, 2))),
            ),
        ),
    ),
)
TABLES = (replace(TABLE, flags=nft.OWNED), TABLE)
"""The second is for kernels without NFT_TABLE_F_OWNER. There the table stays if we are killed, until the next start."""
_PROTOCOLS = (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
_UNKNOWN_FLAG = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_BACKLOG = 128


class Interception:
    """Redirects port 53 of `server` in a sandbox to sockets, until `end`. The caller closes the sockets."""

    def __init__(self, path: str, server: IPv4Address) -> None:
        """Open the sockets and install the table. A table left by an earlier process is replaced. Blocks for 1 ms.

        Raises:
            NetplugError: "not_found": the sandbox is gone; "unavailable": it is not possible there.
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
        """Return a socket in the sandbox whose queries reach the other server. Blocks for 0.3 ms.

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
        """Remove the redirection. It is no error if the sandbox is gone."""
        tables, self._tables = self._tables, None
        if tables is None:
            return
        try:
            tables.remove_table(TABLE)
        finally:
            tables.close()


def _listen(server: IPv4Address) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket with the same port, at the server's address."""
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


def redirect_dns(tables: Tables, server: IPv4Address, port: int, variants: Sequence[Table] = TABLES) -> Table:
    """Redirect port 53 of a server to a port. Return the first variant of the table that the kernel supports.

    Raises:
        NetlinkError: the kernel supports none, or another process owns the table.
    """
    target = padded(server.packed, port.to_bytes(2, "big"))
    keys = [padded(server.packed, bytes((protocol,)), (53).to_bytes(2, "big")) for protocol in _PROTOCOLS]
    for variant in variants:
        try:
            tables.ensure_table(variant)
        except NetlinkError as error:
            if variant is variants[-1] or error.errno not in _UNKNOWN_FLAG:
                raise
        else:
            tables.ensure(variant, {"servers": dict.fromkeys(keys, target)}, lambda _, key: key in keys)
            return variant
    raise ValueError("no variants given")


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
        words = f"DNS queries of sandbox {path} cannot be answered: {error.strerror or error}"
        raise NetplugError("unavailable", words) from error
