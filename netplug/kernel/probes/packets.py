"""Packets of probes: made, and read. By hand, since scapy takes half a second to start."""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

from netplug.kernel.probes.api import IPAddress
from netplug.kernel.probes.marks import ICMP, ICMP6, TCP, UDP

ETH_IP, ETH_ARP, ETH_IP6, ETH_VLAN = 0x0800, 0x0806, 0x86DD, 0x8100
FIN, SYN, RST, ACK = 1, 2, 4, 16
_TTL = 64


def checksum(data: bytes) -> int:
    """Return the internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: IPAddress, destination: IPAddress, proto: int, length: int) -> bytes:
    if source.version == 4:
        return source.packed + destination.packed + struct.pack("!HH", proto, length)
    return source.packed + destination.packed + struct.pack("!II", length, proto)


def tcp(source: IPAddress, destination: IPAddress, ports: tuple[int, int], seq: int, flags: int) -> bytes:
    """Return a TCP segment; a SYN has the options that clients send (MSS)."""
    options = struct.pack("!BBH", 2, 4, 1460 if source.version == 4 else 1440) if flags & SYN else b""
    offset = (20 + len(options)) // 4 << 4
    parts = [*ports, seq, 0, offset, flags, 64240, 0, 0]
    body = struct.pack("!HHIIBBHHH", *parts) + options
    parts[7] = checksum(_pseudo(source, destination, TCP, len(body)) + body)
    return struct.pack("!HHIIBBHHH", *parts) + options


def udp(source: IPAddress, destination: IPAddress, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP datagram."""
    head = struct.pack("!HHHH", *ports, 8 + len(payload), 0)
    found = checksum(_pseudo(source, destination, UDP, len(head) + len(payload)) + head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", found) + payload


def echo_request(source: IPAddress, destination: IPAddress, ident: int, number: int, payload: bytes) -> bytes:
    """Return an ICMP or ICMPv6 echo request."""
    kind = 8 if source.version == 4 else 128
    body = struct.pack("!BBHHH", kind, 0, 0, ident, number) + payload
    pseudo = b"" if source.version == 4 else _pseudo(source, destination, ICMP6, len(body))
    return body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]


def ip_packet(source: IPAddress, destination: IPAddress, proto: int, body: bytes) -> bytes:
    """Return an IP packet, with DF."""
    if isinstance(source, IPv6Address):
        return struct.pack("!IHBB", 6 << 28, len(body), proto, _TTL) + source.packed + destination.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, _TTL, proto, 0)
    head += source.packed + destination.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def question(ident: int, name: str, record: int) -> bytes:
    """Return a DNS question as the C library asks it (RFC 1035; recursion desired, no EDNS)."""
    labels = name.rstrip(".").encode("idna" if not name.isascii() else "ascii").split(b".")
    packed = b"".join(bytes((len(it),)) + it for it in labels if it)
    return struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + packed + b"\0" + struct.pack("!HH", record, 1)


@dataclass(frozen=True, slots=True)
class Packet:
    """What is of interest of a packet.

    `kind`, `code`: of ICMP; for ARP and ND `kind` is 1 or 2 (request, reply), and the addresses are as in `Sighting`.
    `quoted`: the packet that an ICMP error is about. `outer`: the packet of the tunnel.
    """

    proto: int
    source: IPAddress
    destination: IPAddress
    source_port: int = 0
    port: int = 0
    flags: int = 0
    kind: int = 0
    code: int = 0
    mtu: int = 0
    seq: int = 0
    ack: int = 0
    payload: bytes = b""
    size: int = 0
    quoted: "Packet | None" = None
    outer: "Packet | None" = None
    vni: int = 0
    mac: str = ""


ARP = -1
"""As `Packet.proto`, for ARP and neighbour discovery."""


