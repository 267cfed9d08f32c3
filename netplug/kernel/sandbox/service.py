"""Network namespaces of containers, as the engine asks for them."""

import asyncio
from ipaddress import IPv4Address

from netplug.kernel.sandbox import identity
from netplug.kernel.sandbox.interception import Interception


class NetworkNamespaces:
    """Those of this host; see `api.Sandboxes`."""

    async def find(self, ref: str) -> tuple[str, str]:
        """Return path and identity of a namespace."""
        return identity.find(ref)

    async def has_processes(self, path: str, netns_id: str = "") -> bool:
        """Tell whether a process lives in a namespace."""
        return await asyncio.to_thread(identity.has_processes, path, netns_id)

    async def intercept(self, path: str, server: IPv4Address) -> Interception:
        """Listen in a sandbox in front of a name server."""
        return await asyncio.to_thread(Interception, path, server)
