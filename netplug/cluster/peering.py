"""Applies the endpoints that other hosts advertise to this host's kernel and DNS.

Endpoints that fail the validation (`peer_validation`) are skipped, logged, and shown by `netplug diff`.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from netplug.cluster.barrier import Barrier
from netplug.cluster.claim_holders import ClaimHolders
from netplug.cluster.mirroring import Mirroring
from netplug.cluster.peer_validation import EndpointRef, PeerValidator, addresses_of
from netplug.cluster.view import View, name_of
from netplug.dns.zone import Entry
from netplug.drivers.api import Peer
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.records import NetworkRecord
from netplug.names import dns_records

log = structlog.get_logger(__name__)

RETRY_S = 1.0
"""Pause before a failed network is tried again."""


class Names(Protocol):
    """The name server."""

    def learn(self, network: str, ident: str, entry: Entry | None) -> None:
        """Set the DNS entry of an endpoint on another host; None removes it. `network`: its id on this host."""


class Peering:
    """The peers of this host. `complete`: whether the store has all its data; see `Recovery.complete`."""

    def __init__(
        self,
        engine: Engine,
        view: View,
        claimed: ClaimHolders,
        mirroring: Mirroring,
        barrier: Barrier,
        me: str,
        *,
        complete: Callable[[], bool],
    ) -> None:
        self.names: Names | None = None
        self._engine = engine
        self._view = view
        self._claimed = claimed
        self._mirroring = mirroring
        self._barrier = barrier
        self._me = me
        self._complete = complete
        self._validator = PeerValidator(engine, claimed, me, alive=view.alive, named=lambda host: name_of(view, host))
        self._reached: dict[str, Sequence[Peer]] = {}
        self._refused: dict[str, Mapping[EndpointRef, str]] = {}
        self._done: dict[str, int] = {}
        claimed.changed = self._on_claims_changed

    async def reconcile(self) -> None:
        """Reconcile all touched networks, and confirm to the other hosts what was applied."""
        await self._claimed.synced.wait()
        built = self._mirroring.shared()
        for network in tuple(self._view.touched):
            self._view.touched.discard(network)
            revisions = self._view.published.pop(network, {})
            if network in built:
                try:
                    await self._reconcile_network(network, built[network])
                except Exception as exc:  # noqa: BLE001 - one network keeps no other from its peers
                    log.warning("peers.failed", network=short(network), error=str(exc) or repr(exc))
                    asyncio.get_running_loop().call_later(RETRY_S, self._retry, network)
                    self._view.requeue(network, revisions)
                    continue
            else:
                self._view.renamed.pop(network, None)
            for host, (_, last) in revisions.items():
                self._done[host] = max(last, self._done.get(host, 0))
        for network in self._refused.keys() - built.keys():
            del self._refused[network]
        self._validator.forget(built.keys())
        self._report_refused(built)
        self._confirm()

    def _confirm(self) -> None:
        """Confirm to each host the revision up to which all its endpoints were applied."""
        pending: dict[str, int] = {}
        for revisions in self._view.published.values():
            for host, (first, _) in revisions.items():
                pending[host] = min(first, pending.get(host, first))
        ready = {host: last for host, last in self._done.items() if last < pending.get(host, last + 1)}
        for host in ready:
            del self._done[host]
        self._barrier.applied(ready)

    async def _reconcile_network(self, network: str, record: NetworkRecord) -> None:
        here = record.network.id
        renamed = self._view.renamed.pop(network, set())
        try:
            adverts = self._view.peers(network, self._me)
            validation = await self._validator.validate(network, record, adverts, complete=self._complete())
            before, self._refused[network] = self._refused.get(network, {}), validation.refused
            renamed |= before.keys() ^ validation.refused.keys()
            self._reached[network] = peers = self._with_lost(network, here, validation.peers)
            await self._engine.peers.apply(here, peers)
            self._update_names(here, network, renamed, adverts.keys() - validation.refused.keys())
        except BaseException:
            self._view.renamed[network] |= renamed
            raise

    def _with_lost(self, network: str, here: str, adverts: Sequence[Peer]) -> Sequence[Peer]:
        """During a recovery of the store, add the peers applied before, unless their addresses are in use."""
        if self._complete():
            return adverts
        present = {(peer.endpoint, peer.vtep) for peer in adverts}
        taken = {address for peer in adverts for address in peer.addresses}
        taken |= addresses_of(self._engine.registry.endpoints(here))
        return [
            *(
                peer
                for peer in self._reached.get(network, ())
                if (peer.endpoint, peer.vtep) not in present and taken.isdisjoint(peer.addresses)
            ),
            *adverts,
        ]

    def _update_names(
        self, here: str, network: str, renamed: Collection[EndpointRef], accepted: Collection[EndpointRef]
    ) -> None:
        """Update the names of other hosts' endpoints. During a recovery, missing ones keep their names."""
        for host, ident in renamed:
            advert = self._view.endpoint(network, host, ident)
            if self.names is None or host == self._me or (advert is None and not self._complete()):
                continue
            key, entry = f"{ident}@{host}", None
            if advert is not None and advert.names and (host, ident) in accepted:
                entry = dns_records.remote_entry(
                    key, advert.names, advert.addresses, advert.ports, healthy=advert.healthy
                )
            self.names.learn(here, key, entry)

    def _report_refused(self, built: Mapping[str, NetworkRecord]) -> None:
        found = [
            Difference(
                f"peers of network {built[network].network.name}",
                f"endpoint {short(ident)} on host {name_of(self._view, host)}",
                f"{why}: the endpoint is ignored",
            )
            for network, refused in sorted(self._refused.items())
            for (host, ident), why in sorted(refused.items())
        ]
        self._engine.conditions.report("peers", found)

    def _on_claims_changed(self, keys: Collection[str]) -> None:
        """Reconcile the networks whose accepted or refused endpoints depend on these claims."""
        for network, refused in self._refused.items():
            if refused:
                self._view.touch(network)
        for network in self._validator.affected(keys):
            self._view.touch(network)

    def _retry(self, network: str) -> None:
        self._view.touched.add(network)
        self._view.changed.set()
