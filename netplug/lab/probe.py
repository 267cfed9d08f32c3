"""Probes from a container's view, by sockets inside its network namespace.

Reachability is probed by one ICMP echo request on a raw socket (RFC 792, RFC 4443 4), names by a DNS query over UDP
(RFC 1035 4.2.1).
"""

import os
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import dnslib

from netplug.kernel.sandbox.netns import run_in

_ECHO = {4: (8, 0), 6: (128, 129)}
"""ICMP types of request and reply."""
_IDENT = 0x6E70
_AGAIN_S = 0.5
"""Retry interval of a query; datagrams may be lost."""


def answers(netns: Path, address: str, timeout_s: float = 0.5) -> bool:
    """Whether an address answers one echo request in time; false if the namespace does not exist."""
    family = ip_address(address).version
    request, reply = _ECHO[family]
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
    token = os.urandom(8)
    try:
        sock = _socket(netns, kind, socket.SOCK_RAW, protocol)
    except OSError:
        return False
    with sock:
        deadline = time.monotonic() + timeout_s
        try:
            sock.connect((address, 0))
            sock.send(_message(request, token))
            while True:
                # What came in time counts, however late it is read on a busy machine; 0 would not wait at all.
                sock.settimeout(max(deadline - time.monotonic(), 0.0))
                data = sock.recv(2048)
                # Raw sockets of IPv4 include the IP header.
                body = data[(data[0] & 15) * 4 :] if family == 4 else data
                if body[:1] == bytes((reply,)) and body[8:] == token:
                    return True
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Said:
    """The answer of a name server. `code`: NOERROR, NXDOMAIN, …"""

    code: str
    addresses: frozenset[str]


def ask(netns: Path, server: str, name: str, version: int, timeout_s: float = 1.5, port: int = 53) -> Said | None:
    """Query a name server for a name's addresses of an IP version; None without a valid answer in time."""
    question = dnslib.DNSRecord.question(name, "AAAA" if version == 6 else "A")
    try:
        sock = _socket(netns, socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None
    with sock:
        deadline = time.monotonic() + timeout_s
        try:
            sock.connect((server, port))
            while (left := deadline - time.monotonic()) > 0:
                sock.send(question.pack())
                sock.settimeout(min(left, _AGAIN_S))
                try:
                    said = dnslib.DNSRecord.parse(sock.recv(4096))
                except TimeoutError:
                    continue
                if said.header.id == question.header.id:
                    found = frozenset(str(ip_address(str(it.rdata))) for it in said.rr if it.rtype == question.q.qtype)
                    return Said(str(dnslib.RCODE.get(said.header.rcode)), found)
        except (OSError, dnslib.DNSError):
            return None
    return None


def _socket(netns: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Open a socket in a network namespace.

    Raises:
        OSError: the namespace does not exist.
    """
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return run_in(fd, lambda: socket.socket(family, kind, protocol))
    finally:
        os.close(fd)


def _message(kind: int, token: bytes) -> bytes:
    """Return an echo request; the kernel computes the checksum of ICMPv6 itself (RFC 3542 3.1)."""
    bare = struct.pack("!BBHHH", kind, 0, 0, _IDENT, 1) + token
    total = sum(struct.unpack(f"!{len(bare) // 2}H", bare))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, _IDENT, 1) + token
