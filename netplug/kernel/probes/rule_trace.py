"""Traces the packets of a job through nf_tables (nft(8), "meta nftrace"), and takes away after itself.

In each traced namespace tables of our own have chains before all others, whose rules set `nftrace` for the packets of
the job and their answers alone. The tables belong to the socket that made them (NFT_TABLE_F_OWNER, Linux 5.12): the
kernel deletes them with it, however the process ends. The kernel multicasts what each rule decided.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from netplug.kernel import libc
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import (
    NETLINK_NETFILTER,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    messages,
    nest,
    string,
    text,
)
from netplug.kernel.probes import packets, places
from netplug.kernel.probes.api import PROBING, Job
from netplug.kernel.probes.marks import ICMP, ICMP6, Word, offsets, word_of
from netplug.kernel.probes.matching import first_port
from netplug.kernel.probes.packets import Packet

PREFIX = "np-probe-"
"""Of the names of our tables. `netplug` begins those of the daemon, which it would repair."""
_GROUP, _TRACE = 9, 17
"""NFNLGRP_NFTRACE, NFT_MSG_TRACE."""
_NETLINK_ADD_MEMBERSHIP, _SOL_NETLINK = 1, 270
_SO_RCVBUFFORCE = 33
_FIRST = -(1 << 31)
_PREROUTING, _OUTPUT = 0, 3
_INGRESS, _EGRESS = 0, 1
_TRANSPORT_HEADER = 2
_META_L4PROTO, _META_NFTRACE, _META_NFPROTO = 16, 12, 15
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID, _NETWORK, _TRANSPORT, _POLICY = 1, 2, 3, 4, 5, 6, 8, 9, 16
_LINK_HEADER, _IIF, _OIF = 7, 10, 12
_ETHERNET_BYTES = 14
_POLICY_TYPE, _RULE_TYPE = 1, 3
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue"}
_PR_SET_NAME = 15
_ROOM = 1 << 22


@dataclass(frozen=True, slots=True)
class Event:
    """What one rule or policy (`handle` 0) decided about a packet.

    `frame`: its headers, as an Ethernet frame. `links`: indexes of those by which it came and goes, 0 for none.
    """

    netns: str
    family: str
    table: str
    chain: str
    handle: int
    verdict: str
    packet: Packet | None
    trace: int
    frame: bytes = b""
    links: tuple[int, int] = (0, 0)
    ours: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    packet: Packet | None = None
    frame: bytes = b""
    links: tuple[int, int] = (0, 0)


_NOTHING = _Seen()
_MOST_SEEN = 4096
"""Packets whose headers are remembered."""


@dataclass(slots=True)
class Tracer:
    """The trace of one namespace. `lacks`: what cannot be traced there, and why."""

    netns: str
    netlink: Netlink
    lacks: list[str] = field(default_factory=list)
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _tables: frozenset[str] = frozenset()
    _ours: set[int] = field(default_factory=set)

    @classmethod
    def open(cls, job: Job, netns: str, links: Sequence[str]) -> "Tracer":
        """Open it. `links`: those whose ingress and egress chains (family netdev) are traced too.

        Raises:
            ProbeError: the namespace is gone.
        """
        return places.run_in(netns, lambda: cls.here(netns, _tables(job, links)))

    @classmethod
    def here(cls, netns: str, tables: Iterable[tuple[str, list[nft.Message]]]) -> "Tracer":
        """Open it in the namespace of this thread, which is renamed. `tables`: what sets `nftrace`: see `table`."""
        tracer = cls(netns, Netlink.open(NETLINK_NETFILTER))
        libc.call("prctl", _PR_SET_NAME, PROBING.encode())
        parts = list(tables)
        tracer._tables = frozenset(string(attrs(part[0][2], 4).get(nft.TABLE_NAME)) for _, part in parts)
        tracer._make(parts)
        sock = tracer.netlink.sock
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _GROUP)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        sock.setblocking(False)
        return tracer

    def _make(self, parts: Sequence[tuple[str, list[nft.Message]]]) -> None:
        """Make our tables by one transaction; where the kernel refuses a part, make the other ones."""
        try:
            self.netlink.batch(nft.batch([message for _, part in parts for message in part]))
        except NetlinkError:
            for family, part in parts:
                self._make_part(family, part)

    def _make_part(self, family: str, part: list[nft.Message]) -> None:
        try:
            self.netlink.batch(nft.batch(part))
        except NetlinkError as error:
            if family == "inet":
                where = f"namespace {self.netns}" if self.netns else "the host's namespace"
                self.lacks.append(f"rules in {where} cannot be traced: {(error.strerror or '').lower()}")

    def read(self) -> Iterator[Event]:
        """Yield what has been decided since the last time."""
        while True:
            try:
                data = self.netlink.sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:  # ENOBUFS: some were lost
                self.lacks.append(f"events of the trace were lost: {error.strerror}")
                continue
            for kind, body in messages(data):
                if kind == nft.SUBSYSTEM << 8 | _TRACE:
                    yield from self._event(body)

    def _event(self, data: bytes) -> Iterator[Event]:
        found = attrs(data, 4)
        trace = int.from_bytes(found.get(_ID, b""), "big")
        if _NETWORK in found:
            self._note(trace, found)
        kind = int.from_bytes(found.get(_TYPE, b""), "big")
        if kind == _POLICY_TYPE:
            verdict = _VERDICTS.get(int.from_bytes(found[_POLICY], "big"), "?")
        elif kind == _RULE_TYPE and _VERDICT in found:
            verdict = _verdict(found[_VERDICT])
        else:
            return
        table = string(found.get(_TABLE))
        handle = int.from_bytes(found.get(_HANDLE, b""), "big")
        if table in self._tables and handle:  # the end of a chain is told as a rule without handle
            self._ours.add(trace)
        if not table.startswith(PREFIX):
            family = nft.FAMILY_NAMES.get(data[0], "?")
            chain, seen = string(found.get(_CHAIN)), self._seen.get(trace, _NOTHING)
            packet, ours = seen.packet, trace in self._ours
            yield Event(self.netns, family, table, chain, handle, verdict, packet, trace, seen.frame, seen.links, ours)

    def _note(self, trace: int, found: dict[int, bytes]) -> None:
        """Remember the headers of a packet, of which only the first event in each chain tells."""
        data = found[_NETWORK] + found.get(_TRANSPORT, b"")
        packet = packets.read_ip(data, (4789, 8472))
        ether_type = 0x86DD if data[:1] and data[0] >> 4 == 6 else 0x0800
        link_header = found.get(_LINK_HEADER, b"")
        if len(link_header) != _ETHERNET_BYTES:
            link_header = bytes(12) + ether_type.to_bytes(2, "big")
        links = (int.from_bytes(found.get(_IIF, b""), "big"), int.from_bytes(found.get(_OIF, b""), "big"))
        self._seen.pop(trace, None)
        self._seen[trace] = _Seen(packet, link_header + data, links)
        if len(self._seen) > _MOST_SEEN:
            oldest = next(iter(self._seen))
            del self._seen[oldest]
            self._ours.discard(oldest)

    def close(self) -> None:
        """Close the socket; the kernel deletes the tables."""
        self.netlink.close()


def _verdict(nested: bytes) -> str:
    parts = attrs(nested)
    code = int.from_bytes(parts.get(1, b"\xff" * 4), "big", signed=True)
    if code >= 0:
        return _VERDICTS.get(code & 0xFF, "?")
    return {-1: "continue", -3: "jump", -4: "goto", -5: "return"}.get(code, "?")


def _tables(job: Job, links: Sequence[str]) -> Iterator[tuple[str, list[nft.Message]]]:
    """Yield a transaction for each family, and for each hook that older kernels lack."""
    name = PREFIX + os.urandom(4).hex()  # those of the last job may not be gone yet
    ip_hooks = [("prerouting", _PREROUTING, ""), ("output", _OUTPUT, "")]
    rules = list(_rules(job))
    yield "inet", table(nft.INET, name, ip_hooks, rules)
    yield "bridge", table(nft.BRIDGE, name, ip_hooks, rules)
    for link in links:
        for word, hook in (("ingress", _INGRESS), ("egress", _EGRESS)):
            yield "netdev", table(nft.NETDEV, name, [(f"{word}-{link}", hook, link)], rules)


def table(
    family: int, name: str, hooks: Sequence[tuple[str, int, str]], rules: Sequence[Sequence[bytes]]
) -> list[nft.Message]:
    """Return a table of ours, with the rules in a chain before all others at each hook: name, number, and link."""
    made = [nft.new_table(family, name, nft.OWNED)]
    for chain, hook, link in hooks:
        made.append(nft.base_chain(family, name, chain, hook, _FIRST, link))
        made += [nft.rule(family, name, chain, *expressions) for expressions in rules]
    return made


def _rules(job: Job) -> Iterator[list[bytes]]:
    word = word_of(job)
    for proto, places_of in offsets(job.flow.kind).items():
        # The rest of a quoted packet may be missing; so errors are matched by their own rule.
        for offset in places_of:
            yield [*_protocol(proto), *_word_at(offset, word), *set_trace()]
    if job.flow.kind in {"udp", "dns"}:
        yield from _quoted_ports(job)


def _quoted_ports(job: Job) -> Iterator[list[bytes]]:
    """Yield rules for errors about datagrams, of which routers quote the ports at least."""
    for number in range(job.repeat):
        port = struct.pack("!H", first_port(job) + number)
        for proto, offset in ((ICMP, 28), (ICMP6, 48)):
            yield [*_protocol(proto), load(offset, 2), compare(port), *set_trace()]
        yield [*_protocol(17), load(2, 2), compare(port), *set_trace()]


def _expression(name: str, *data: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *data))


def _protocol(proto: int) -> list[bytes]:
    return [_expression("meta", nft.be32(2, _META_L4PROTO), nft.be32(1, 1)), compare(bytes((proto,)))]


def load(offset: int, length: int, header: int = _TRANSPORT_HEADER) -> bytes:
    """Return what loads bytes of a packet. `header`: 0 for the link's, 1 for the network's."""
    parts = nft.be32(1, 1), nft.be32(2, header), nft.be32(3, offset), nft.be32(4, length)
    return _expression("payload", *parts)


def compare(value: bytes) -> bytes:
    """Return what goes on if the bytes loaded are these."""
    return _expression("cmp", nft.be32(1, 1), nft.be32(2, 0), nest(3, attr(1, value)))


def _word_at(offset: int, word: Word) -> list[bytes]:
    mask, zero = struct.pack("!I", word.mask), bytes(4)
    masked = _expression(
        "bitwise", nft.be32(1, 1), nft.be32(2, 1), nft.be32(3, 4), nest(4, attr(1, mask)), nest(5, attr(1, zero))
    )
    return [load(offset, 4), masked, compare(struct.pack("!I", word.value))]


def of_family(version: int) -> list[bytes]:
    """Return what goes on with packets of an IP version."""
    number = nft.IPV4 if version == 4 else nft.IPV6
    return [_expression("meta", nft.be32(2, _META_NFPROTO), nft.be32(1, 1)), compare(bytes((number,)))]


def set_trace() -> list[bytes]:
    """Return what has a packet traced from here on."""
    one = _expression("immediate", nft.be32(1, 1), nest(2, attr(1, b"\1")))
    return [one, _expression("meta", nft.be32(2, _META_NFTRACE), nft.be32(3, 1))]
