"""The default route of a sandbox: by the first network that it joined, and by the next one when it leaves that."""

import structlog

from netplug.engine.journal import Intent, Journal
from netplug.engine.planning import Planner
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.registry import Registry, put
from netplug.errors import NetplugError

log = structlog.get_logger(__name__)


class WayOut:
    """Gives each sandbox one default route of each IP version, as long as one of its networks has a gateway."""

    def __init__(self, registry: Registry, journal: Journal, planner: Planner) -> None:
        self._registry = registry
        self._journal = journal
        self._planner = planner

    def beside_others(self, netns: str, netns_id: str) -> set[int]:
        """Return the IP versions for which the sandbox has no default route yet."""
        others = self._registry.in_sandbox(netns, netns_id)
        return {4, 6} - {
            route.destination.version for other in others for route in other.routes if not route.destination.prefixlen
        }

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
            given = heir.given_routes
            if given is not None:
                return
            had = {route.destination.version for route in heir.routes if not route.destination.prefixlen}
            ways = had | self.beside_others(netns, heir.sandbox_id)
            now = self._planner.new_endpoint(net, heir, given, ways)
            routes = now.plan.without(step.key for step in heir.plan)
            if routes:
                key, _ = await self._journal.build(Intent(f"way out of {netns}", routes))
                await self._journal.commit(key, [put(now)])
                self._registry.remember(now)
