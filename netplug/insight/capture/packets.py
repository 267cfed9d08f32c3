"""What a packet says, in a few words: addresses, protocol, TCP flags, ARP, ICMP, the DNS message. Never fails."""

import struct
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop

from netplug.insight.capture.dns import describe

_CUT = (struct.error, IndexError, ValueError)
"""What reading beyond the end raises; ValueError: of addresses."""
_VLANS = {0x8100, 0x88A8}
_TCP_FLAGS = ((0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"), (0x10, "ACK"), (0x20, "URG"))
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMP6", 132: "SCTP"}
_UNREACHABLE4 = {
    0: "network unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable",
    4: "fragmentation needed", 9: "network prohibited", 10: "host prohibited", 13: "prohibited by a filter",
}  # fmt: skip
_UNREACHABLE6 = {
    0: "no route", 1: "prohibited by a filter", 3: "address unreachable", 4: "port unreachable", 5: "source refused",
    6: "route rejected",
}  # fmt: skip
_ICMP4 = {0: "echo reply", 5: "redirect", 8: "echo request", 9: "router advertisement", 11: "time exceeded"}
_ICMP6 = {
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
    130: "multicast listener query", 131: "multicast listener report", 133: "router solicitation",
    134: "router advertisement", 143: "multicast listener report",
}  # fmt: skip
_HEADERS6 = {0, 43, 60}
"""Extension headers of IPv6 that have a length: hop-by-hop, routing, destination options."""


@dataclass(slots=True)
class Summary:
    """A packet in words. `payload`: of UDP and TCP; `port`, `peer_port`: source and destination."""

    source: str = ""
    destination: str = ""
    protocol: str = ""
    words: str = ""
    payload: bytes = b""
    port: int = 0
    peer_port: int = 0


def summary(frame: bytes) -> Summary:
    """Return what an Ethernet frame says; of one that was cut, as much as is there."""
    found = Summary()
    try:
        _ethernet(frame, found)
    except _CUT:
        found.words = f"{found.words} (cut)".strip()
    return found


def dns_payload(found: Summary) -> bytes:
    """Return the DNS message of a packet, empty if it is cut or spread over several."""
    if found.protocol == "TCP":
        whole = len(found.payload) > 2 and int.from_bytes(found.payload[:2], "big") == len(found.payload) - 2
        return found.payload[2:] if whole else b""
    return found.payload if found.protocol == "UDP" else b""


def _ethernet(frame: bytes, found: Summary) -> None:
    found.source, found.destination = frame[6:12].hex(":"), frame[:6].hex(":")
    (kind,), at = struct.unpack_from("!H", frame, 12), 14
    while kind in _VLANS:
        tag, kind = struct.unpack_from("!HH", frame, at)
        found.words, at = f"VLAN {tag & 0xFFF}", at + 4
    if kind == 0x0800:
        _ip4(frame[at:], found)
    elif kind == 0x86DD:
        _ip6(frame[at:], found)
    elif kind == 0x0806:
        _arp(frame[at:], found)
    else:
        found.protocol = f"0x{kind:04x}" if kind >= 0x600 else "LLC"


def _arp(data: bytes, found: Summary) -> None:
    found.protocol = "ARP"
    (operation,) = struct.unpack_from("!H", data, 6)
    mac, sender, target = data[8:14].hex(":"), inet_ntop(AF_INET, data[14:18]), inet_ntop(AF_INET, data[24:28])
    if operation == 1:
        found.words = f"announces {sender}" if sender == target else f"who has {target}? tell {sender}"
    else:
        found.words = f"{sender} is at {mac}"


def _ip4(data: bytes, found: Summary) -> None:
    length, (total,), (fragment,) = (
        (data[0] & 15) * 4,
        struct.unpack_from("!H", data, 2),
        struct.unpack_from("!H", data, 6),
    )
    found.source, found.destination = inet_ntop(AF_INET, data[12:16]), inet_ntop(AF_INET, data[16:20])
    body = data[length:total] if total else data[length:]  # 0: segmentation offload beyond 64 kB
    if fragment & 0x1FFF:
        found.protocol = _PROTOCOLS.get(data[9], f"IP {data[9]}")
        found.words = f"fragment at {(fragment & 0x1FFF) * 8}"
        return
    _transport(data[9], body, found)
    if fragment & 0x2000:
        found.words = f"{found.words}, first fragment".strip(", ")


def _ip6(data: bytes, found: Summary) -> None:
    kind, at, words = data[6], 40, ""
    found.source, found.destination = inet_ntop(AF_INET6, data[8:24]), inet_ntop(AF_INET6, data[24:40])
    while kind in _HEADERS6:
        kind, at = data[at], at + 8 + data[at + 1] * 8
    if kind == 44:
        (offset,) = struct.unpack_from("!H", data, at + 2)
        kind, at, words = data[at], at + 8, "first fragment"
        if offset & ~7:
            found.protocol, found.words = _PROTOCOLS.get(kind, f"IP {kind}"), f"fragment at {offset & ~7}"
            return
    _transport(kind, data[at:], found)
    found.words = ", ".join(filter(None, (found.words, words)))


def _transport(kind: int, body: bytes, found: Summary) -> None:
    found.protocol = _PROTOCOLS.get(kind, f"IP {kind}")
    if found.protocol in {"TCP", "UDP", "SCTP"}:
        found.port, found.peer_port = struct.unpack_from("!HH", body)
        found.source, found.destination = _with(found.source, found.port), _with(found.destination, found.peer_port)
    if kind == 6:
        _tcp(body, found)
    elif kind == 17:
        found.payload = body[8:]
        found.words = f"{len(found.payload)} bytes"
        _application(found)
    elif kind == 1:
        _icmp4(body, found)
    elif kind == 58:
        _icmp6(body, found)


def _with(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tcp(body: bytes, found: Summary) -> None:
    sequence, acknowledged = struct.unpack_from("!II", body, 4)
    offset, flags, window = (body[12] >> 4) * 4, body[13], struct.unpack_from("!H", body, 14)[0]
    found.payload = body[offset:]
    names = "+".join(name for bit, name in _TCP_FLAGS if flags & bit) or "none"
    parts = [names, f"seq {sequence}"]
    if flags & 0x10:
        parts.append(f"ack {acknowledged}")
    parts.append(f"win {window}")
    if found.payload:
        parts.append(f"{len(found.payload)} bytes")
    found.words = " ".join(parts)
    _application(found)


def _application(found: Summary) -> None:
    """Add the first words of DNS and HTTP."""
    ports = {found.port, found.peer_port}
    if 53 in ports or 5353 in ports:
        if text := describe(dns_payload(found)):
            found.words = f"DNS {text}" if found.protocol == "UDP" else f"{found.words} DNS {text}"
    elif 4789 in ports and found.protocol == "UDP" and len(found.payload) > 8 + 14:
        inner = summary(found.payload[8:])
        vni = int.from_bytes(found.payload[4:7], "big")
        found.words = f"VXLAN {vni}: {inner.source} → {inner.destination} {inner.protocol} {inner.words}".rstrip()
    elif found.payload[:5] in {b"GET /", b"POST ", b"HEAD ", b"PUT /", b"HTTP/", b"DELET", b"PATCH"}:
        line = found.payload.partition(b"\r\n")[0][:80].decode("ascii", errors="replace")
        found.words += f" {line}"


def _icmp4(body: bytes, found: Summary) -> None:
    kind, code = body[0], body[1]
    if kind == 3:
        found.words = _UNREACHABLE4.get(code, f"unreachable, code {code}")
        if code == 4:
            found.words += f", mtu {struct.unpack_from('!H', body, 6)[0]}"
        found.words += _about(body[8:], 4)
        return
    found.words = _ICMP4.get(kind, f"type {kind} code {code}")
    if kind in {0, 8}:
        found.words += " id {} seq {}".format(*struct.unpack_from("!HH", body, 4))
    elif kind == 11:
        found.words += _about(body[8:], 4)


def _icmp6(body: bytes, found: Summary) -> None:
    kind, code = body[0], body[1]
    found.words = _ICMP6.get(kind, f"type {kind} code {code}")
    if kind == 1:
        found.words = _UNREACHABLE6.get(code, f"unreachable, code {code}") + _about(body[8:], 6)
    elif kind == 2:
        found.words += f", mtu {struct.unpack_from('!I', body, 4)[0]}" + _about(body[8:], 6)
    elif kind in {128, 129}:
        found.words += " id {} seq {}".format(*struct.unpack_from("!HH", body, 4))
    elif kind in {135, 136}:
        target = inet_ntop(AF_INET6, body[8:24])
        mac = body[26:32].hex(":") if len(body) >= 32 else ""
        at = f" at {mac}" if mac else " there"
        found.words = f"who has {target}?" if kind == 135 else f"{target} is{at}"


def _about(packet: bytes, version: int) -> str:
    """Return which packet an ICMP error is about."""
    inner = Summary()
    try:
        (_ip4 if version == 4 else _ip6)(packet, inner)
    except _CUT:
        return f" for {inner.destination}" if inner.destination else ""
    return f" for {inner.protocol} {inner.source} → {inner.destination}"
