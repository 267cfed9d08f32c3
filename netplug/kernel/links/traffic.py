"""Counters of links: one dump of the host's, and one of each sandbox that has links of its own (macvlan).

The statistics are asked for alone (RTM_GETSTATS, Linux 4.7): a dump of links would be ten times as long.
"""

import asyncio
import struct
from collections.abc import Collection, Iterable, Mapping

from netplug.kernel.links.api import LinkCounters, SandboxLink
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink, attrs
from netplug.kernel.sandbox.netns import Sandboxes

_RTM_GETSTATS = 94
_IFLA_STATS_LINK_64 = 1
_STATS_MSG = struct.Struct("=B3xII")
"""struct if_stats_msg: family, index, filter mask (linux/if_link.h)."""
_LINK_STATS = struct.Struct("=8Q")
"""Beginning of struct rtnl_link_stats64: packets, bytes, errors and drops, received and transmitted of each."""
_RTM_GETQDISC = 38
_TCMSG = struct.Struct("=B3xiIII")
"""struct tcmsg: family, index, handle, parent, info (linux/rtnetlink.h)."""
_ROOT = 0xFFFFFFFF
_TCA_STATS2, _TCA_STATS_QUEUE = 7, 3
_DROPS = struct.Struct("=8xI")
"""Of struct gnet_stats_queue: queue length, backlog, drops."""


class LinkTraffic:
    """Reads counters; see `api.Traffic`."""

    async def of_host(self, links: Collection[str]) -> Mapping[str, LinkCounters]:
        """Return the counters of links of the host by name."""
        return await asyncio.to_thread(_of_host, links)

    async def of_sandboxes(self, links: Collection[SandboxLink]) -> Mapping[SandboxLink, LinkCounters]:
        """Return the counters of links in sandboxes."""
        return await asyncio.to_thread(_of_sandboxes, links) if links else {}


def _of_host(names: Collection[str]) -> dict[str, LinkCounters]:
    if not names:
        return {}
    with Netlink.open() as nl:
        found = counters(nl)
        indexes = {name: rtnl.index(nl, name) for name in names}
        return {name: found[index] for name, index in indexes.items() if index in found}


def _of_sandboxes(links: Collection[SandboxLink]) -> dict[SandboxLink, LinkCounters]:
    found: dict[SandboxLink, LinkCounters] = {}
    with Sandboxes() as sandboxes:
        for place in {(link.netns, link.netns_id) for link in links}:
            try:
                _, nl = sandboxes.get(*place)
                there, indexes = counters(nl), rtnl.links(nl)
            except OSError:
                continue  # it is gone
            for link in (one for one in links if one[:2] == place):
                index = next((it.index for it in indexes if link.name == it.name or (link.mac == it.mac != "")), None)
                if index in there:
                    found[link] = there[index]
    return found


def counters(nl: Netlink) -> dict[int, LinkCounters]:
    """Return the counters of all links of a namespace by index."""
    dump = nl.dump(_RTM_GETSTATS, _STATS_MSG.pack(0, 0, 1 << (_IFLA_STATS_LINK_64 - 1)))
    dropped = _queue_drops(nl.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)))
    found = {}
    for data in dump:
        _, index, _ = _STATS_MSG.unpack_from(data)
        rx_packets, tx_packets, rx_bytes, tx_bytes, _, _, rx_dropped, tx_dropped = _LINK_STATS.unpack_from(
            attrs(data, _STATS_MSG.size)[_IFLA_STATS_LINK_64]
        )
        tx_dropped += dropped.get(index, 0)
        found[index] = LinkCounters(rx_bytes, rx_packets, rx_dropped, tx_bytes, tx_packets, tx_dropped)
    return found


def _queue_drops(dump: Iterable[bytes]) -> dict[int, int]:
    """Return the packets that the root queue of each link dropped; the link itself does not count them."""
    found = {}
    for data in dump:
        _, index, _, parent, _ = _TCMSG.unpack_from(data)
        if parent == _ROOT:
            queue = attrs(attrs(data, _TCMSG.size).get(_TCA_STATS2, b"")).get(_TCA_STATS_QUEUE)
            found[index] = _DROPS.unpack_from(queue)[0] if queue else 0
    return found
