"""The socket filter of notifications of links: it drops what tells nothing (Documentation/networking/filter.rst)."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from netplug.drivers.naming import PORTS, SANDBOX_SIDES, TUNNEL_ENDS
from netplug.kernel.host.socket_filters import (
    AND,
    EQUAL,
    LOAD,
    LOAD_BYTE,
    LOAD_HALF,
    RETURN,
    WHOLE,
    Instruction,
)

NEWLINK, DELROUTE, NEWNETCONF = 16, 25, 80
_RT_TABLE_MAIN, _RTPROT_KERNEL = 254, 2
_AF_BRIDGE = 7
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_ALL_LINKS = 0xFFFFFFFF
"""NETCONFA_IFINDEX_ALL, -1."""
_SET, _SET_X, _TO_X, _LOAD_AT_X = 0x00, 0x01, 0x07, 0x40
_FIND_ATTRIBUTE = 0xFFFFF000 + 12
"""SKF_AD_OFF + SKF_AD_NLATTR: loads the offset of attribute X, searched from A on; 0 if there is none."""
_MOST_MTUS = 32
"""Beyond so many, messages of veths with further MTUs are heard, and looked at one by one."""


@dataclass(frozen=True, slots=True)
class _If:
    """Compares what is loaded, and goes to a label further down; with none given, to the next instruction."""

    value: int
    then: str = ""
    otherwise: str = ""


def chatter_filter(mtus: Collection[int]) -> Sequence[Instruction]:
    """Return a filter that drops three kinds of messages.

    RTM_NEWLINK of our veths with an MTU that is one of `mtus`: their RTM_DELLINK is enough, and what bridges tell of
    ports of ours. RTM_NEWLINK of bridge ports (AF_BRIDGE) that are not ours. RTM_NEWNETCONF of single links. The name
    is the first attribute of a link (net/core/rtnetlink.c, rtnl_fill_ifinfo; br_fill_ifinfo), and NETCONFA_IFINDEX that
    of a setting (inet_netconf_fill_devconf).
    """
    ports, sides, tunnels = (
        int.from_bytes(name.encode().ljust(4, b"\0"), "big") for name in (PORTS, SANDBOX_SIDES, TUNNEL_ENDS)
    )
    name: tuple[Instruction, ...] = ((LOAD, 0, 0, 36), (AND, 0, 0, 0xFFFFFF00))
    find_mtu = ((_SET_X, 0, 0, _IFLA_MTU), (_SET, 0, 0, 32), (LOAD, 0, 0, _FIND_ATTRIBUTE))
    return _assembled(
        (LOAD_HALF, 0, 0, 4),
        _If(_as_read(NEWLINK, 2), "link"),
        _If(_as_read(NEWNETCONF, 2), "", "pass"),
        (LOAD, 0, 0, 24),
        _If(_ALL_LINKS, "pass", "drop"),
        "link",
        (LOAD_BYTE, 0, 0, 16),
        _If(_AF_BRIDGE, "", "plain"),
        *name,
        _If(ports, "pass"),
        _If(tunnels, "pass", "drop"),
        "plain",
        (LOAD_HALF, 0, 0, 34),
        _If(_as_read(_IFLA_IFNAME, 2), "", "pass"),
        *name,
        _If(sides, "drop"),
        _If(ports, "", "pass"),
        *find_mtu,
        _If(0, "drop"),
        (_TO_X, 0, 0, 0),
        (_LOAD_AT_X, 0, 0, 4),
        *(_If(_as_read(mtu, 4), "drop") for mtu in sorted(mtus)[:_MOST_MTUS]),
        "pass",
        (RETURN, 0, 0, WHOLE),
        "drop",
        (RETURN, 0, 0, 0),
    )


def lost_routes_filter() -> Sequence[Instruction]:
    """Return a filter that lets pass RTM_DELROUTE of the main table's routes that the kernel made with addresses.

    A router may have a million of others, which change all the time.
    """
    return _assembled(
        (LOAD_HALF, 0, 0, 4),
        _If(_as_read(DELROUTE, 2), "", "drop"),
        (LOAD_BYTE, 0, 0, 20),
        _If(_RT_TABLE_MAIN, "", "drop"),
        (LOAD_BYTE, 0, 0, 21),
        _If(_RTPROT_KERNEL, "", "drop"),
        (RETURN, 0, 0, WHOLE),
        "drop",
        (RETURN, 0, 0, 0),
    )


def _assembled(*lines: Instruction | _If | str) -> list[Instruction]:
    """Return the instructions, with the distances to labels. A label stands before the instruction that it names."""
    code: list[Instruction | _If] = []
    places: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line)

    def distance(label: str, here: int) -> int:
        return places[label] - here - 1 if label else 0

    return [
        (EQUAL, distance(it.then, here), distance(it.otherwise, here), it.value) if isinstance(it, _If) else it
        for here, it in enumerate(code)
    ]


def _as_read(number: int, size: int) -> int:
    """Return a number of the host's byte order as the filter loads it, in network order."""
    return int.from_bytes(number.to_bytes(size, sys.byteorder), "big")