def read_frame(frame: bytes, tunnels: Sequence[int]) -> Packet | None:
    """Read an Ethernet frame; a tunnelled one inside it, if there is one. None: of no interest."""
    if len(frame) < 34:
        return None
    kind, start = int.from_bytes(frame[12:14], "big"), 14
    if kind == ETH_VLAN:
        kind, start = int.from_bytes(frame[16:18], "big"), 18
    found = _read_arp(frame[start:]) if kind == ETH_ARP else None
    if kind in {ETH_IP, ETH_IP6}:
        found = read_ip(frame[start:], tunnels)
    if found is None or found.outer:
        return found
    return replace(found, mac=frame[6:12].hex(":"))


def _read_arp(data: bytes) -> Packet | None:
    if len(data) < 28 or data[2:4] != b"\x08\x00":
        return None
    return Packet(ARP, ip_address(data[14:18]), ip_address(data[24:28]), kind=data[7])


def read_ip(data: bytes, tunnels: Sequence[int] = ()) -> Packet | None:
    """Read an IP packet, which may be cut short, as far as it goes."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        header, proto, size = (data[0] & 15) * 4, data[9], int.from_bytes(data[2:4], "big")
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        if int.from_bytes(data[6:8], "big") & 0x1FFF:
            return None
        return _read_body(Packet(proto, source, destination, size=size), data[header:], tunnels)
    if len(data) >= 40 and data[0] >> 4 == 6:
        size = 40 + int.from_bytes(data[4:6], "big")
        of = Packet(data[6], IPv6Address(data[8:24]), IPv6Address(data[24:40]), size=size)
        return _read_body(of, data[40:], tunnels)
    return None


def _read_body(packet: Packet, body: bytes, tunnels: Sequence[int]) -> Packet | None:
    if len(body) < 8:
        return None
    source_port, port = struct.unpack_from("!HH", body)
    if packet.proto == TCP:
        seq, ack, flags = int.from_bytes(body[4:8], "big"), 0, 0
        if len(body) >= 14:
            ack, flags = int.from_bytes(body[8:12], "big"), body[13]
        return replace(packet, source_port=source_port, port=port, seq=seq, ack=ack, flags=flags)
    if packet.proto == UDP:
        found = replace(packet, source_port=source_port, port=port, payload=body[8:])
        inner = read_frame(body[16:], ()) if port in tunnels and body[8] & 8 else None
        return replace(inner, outer=found, vni=int.from_bytes(body[12:15], "big")) if inner else found
    if packet.proto == ICMP:
        return _read_icmp(packet, body, errors=(3, 11))
    if packet.proto == ICMP6:
        if body[0] == 135 and len(body) >= 24:
            return Packet(ARP, packet.source, IPv6Address(body[8:24]), kind=1)
        if body[0] == 136 and len(body) >= 24:
            return Packet(ARP, IPv6Address(body[8:24]), packet.destination, kind=2)
        return _read_icmp(packet, body, errors=(1, 2, 3))
    return None


def _read_icmp(packet: Packet, body: bytes, errors: Sequence[int]) -> Packet:
    found = replace(packet, kind=body[0], code=body[1], payload=body[8:], seq=int.from_bytes(body[6:8], "big"))
    if body[0] not in errors:
        return found
    mtu = int.from_bytes(body[6:8] if packet.proto == ICMP else body[4:8], "big")
    return replace(found, mtu=mtu, quoted=read_ip(body[8:]))


def answer_text(payload: bytes) -> str:
    """Return the addresses or the error in a DNS answer."""
    from dnslib import DNSRecord  # noqa: PLC0415 - takes a while to import

    try:
        record = DNSRecord.parse(payload)
    except Exception:  # noqa: BLE001 - dnslib raises errors of many types for malformed answers
        return "malformed answer"
    names = {0: "", 1: "formerr", 2: "servfail", 3: "nxdomain", 4: "notimp", 5: "refused"}
    error = names.get(record.header.rcode, f"rcode {record.header.rcode}")
    return error or " ".join(str(it.rdata) for it in record.rr) or "no data"


def source_for(destination: IPAddress) -> IPAddress:
    """Return the source address that the routes of this thread's namespace choose.

    Raises:
        OSError: there is no way.
    """
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect((str(destination), 9))
        return ip_address(sock.getsockname()[0])
