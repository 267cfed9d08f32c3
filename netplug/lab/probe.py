"""Whether an address answers from a network namespace: one ICMP echo (RFC 792, RFC 4443 4), by a raw socket inside."""

import os
import socket
import struct
import time
from ipaddress import ip_address
from pathlib import Path

from netplug.kernel.netns import run_in

_ECHO = {4: (8, 0), 6: (128, 129)}
"""Types of request and reply."""
_IDENT = 0x6E70


def answers(netns: Path, address: str, timeout_s: float = 0.5) -> bool:
    """Whether an address answers one echo request in time; not from a namespace that is gone."""
    family = ip_address(address).version
    request, reply = _ECHO[family]
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
    token = os.urandom(8)
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        sock = run_in(fd, lambda: socket.socket(kind, socket.SOCK_RAW, protocol))
    finally:
        os.close(fd)
    with sock:
        deadline = time.monotonic() + timeout_s
        try:
            sock.connect((address, 0))
            sock.send(_message(request, token))
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                data = sock.recv(2048)
                # IPv4's raw sockets give the header too.
                body = data[(data[0] & 15) * 4 :] if family == 4 else data
                if body[:1] == bytes((reply,)) and body[8:] == token:
                    return True
        except OSError:
            return False
    return False


def _message(kind: int, token: bytes) -> bytes:
    """An echo request; the kernel computes ICMPv6's checksum itself (RFC 3542 3.1)."""
    bare = struct.pack("!BBHHH", kind, 0, 0, _IDENT, 1) + token
    total = sum(struct.unpack(f"!{len(bare) // 2}H", bare))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", kind, 0, ~total & 0xFFFF, _IDENT, 1) + token
