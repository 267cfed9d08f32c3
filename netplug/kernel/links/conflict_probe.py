"""Address conflict detection: probes for an address on a segment, and the frames that announce one.

Frames are sent on a packet socket of the parent link (packet(7)), since the probe precedes the link that gets the
address.
"""

import asyncio
import selectors
import socket
import struct
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from netplug.drivers.steps import Announce, IPAddress
from netplug.errors import NetplugError
from netplug.kernel import libc
from netplug.kernel.netlink.rtnl import packed_mac

WAIT_S = 0.2
"""How long to wait for an answer after the second of two probes, which are `AGAIN_S` apart.

RFC 5227 waits for up to seven seconds, which suits a host that configures itself. A station on the same segment answers
within a millisecond, a sleeping Wi-Fi station within some hundred milliseconds.
"""
AGAIN_S = 0.1
_MOST_WAITING = 1000
"""More frames than the buffer of a socket holds."""

_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ALL_MACS = b"\xff" * 6
_NS, _NA = 135, 136
_NO_ADDRESS = bytes(16)
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff000000")
_ALL_NODES = IPv6Address("ff02::1").packed
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_ALLMULTI = 263, 1, 2


class SegmentProbe:
    """Probes segments of this host; see `api.ConflictProbe`."""

    async def addresses_in_use(self, link: str, addresses: Collection[IPAddress]) -> Mapping[IPAddress, str]:
        """Return the addresses that are in use on the link's segment, with their MACs."""
        try:
            return await addresses_in_use(link, addresses)
        except OSError as error:
            words = f"the segment of link {link!r} cannot be asked for an address: {error.strerror}"
            raise NetplugError("unavailable", words, hint=f"ip link set {link} up") from error


async def addresses_in_use(link: str, addresses: Collection[IPAddress]) -> dict[IPAddress, str]:
    """Return the addresses that a station on the link's segment uses or is probing for itself, with its MAC.

    RFC 5227 2.1.1 for IPv4, RFC 4862 5.4 for IPv6. Takes `AGAIN_S` plus `WAIT_S` unless all addresses are answered for.

    Raises:
        OSError: the link is missing or down.
    """
    return await asyncio.to_thread(_addresses_in_use, link, frozenset(addresses))


def _addresses_in_use(link: str, addresses: frozenset[IPAddress]) -> dict[IPAddress, str]:
    # Opened and closed in this thread, since both block on the kernel's rtnl mutex.
    with ExitStack() as sockets:
        families = sorted({address.version for address in addresses})
        opened = [sockets.enter_context(open_segment(link, _ETH_ARP if it == 4 else _ETH_IPV6)) for it in families]
        return _ask(opened, addresses)


def announcement(step: Announce) -> tuple[bytes, int]:
    """Return the frame that announces an address, and its EtherType.

    An ARP announcement (RFC 5227 3), or an unsolicited neighbour advertisement (RFC 4861 7.2.6).
    """
    mac = packed_mac(step.mac)
    if isinstance(step.address, IPv6Address):
        return _unsolicited(mac, step.address), _ETH_IPV6
    return _arp(mac, step.address, step.address), _ETH_ARP


def open_segment(link: str, kind: int) -> socket.socket:
    """Return a packet socket that receives all of an EtherType (ARP or IPv6) on a link."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(kind))
    try:
        sock.bind((link, kind))
        _receive_all_multicast(sock, socket.if_nametoindex(link))
    except BaseException:
        sock.close()
        raise
    return sock


def _receive_all_multicast(sock: socket.socket, index: int) -> None:
    """Receive all multicast of a link. Python's setsockopt() would hold the GIL while the kernel waits."""
    wanted = struct.pack("iHH8s", index, _PACKET_MR_ALLMULTI, 0, b"")
    libc.call("setsockopt", sock.fileno(), _SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted, len(wanted))


def _ask(sockets: list[socket.socket], wanted: frozenset[IPAddress]) -> dict[IPAddress, str]:
    found: dict[IPAddress, str] = {}
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        for patience in (AGAIN_S, WAIT_S):
            for sock in sockets:
                for address in wanted - found.keys():
                    ask(sock, address)
            deadline = time.monotonic() + patience
            while wanted - found.keys() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    _note(key.fileobj.recv(2048), wanted, found)  # type: ignore[union-attr]  # what was registered
    # On a busy host this thread may come to run when the time is over, and what came in time was not read.
    for sock in sockets:
        with suppress(BlockingIOError):
            for _ in range(_MOST_WAITING):
                _note(sock.recv(2048, socket.MSG_DONTWAIT), wanted, found)
    return found


def ask(sock: socket.socket, address: IPAddress) -> None:
    """Ask who has an address, if it is of the socket's IP version."""
    _, kind, _, _, mac = sock.getsockname()
    if isinstance(address, IPv4Address) and kind == _ETH_ARP:
        sock.send(_arp(mac, IPv4Address(0), address))
    elif isinstance(address, IPv6Address) and kind == _ETH_IPV6:
        sock.send(_solicitation(mac, address))


def _note(frame: bytes, wanted: frozenset[IPAddress], found: dict[IPAddress, str]) -> None:
    """Note the MAC of a frame whose sender uses one of the addresses, or probes for it."""
    address = claimed(frame)
    if address in wanted:
        found[address] = frame[6:12].hex(":")


def claimed(frame: bytes) -> IPAddress | None:
    """Return the address that the sender of a frame uses or probes for, if the frame tells that."""
    if frame[12:14] == _ETH_ARP.to_bytes(2, "big") and len(frame) >= 42:
        sender, target = ip_address(frame[28:32]), ip_address(frame[38:42])
        return target if int(sender) == 0 else sender
    if len(frame) < 78 or frame[20] != socket.IPPROTO_ICMPV6:
        return None
    # A solicitation from the unspecified address is another station's duplicate address detection.
    claims = frame[54] == _NA or (frame[54] == _NS and frame[22:38] == _NO_ADDRESS)
    return ip_address(frame[62:78]) if claims else None


def _arp(mac: bytes, sender: IPAddress, target: IPAddress) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return _frame(_ALL_MACS, mac, _ETH_ARP, head + mac + sender.packed + bytes(6) + target.packed)


def _solicitation(mac: bytes, target: IPv6Address) -> bytes:
    group = _SOLICITED_NODE[:13] + target.packed[13:]
    body = struct.pack("!BBHI", _NS, 0, 0, 0) + target.packed
    return _frame(b"\x33\x33" + group[12:], mac, _ETH_IPV6, _icmp6(_NO_ADDRESS, group, body))


def _unsolicited(mac: bytes, address: IPv6Address) -> bytes:
    override, own_mac = 0x20000000, b"\x02\x01" + mac
    body = struct.pack("!BBHI", _NA, 0, 0, override) + address.packed + own_mac
    return _frame(b"\x33\x33\x00\x00\x00\x01", mac, _ETH_IPV6, _icmp6(address.packed, _ALL_NODES, body))


def _icmp6(source: bytes, destination: bytes, body: bytes) -> bytes:
    pseudo = source + destination + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2}H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    checked = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    hops = 255
    return struct.pack("!IHBB", 6 << 28, len(checked), socket.IPPROTO_ICMPV6, hops) + source + destination + checked


def _frame(destination: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    return destination + source + kind.to_bytes(2, "big") + body
