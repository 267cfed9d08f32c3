"""Asks a segment by ARP or ND who has an address."""

import selectors
import socket
import time
from ipaddress import IPv4Address

from netplug.kernel.links import conflict_probe
from netplug.kernel.probes import places
from netplug.kernel.probes.api import IPAddress, Neighbours

ETH_ARP, ETH_IPV6 = 0x0806, 0x86DD
_AGAIN_S = 0.1


def who_has(netns: str, link: str, address: IPAddress, wait_ms: int) -> Neighbours:
    """Ask twice, and return all that answer within the time.

    Raises:
        OSError: the link is gone or down.
    """
    kind = ETH_ARP if isinstance(address, IPv4Address) else ETH_IPV6
    sock = places.run_in(netns, lambda: conflict_probe.open_segment(link, kind))
    macs: dict[str, None] = {}
    first_ms = 0.0
    began = time.monotonic()
    with sock, selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        for until in (min(_AGAIN_S, wait_ms / 2000), wait_ms / 1000):
            conflict_probe.ask(sock, address)
            while (left := began + until - time.monotonic()) > 0:
                if not selector.select(left):
                    continue
                frame, of = sock.recvfrom(2048)
                if of[2] != socket.PACKET_OUTGOING and conflict_probe.claimed(frame) == address:
                    first_ms = first_ms or (time.monotonic() - began) * 1000
                    macs[frame[6:12].hex(":")] = None
    return Neighbours(tuple(macs), round(first_ms, 2))
