"""What an attach takes of the kernel at least: a veth pair on a bridge, an address, a default route; without netplug.

For `load`, which runs it inside a host: ``bare.py BRIDGE NETNS…`` prints the milliseconds of each namespace as JSON.
Each pair is removed before the next one.
"""

import json
import socket
import sys
import time

from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import (
    NEW,
    RTM_DELLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    Netlink,
    attr,
    nest,
    text,
    u32,
)
from netplug.kernel.netlink.rtnl import IFADDR, IFF_UP, IFINFO, RTMSG
from netplug.kernel.sandbox.netns import Sandboxes, run_here

PAIR, MACS = ("bare0", "bare1"), (b"\x02\0\0\0\x77\1", b"\x02\0\0\0\x77\2")
ADDRESS, GATEWAY = socket.inet_aton("10.99.0.2"), socket.inet_aton("10.99.0.1")
MAIN, STATIC, UNIVERSE, UNICAST, PEER = 254, 4, 0, 1, 1


def pair(bridge: int, netns: int) -> bytes:
    """Return the request for a pair: one end is a port of the bridge and up, the other is in the namespace."""
    inside = IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, PAIR[1]) + attr(rtnl.IFLA_ADDRESS, MACS[1])
    peer = attr(PEER, inside + u32(rtnl.IFLA_NET_NS_FD, netns))
    veth = nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "veth"), nest(rtnl.IFLA_INFO_DATA, peer))
    outside = text(rtnl.IFLA_IFNAME, PAIR[0]) + attr(rtnl.IFLA_ADDRESS, MACS[0]) + u32(rtnl.IFLA_MASTER, bridge)
    return IFINFO.pack(0, 0, 0, IFF_UP, IFF_UP) + outside + veth


def attach(nl: Netlink, bridge: int, netns: str) -> float:
    """Attach a namespace, and detach it; return the milliseconds of the first."""
    with Sandboxes(run_here) as sandboxes:
        fd, inside = sandboxes.get(netns)
        begun = time.perf_counter()
        nl.request(RTM_NEWLINK, pair(bridge, fd), NEW)
        index = rtnl.index(inside, PAIR[1]) or 0
        inside.request(RTM_NEWLINK, IFINFO.pack(0, 0, index, IFF_UP, IFF_UP))
        address = attr(rtnl.IFA_LOCAL, ADDRESS) + attr(rtnl.IFA_ADDRESS, ADDRESS)
        inside.request(RTM_NEWADDR, IFADDR.pack(socket.AF_INET, 24, 0, UNIVERSE, index) + address, NEW)
        route = RTMSG.pack(socket.AF_INET, 0, 0, 0, MAIN, STATIC, UNIVERSE, UNICAST, 0)
        inside.request(RTM_NEWROUTE, route + attr(rtnl.RTA_GATEWAY, GATEWAY), NEW)
        took = time.perf_counter() - begun
        nl.request(RTM_DELLINK, IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, PAIR[0]))
    return took * 1000


def main() -> None:
    nl = Netlink.open()
    bridge = rtnl.index(nl, sys.argv[1])
    assert bridge, f"no bridge {sys.argv[1]}"
    json.dump([attach(nl, bridge, netns) for netns in sys.argv[2:]], sys.stdout)


if __name__ == "__main__":
    main()
