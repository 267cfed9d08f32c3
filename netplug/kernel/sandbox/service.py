"""Network namespaces of containers, as the engine asks for them."""

import asyncio
import os
from ipaddress import IPv4Address

from netplug.drivers.steps import IPAddress
from netplug.kernel.netlink import rtnl
from netplug.kernel.sandbox import identity
from netplug.kernel.sandbox.interception import Interception
from netplug.kernel.sandbox.netns import netlink_in, open_netns


class NetworkNamespaces:
    """Those of this host; see `api.Sandboxes`."""

    async def find(self, ref: str) -> tuple[str, str]:
        """Return path and identity of a namespace."""
        return identity.find(ref)

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether a process lives in a namespace."""
        return await asyncio.to_thread(identity.has_processes, path, netns_id)

    async def gateways(self, path: str) -> frozenset[IPAddress]:
        """Return the gateways of a sandbox's default routes."""
        return await asyncio.to_thread(_gateways, path)

    async def intercept(self, path: str, server: IPv4Address) -> Interception:
        """Listen in a sandbox in front of a name server."""
        return await asyncio.to_thread(Interception, path, server)


def _gateways(path: str) -> frozenset[IPAddress]:
    try:
        fd = open_netns(path)
    except OSError:
        return frozenset()
    try:
        with netlink_in(fd) as nl:
            ways = [it for it in rtnl.routes(nl) if it.gateway and not it.destination.prefixlen]
    finally:
        os.close(fd)
    best = {it.destination.version: it.gateway for it in sorted(ways, key=lambda it: -it.metric)}
    return frozenset(it for it in best.values() if it)
