"""Notifications of foreign changes to our kernel objects.

We watch deleted links and addresses, flags of bridge ports, changed FDB entries and neighbours (rtnetlink(7)), and
commits of nf_tables (``NFT_MSG_NEWGEN``). The kernel also notifies about our own changes. So we ignore links whose
removal was requested, flags that we took ourselves, entries that are as we want them (see `forwarding_entries`), and
commits while iptables runs for us. Of iptables-legacy there are no notifications; see `legacy_watch`.

Addresses and MTUs of foreign links are watched as well, since tunnels depend on them. Creating a veth pair causes
dozens of messages of a kilobyte each. A socket filter drops most of them.

Messages are parsed by hand, since each attach causes some, also CNI without a daemon. With pyroute2, each attach would
load its schemas (20 ms, 1.8 MB), and decoding a message would take 0.04 ms instead of 0.002 (``bench/netlink.py``).
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from netplug.drivers.naming import PORTS, SANDBOX_SIDES
from netplug.kernel.host.socket_filters import (
    AND,
    EQUAL,
    LOAD,
    LOAD_BYTE,
    LOAD_HALF,
    RETURN,
    WHOLE,
    Instruction,
    attach,
)
from netplug.kernel.links.forwarding_entries import DELNEIGH, NEWNEIGH
from netplug.kernel.netlink.connection import attrs, messages, select_attrs, string
from netplug.tasks.signal import Signal

NEWLINK, DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 20, 21
GROUPS = 0x1 | 0x4 | 0x10 | 0x100
"""RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV6_IFADDR."""
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NFT_MSG_NEWGEN = (10 << 8) | 15
_NFTA_GEN_ID, _NFTA_GEN_PROC_NAME = 1, 3
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_IFLA_IFNAME, _IFLA_MTU, _IFLA_PROTINFO = 3, 4, 12
_HAIRPIN, _ISOLATED, _PINNED = (struct.pack("=HHB", 5, kind, value) for kind, value in ((4, 1), (33, 1), (8, 0)))
"""IFLA_BRPORT_MODE, _ISOLATED and _LEARNING, as they are for a port in hairpin mode, isolated, and that learns no MACs.

