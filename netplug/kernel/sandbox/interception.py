"""DNS interception: queries that a sandbox sends to another name server are redirected to our sockets.

A table in the sandbox translates port 53 of the server's address to our sockets (DNAT). Its priority is before
iptables, and before the rules of Docker (verified on 20.10, which uses iptables). Queries that we send to the server
ourselves have the mark `MARK` and are not redirected. The table is owned by our netlink socket. If this process is
killed, the kernel removes the table, and queries reach the server again.
"""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

from netplug.drivers import tables
from netplug.drivers.steps import Element, Proto, Table
from netplug.errors import NetplugError
from netplug.kernel.api import StepError
from netplug.kernel.firewall.tables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, NetlinkError
from netplug.kernel.sandbox.netns import netlink_in, open_netns, run_in

MARK = 0x6E70_0035
"""Of what we send to the server ourselves; the table's text has it too."""
TABLE = "ip netplug-dns"
VARIANTS = (nft.OWNED, 0)
"""Flags of the table. The second is for kernels without NFT_TABLE_F_OWNER. There the table stays if we are killed,
until the next start."""
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
                self._tables: Tables | None = redirect_dns(netlink_in(fd, NETLINK_NETFILTER), server, port)
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
        ours, self._tables = self._tables, None
        if ours is None:
            return
        try:
            ours.remove((_table(),))
        finally:
            ours.close()


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


def redirect_dns(netlink: Netlink, server: IPv4Address, port: int, variants: Sequence[int] = VARIANTS) -> Tables:
    """Redirect port 53 of a server to a port, by the first of the variants that the kernel supports.

    `netlink` is a socket of the sandbox. It belongs to the result, and is closed if this fails.

    Raises:
        StepError: the kernel supports none, or another process owns the table.
    """
    target = f"{server} . {port}"
    elements = [Element(TABLE, "servers", f"{server} . {it} . 53", target) for it in (Proto.UDP, Proto.TCP)]
    try:
        for flags in variants:
            made = Tables(netlink, flags)
            try:
                made.ensure((_table(), *elements))
            except StepError as error:
                if flags == variants[-1] or not _is_unknown(error):
                    raise
            else:
                return made
    except BaseException:
        netlink.close()
        raise
    raise ValueError("no variants given")


def _table() -> Table:
    family, name = TABLE.split()
    return Table(family, name, tables.text("resolver"))


def _is_unknown(error: StepError) -> bool:
    """Return whether the kernel does not know a flag of the table."""
    return isinstance(error.__cause__, NetlinkError) and error.__cause__.errno in _UNKNOWN_FLAG


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
    except (OSError, StepError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        words = f"DNS queries of sandbox {path} cannot be answered: {getattr(cause, 'strerror', None) or cause}"
        raise NetplugError("unavailable", words, hint=getattr(error, "hint", "")) from error
