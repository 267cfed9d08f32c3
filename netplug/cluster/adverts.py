"""Advertises the endpoints of this host to the other hosts."""

from collections.abc import Collection

import structlog

from netplug.cluster.catalogue import joining_refused
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.records import NETWORKS, Definition, EndpointAdvert, as_put, endpoint_key, parse
from netplug.cluster.view import View
from netplug.drivers.api import meshed
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord
from netplug.errors import NetplugError
from netplug.names import dns_records
from netplug.store.api import Compare, Delete

log = structlog.get_logger(__name__)


class Adverts:
    """The adverts of this host. `published`: revisions of endpoints, by id. `me`: the id of this host."""

    def __init__(self, engine: Engine, store: AdmissionGate, view: View, mirroring: Mirroring, me: str) -> None:
        self.published: dict[str, int] = {}
        self._engine = engine
        self._store = store
        self._view = view
        self._mirroring = mirroring
        self._me = me

    def of(self, record: EndpointRecord) -> EndpointAdvert:
        net = self._engine.registry.network(record.endpoint.network).network
        driver = self._engine.drivers.of(net)
        assert meshed(driver)  # noqa: S101 - the network is one of several hosts
        peer = driver.publish(net, record.endpoint, self._engine.base_plan.host)
        names = dns_records.advertised_names(record) if record.linked else ()
        ports = tuple(sorted(dns_records.ports_of(record)))
        return EndpointAdvert(
            peer.mac, peer.addresses, names, ports, record.healthy, record.front_end, record.container
        )

    async def publish(self, network: str, record: EndpointRecord) -> None:
        key = NETWORKS + network
        put = as_put(endpoint_key(network, self._me, record.endpoint.id), advert := self.of(record))
        # The comparison fails if the network is being deleted or changed, or was.
        definition, known, stored = self._view.networks().get(network), self._view.open_revision(network), None
        known = 0 if definition and definition.refuses(advert.addresses) else known  # the view may be out of date
        revision = await self._store.txn([Compare(key, known)], [put]) if known else None
        if revision is None:
            stored = await self._store.get(key)
            while revision is None and stored is not None and not stored.value.get("deleting"):
                if why := parse(Definition, stored).refuses(advert.addresses):
                    self._mirroring.soon(network)
                    raise NetplugError("unavailable", why, hint="try again")
                revision = await self._store.txn([Compare(key, stored.revision)], [put])
                stored = stored if revision else await self._store.get(key)
        if revision is None:
            self._mirroring.soon(network)
            raise joining_refused(
                self._engine.registry.network(record.endpoint.network).network.name, stored, self._view
            )
        self.published[record.endpoint.id] = revision

    async def publish_all(self, network: str, here: str, lost: Collection[str]) -> None:
        """Make the adverts of this host in a network its endpoints.

        `here`: the network's id on this host. `lost`: endpoints whose addresses belong to others by now.

        Raises:
            ExceptionGroup: of endpoints that the network does not take; all others were advertised.
            StoreError: the store does not answer.
        """
        refused: list[Exception] = []
        async with self._engine.registry.lock(here):
            mine = {
                record.endpoint.id: record
                for record in self._engine.registry.endpoints(here)
                if record.endpoint.id not in lost
            }
            advertised = self._view.endpoints(network, self._me)
            for ident in advertised.keys() - mine.keys() - self._engine.quarantine.endpoints():
                await self._store.txn([], [Delete(endpoint_key(network, self._me, ident))])
            for ident, record in mine.items():
                if advertised.get(ident) != self.of(record):
                    log.info("endpoint.told_again", endpoint=short(ident))
                    try:
                        await self.publish(network, record)
                    except NetplugError as exc:  # one endpoint keeps no other from being advertised
                        refused.append(exc)
        if refused:
            raise ExceptionGroup("endpoints that are not advertised", refused)