They are searched, not parsed: a port has forty attributes, and that would take three times as long.
"""
_OF_LINKS = frozenset({_IFLA_IFNAME, _IFLA_MTU})
_OF_PORTS = frozenset({_IFLA_IFNAME, _IFLA_PROTINFO})
_AF_UNSPEC, _AF_BRIDGE = 0, 7
_CARRIES = 0x40 | 1 << 16
"""IFF_RUNNING and IFF_LOWER_UP. Each may be set on a new link before frames can be sent, so both are required."""
_SCOPE_LINK = 253
"""Addresses of this scope and above are not reachable from other hosts (linux/rtnetlink.h, rt_scope_t)."""
_BUFFER = 1 << 16


@dataclass(frozen=True, slots=True)
class PortFlags:
    """What a bridge port of ours may be, and others may take from it. `pinned`: it learns no MACs."""

    hairpin: bool
    isolated: bool
    pinned: bool


class ForeignChanges:
    """Sets `event` on a foreign change to our links or entries, and `commits` on one to the firewall.

    Sets `underlay` if a foreign link got or lost an address, or changed its MTU.

    Args:
        is_ours: returns whether a link, by name, is one that we created and did not remove.
        is_own_work: returns whether a ruleset generation is of our own commit; is given the name of the process too.
        is_foreign_change: returns whether an FDB or neighbour notification, by type and body, is a foreign change.
        wants_hairpin: returns whether a bridge port, by name, shall be in hairpin mode.
        on_carrier: called with the name of a link that has a carrier, on each change of it.
    """

    def __init__(
        self,
        is_ours: Callable[[str], bool],
        is_own_work: Callable[[int, str], bool],
        is_foreign_change: Callable[[int, bytes], bool],
        wants_hairpin: Callable[[str], bool],
        on_carrier: Callable[[str], None],
    ) -> None:
        self.event = asyncio.Event()
        self.commits = asyncio.Event()
        self.underlay = Signal()
        self._mtus: dict[int, int] = {}
        self._ports: dict[int, PortFlags] = {}
        self._is_ours = is_ours
        self._is_own_work = is_own_work
        self._is_foreign_change = is_foreign_change
        self._wants_hairpin = wants_hairpin
        self._on_carrier = on_carrier
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    def open(self, mtus: Mapping[int, int], ports: Mapping[int, PortFlags]) -> None:
        """Start watching this thread's network namespace. `mtus`: those of its links; `ports`: of bridges; by index."""
        self._mtus, self._ports = dict(mtus), dict(ports)
        attach(self._listen(0, GROUPS, self._on_route), without_chatter())
        try:
            nft = self._listen(_NETLINK_NETFILTER, 0, self._on_nft)
            nft.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            return  # a kernel without nf_tables: the slow timer finds changes

    def _listen(self, protocol: int, groups: int, react: Callable[[bytes], None]) -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.bind((0, groups))
        self._loop.add_reader(sock.fileno(), self._drain, sock, react)
        return sock

    def _drain(self, sock: socket.socket, react: Callable[[bytes], None]) -> None:
        while True:
            try:
                react(sock.recv(_BUFFER))
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: messages were lost, so anything may have changed
                self.event.set()
                self.commits.set()
                self.underlay.set()
                return

    def _on_route(self, data: bytes) -> None:
        for kind, body in messages(data):
            if kind == NEWLINK and body[0] == _AF_BRIDGE:
                self._on_port(body)
            elif kind in {NEWLINK, DELLINK}:
                self._on_link(kind, body)
            elif kind in {_RTM_NEWADDR, _RTM_DELADDR}:
                self._on_address(kind, body)
            elif kind in {NEWNEIGH, DELNEIGH} and self._is_foreign_change(kind, body):
                self.event.set()

    def _on_link(self, kind: int, body: bytes) -> None:
        """Handle a link message. A port that leaves its bridge is a DELLINK too, of family AF_BRIDGE."""
        found = select_attrs(body, 16, _OF_LINKS)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
        ours = self._is_ours(name)
        if kind == NEWLINK and int.from_bytes(body[8:12], sys.byteorder) & _CARRIES == _CARRIES:
            self._on_carrier(name)
        if kind == DELLINK and ours:
            self.event.set()
        if kind == DELLINK:
            self._ports.pop(int.from_bytes(body[4:8], sys.byteorder), None)
        index, mtu = int.from_bytes(body[4:8], sys.byteorder), int.from_bytes(found.get(_IFLA_MTU, b""), sys.byteorder)
        if body[0] != _AF_UNSPEC or not mtu:
            return
        if kind == DELLINK:
            self._mtus.pop(index, None)
        elif self._mtus.setdefault(index, mtu) != mtu:
            self._mtus[index] = mtu
            if not ours:
                self.underlay.set()

    def _on_port(self, body: bytes) -> None:
        """Handle what a bridge tells of a port: a flag that it lost and we did not take is a foreign change."""
        found = select_attrs(body, 16, _OF_PORTS)
        flags = found.get(_IFLA_PROTINFO)
        if not flags:
            return
        name, index = string(found.get(_IFLA_IFNAME)), int.from_bytes(body[4:8], sys.byteorder)
        now = PortFlags(_HAIRPIN in flags, _ISOLATED in flags, _PINNED in flags)
        before, self._ports[index] = self._ports.get(index, now), now
        hairpin = before.hairpin and not now.hairpin and self._wants_hairpin(name)
        others = (before.isolated and not now.isolated) or (before.pinned and not now.pinned)
        if (hairpin or others) and self._is_ours(name):
            self.event.set()

    def _on_address(self, kind: int, body: bytes) -> None:
        scope, index = body[3], int.from_bytes(body[4:8], sys.byteorder)
        try:
            ours = self._is_ours(socket.if_indextoname(index))
        except OSError:  # the link was deleted too, which has a notification of its own
            ours = False
        if ours and kind == _RTM_DELADDR:
            self.event.set()
        elif not ours and scope < _SCOPE_LINK:
            self.underlay.set()

    def _on_nft(self, data: bytes) -> None:
        for kind, body in messages(data):
            if kind == _NFT_MSG_NEWGEN:
                found = attrs(body, 4)
                generation = int.from_bytes(found.get(_NFTA_GEN_ID, b""), "big")
                if not self._is_own_work(generation, string(found.get(_NFTA_GEN_PROC_NAME))):
                    self.commits.set()

    def close(self) -> None:
        """Stop listening."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()


def without_chatter() -> Iterator[Instruction]:
    """Return a filter that drops RTM_NEWLINK of our veths, and of bridge ports (AF_BRIDGE) that are not ours.

    The RTM_DELLINK of the former is enough, and what bridges tell of ports of ours: these have flags that others may
    change. The name is the first attribute of a link (net/core/rtnetlink.c, rtnl_fill_ifinfo; br_fill_ifinfo).
    """
    ports, sides = (int.from_bytes(name.encode().ljust(4, b"\0"), "big") for name in (PORTS, SANDBOX_SIDES))
    name: tuple[Instruction, ...] = ((LOAD, 0, 0, 36), (AND, 0, 0, 0xFFFFFF00))
    yield LOAD_HALF, 0, 0, 4
    yield EQUAL, 0, 11, _as_read(NEWLINK)
    yield LOAD_BYTE, 0, 0, 16
    yield EQUAL, 6, 0, _AF_BRIDGE
    yield LOAD_HALF, 0, 0, 34
    yield EQUAL, 0, 7, _as_read(_IFLA_IFNAME)
    yield from name
    yield EQUAL, 5, 0, ports
    yield EQUAL, 4, 3, sides
    yield from name
    yield EQUAL, 0, 1, ports
    yield RETURN, 0, 0, WHOLE
    yield RETURN, 0, 0, 0


def _as_read(number: int) -> int:
    """Return a 16-bit number in host byte order as the filter loads it, in network order."""
    return int.from_bytes(number.to_bytes(2, sys.byteorder), "big")
