"""Notifications of foreign changes to our kernel objects.

We watch links (deleted, renamed, set down, with another MTU, MAC or trait), deleted addresses and the routes that the
kernel made with them, flags of bridge ports, changed FDB entries and neighbours (rtnetlink(7)), limits of rates,
whether the host forwards (RTM_NEWNETCONF), and commits of nf_tables (``NFT_MSG_NEWGEN``). The kernel also tells our own
changes. So we ignore links whose removal was requested, flags that we took ourselves, links and entries that become as
we want them (see `forwarding_entries`), limits that our own socket set, and commits while iptables runs for us. Of
iptables-legacy there are no notifications; see `legacy_watch`.

Addresses and MTUs of foreign links are watched as well, since tunnels depend on them. Creating a veth pair causes
dozens of messages of a kilobyte each. A socket filter drops most of them: all of a veth with the MTU of a network.

Messages are parsed by hand, since each attach causes some, also CNI without a daemon. With pyroute2, each attach would
load its schemas (20 ms, 1.8 MB), and decoding a message would take 0.04 ms instead of 0.002 (``bench/netlink.py``).
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from netplug.drivers.naming import MARK, PORTS
from netplug.kernel.host.socket_filters import attach
from netplug.kernel.links.forwarding_entries import DELNEIGH, NEWNEIGH
from netplug.kernel.netlink.connection import attrs, messages, select_attrs, string, walk
from netplug.kernel.netlink.link_filter import DELROUTE, NEWLINK, NEWNETCONF, chatter_filter, lost_routes_filter
from netplug.kernel.netlink.link_state import LinkState, told_traits
from netplug.kernel.netlink.port_flags import HAIRPIN, PortFlags
from netplug.kernel.netlink.rtnl import CARRIES, IFF_NOARP, IFF_UP, IFLA_GROUP, IFLA_LINKINFO
from netplug.tasks.signal import Signal

DELLINK, _RTM_NEWADDR, _RTM_DELADDR = 17, 20, 21
GROUPS = 0x1 | 0x4 | 0x8 | 0x10 | 0x100 | 1 << 23 | 1 << 24
"""RTMGRP_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV6_IFADDR; RTNLGRP_IPV4_NETCONF, _IPV6_NETCONF."""
_LIMITS = frozenset({36, 37, 44, 45})
"""RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTFILTER, RTM_DELTFILTER."""
_PORT_AT = 12
"""Where the port of the socket is, in the head of a message, whose request it tells of (netlink(7), nlmsg_pid)."""
_ROUTE_GROUPS = 0x40 | 0x400
"""RTMGRP_IPV4_ROUTE, _IPV6_ROUTE."""
_RTA_DST, _RTA_OIF = 1, 4
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NFT_MSG_NEWGEN = (10 << 8) | 15
_NFTA_GEN_ID, _NFTA_GEN_PROC_NAME = 1, 3
_TABLES, _TABLE_AT = b"netplug", 8
"""How names of our tables begin, and where they are in a message: behind struct nfgenmsg and the attribute's head."""
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_PROTINFO, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 1, 3, 4, 12, 52, 53
_NETCONFA_FORWARDING = 2
_NEW_LINK = 0xFFFFFFFF
"""What has changed of a link that is new: all flags."""
_OF_LINKS = frozenset({_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, IFLA_LINKINFO, IFLA_GROUP, _IFLA_PROP_LIST})
_OF_PORTS = frozenset({_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_PROTINFO})
_AF_UNSPEC, _AF_BRIDGE = 0, 7
_SCOPE_LINK = 253
"""Addresses of this scope and above are not reachable from other hosts (linux/rtnetlink.h, rt_scope_t)."""
_BUFFER = 1 << 16


