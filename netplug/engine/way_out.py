"""The default route of a sandbox: by the first network that it joined, and by the next one when it leaves that."""

from dataclasses import replace

import structlog

from netplug.drivers.api import Attachment
from netplug.drivers.registry import Drivers
from netplug.drivers.sandbox import default_routes
from netplug.engine.journal import Intent, Journal
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.registry import Registry, put
from netplug.errors import NetplugError

log = structlog.get_logger(__name__)


class WayOut:
    """Gives each sandbox one default route of each IP version, as long as one of its networks has a gateway."""

    def __init__(self, registry: Registry, journal: Journal, drivers: Drivers) -> None:
        self._registry = registry
        self._journal = journal
        self._drivers = drivers

    def beside_others(self, attachment: Attachment, netns: str, netns_id: str) -> Attachment:
        """Leave out gateways of IP versions for which the sandbox has a default route already."""
        routes = (route for other in self._registry.in_sandbox(netns, netns_id) for route in other.routes)
        taken = {route.destination.version for route in routes if route.destination.prefixlen == 0}
        return replace(attachment, gateways=tuple(item for item in attachment.gateways if item.version not in taken))

    async def succeed(self, gone: EndpointRecord) -> None:
        """Give a sandbox that may have lost its default route one by another of its networks. No lock is held.

        Not with CNI: there the configuration says which network has the default route.
        """
        for heir in self._registry.in_sandbox(gone.sandbox, gone.sandbox_id):
            if heir.front_end not in {FrontEnd.CLI, FrontEnd.NETAVARK}:
                continue
            try:
                await self._give(heir)
            except NetplugError as exc:  # the delete succeeded; the sandbox may be gone, too
                log.warning("way_out.missing", sandbox=gone.sandbox, error=str(exc))

    async def _give(self, heir: EndpointRecord) -> None:
        ident, netns = heir.endpoint.network, heir.sandbox
        async with self._registry.lock(ident):
            if self._registry.find(ident, heir.endpoint.id) is not heir:
                return
            net = self._registry.network(ident).network
            attachment = self._drivers.of(net).join(net, heir.endpoint)
            routes = default_routes(self.beside_others(attachment, netns, heir.sandbox_id), netns, heir.ifname)
            routes = routes.of_namespace(heir.sandbox_id)
            if routes:
                key, _ = await self._journal.build(Intent(f"way out of {netns}", routes))
                heir = replace(heir, plan=heir.plan + routes).summarized()
                await self._journal.commit(key, [put(heir)])
                self._registry.remember(heir)