class ForeignChanges:
    """Sets `event` on a foreign change to our links or entries, and `commits` on one to the firewall.

    Sets `tables` before `commits` if it was one to tables of ours, by their names. Sets `underlay` if a foreign link
    got or lost an address, or changed its MTU.

    Args:
        wanted: returns how a link, by name, is to be that we created and did not remove; None for all others.
        is_own_work: returns whether a ruleset generation is of our own commit; is given the name of the process too.
        is_foreign_change: returns whether an FDB or neighbour notification, by type and body, is a foreign change.
        wants_hairpin: returns whether a bridge port, by name, shall be in hairpin mode.
        is_foreign_limit: returns whether a change of a link's limits, by its name and the port of a socket, is foreign.
        on_carrier: called with the name of a link that has a carrier, on each change of it.
    """

    def __init__(
        self,
        wanted: Callable[[str], LinkState | None],
        is_own_work: Callable[[int, str], bool],
        is_foreign_change: Callable[[int, bytes], bool],
        wants_hairpin: Callable[[str], bool],
        is_foreign_limit: Callable[[str, int], bool],
        on_carrier: Callable[[str], None],
    ) -> None:
        self.event = asyncio.Event()
        self.commits = asyncio.Event()
        self.tables = asyncio.Event()
        self._touched = False
        self.underlay = Signal()
        self._links: dict[int, LinkState] = {}
        self._ports: dict[int, PortFlags] = {}
        self._usual_mtus: set[int] = set()
        self._route: socket.socket | None = None
        self._wanted = wanted
        self._is_own_work = is_own_work
        self._is_foreign_change = is_foreign_change
        self._wants_hairpin = wants_hairpin
        self._is_foreign_limit = is_foreign_limit
        self._on_carrier = on_carrier
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []

    def open(self, links: Mapping[int, LinkState], ports: Mapping[int, PortFlags]) -> None:
        """Start watching this thread's network namespace. `links`: those it has; `ports`: of bridges; by index."""
        self._links, self._ports = dict(links), dict(ports)
        self._route = self._listen(0, GROUPS, self._on_route)
        attach(self._route, chatter_filter(self._usual_mtus))
        attach(self._listen(0, _ROUTE_GROUPS, self._on_lost_route), lost_routes_filter())
        try:
            nft = self._listen(_NETLINK_NETFILTER, 0, self._on_nft)
            nft.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError:
            return  # a kernel without nf_tables: the slow timer finds changes

    def expect(self, mtus: Collection[int]) -> None:
        """Take these MTUs for those of our veths: only of one with another MTU more is to be heard than its end."""
        if self._route and not self._usual_mtus.issuperset(mtus):
            self._usual_mtus.update(mtus)
            attach(self._route, chatter_filter(self._usual_mtus))

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
                self.tables.set()
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
            elif kind in {NEWNEIGH, DELNEIGH}:
                if self._is_foreign_change(kind, body):
                    self.event.set()
            elif kind in _LIMITS:
                self._on_limit(body, int.from_bytes(data[_PORT_AT : _PORT_AT + 4], sys.byteorder))
            elif kind == NEWNETCONF and attrs(body, 4).get(_NETCONFA_FORWARDING) == bytes(4):
                self.event.set()

    def _on_link(self, kind: int, body: bytes) -> None:
        """Handle a link message. A port that leaves its bridge is a DELLINK too, of family AF_BRIDGE."""
        found = select_attrs(body, 16, _OF_LINKS)
        name, index = string(found.get(_IFLA_IFNAME)), int.from_bytes(body[4:8], sys.byteorder)
        flags, change = struct.unpack_from("=II", body, 8)
        if kind == NEWLINK and flags & CARRIES == CARRIES:
            self._on_carrier(name)
        if kind == DELLINK:
            self._ports.pop(index, None)
            if self._wanted(name):
                self.event.set()
        elif change != _NEW_LINK and change & (flags ^ IFF_UP) & (IFF_UP | IFF_NOARP) and self._wanted(name):
            self.event.set()  # it is down, or asks for no MACs
        if body[0] == _AF_UNSPEC and _IFLA_MTU in found:
            mtu = int.from_bytes(found[_IFLA_MTU], sys.byteorder)
            names = _names(name, found)
            ours = kind == NEWLINK and not names[1].startswith(PORTS) and self._wanted(names[1]) is not None
            traits = told_traits(found) if ours else ()
            self._on_state(kind, index, names, LinkState(mtu, found.get(_IFLA_ADDRESS, b"").hex(":"), traits=traits))

    def _on_state(self, kind: int, index: int, names: tuple[str, str], now: LinkState) -> None:
        """Compare a link with what is wanted, and with what it was. `names`: its name, and the one that we gave it."""
        if kind == DELLINK:
            self._links.pop(index, None)
            return
        name, given = names
        wanted = self._wanted(given)
        if given.startswith(PORTS):
            before = wanted  # of its usual states nothing is heard
        else:
            before = self._links.get(index)
            self._links[index] = now
        if wanted is None:
            if before and before.mtu != now.mtu:
                self.underlay.set()
        elif name != given or (before and now.left(before, wanted)):
            self.event.set()

    def _on_port(self, body: bytes) -> None:
        """Handle what a bridge tells of a port: a flag that it lost and we did not take is a foreign change."""
        found = select_attrs(body, 16, _OF_PORTS)
        flags = found.get(_IFLA_PROTINFO)
        if not flags:
            return
        name, index = string(found.get(_IFLA_IFNAME)), int.from_bytes(body[4:8], sys.byteorder)
        wanted = self._wanted(name)
        own_mac = wanted is None or found.get(_IFLA_ADDRESS, b"").hex(":") == wanted.mac
        now = PortFlags.told(flags, int.from_bytes(body[8:12], sys.byteorder), own_mac=own_mac)
        before, self._ports[index] = self._ports.get(index, now), now
        if wanted and now.left(before, wanted.port | (HAIRPIN if self._wants_hairpin(name) else 0)):
            self.event.set()

    def _on_address(self, kind: int, body: bytes) -> None:
        scope, index = body[3], int.from_bytes(body[4:8], sys.byteorder)
        try:
            ours = self._wanted(socket.if_indextoname(index)) is not None
        except OSError:  # the link was deleted too, which has a notification of its own
            ours = False
        if ours and kind == _RTM_DELADDR:
            self.event.set()
        elif not ours and scope < _SCOPE_LINK:
            self.underlay.set()

    def _on_limit(self, body: bytes, port: int) -> None:
        """Handle what is told of a qdisc or a filter."""
        with suppress(OSError):  # the link was deleted too, which has a notification of its own
            link = socket.if_indextoname(int.from_bytes(body[4:8], sys.byteorder))
            if self._is_foreign_limit(link, port):
                self.event.set()

    def _on_lost_route(self, data: bytes) -> None:
        """Handle that the route of an address's subnet was deleted. Link-local ones go with each veth."""
        for kind, body in messages(data):
            found = attrs(body, 12) if kind == DELROUTE else {}
            if _RTA_OIF in found and not found.get(_RTA_DST, b"").startswith(b"\xfe\x80"):
                try:
                    ours = self._wanted(socket.if_indextoname(int.from_bytes(found[_RTA_OIF], sys.byteorder)))
                except OSError:  # the link was deleted
                    continue
                if ours:
                    self.event.set()

    def _on_nft(self, data: bytes) -> None:
        for kind, body in messages(data):
            if kind != _NFT_MSG_NEWGEN:
                # The first attribute of all others is the table; what belongs to a commit comes before its generation.
                self._touched = self._touched or body.startswith(_TABLES, _TABLE_AT)
                continue
            found, touched, self._touched = attrs(body, 4), self._touched, False
            generation = int.from_bytes(found.get(_NFTA_GEN_ID, b""), "big")
            if not self._is_own_work(generation, string(found.get(_NFTA_GEN_PROC_NAME))):
                if touched:
                    self.tables.set()
                self.commits.set()

    def close(self) -> None:
        """Stop listening."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()


def _names(name: str, found: Mapping[int, bytes]) -> tuple[str, str]:
    """Return the name of a link, and the one that we gave it: its altname tells, whatever others call it."""
    for kind, value in walk(found.get(_IFLA_PROP_LIST, b"")):
        if kind == _IFLA_ALT_IFNAME and (altname := string(value)).startswith(MARK):
            return name, altname.removeprefix(MARK)
    return name, name
