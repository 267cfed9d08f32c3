"""Endpoints on other hosts, as the cluster's records tell of them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from netplug.cluster.cluster import Cluster
from netplug.cluster.view import name_of
from netplug.drivers.api import Peer
from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine.records import NetworkRecord


@dataclass(frozen=True, slots=True)
class RemoteEnd:
    """An endpoint on another host. `host`: its id; `host_name`: its name. `ident`: of the network in the cluster.

    `record`: the network here. `peer`: what this host has to know of it; its VTEP is the one of the host's record.
    """

    name: str
    host: str
    host_name: str
    ident: str
    record: NetworkRecord
    peer: Peer
    front_end: str = ""
    container: str = ""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return self.peer.addresses


class RemoteEnds:
    """Finds endpoints on other hosts in the networks that this host has."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def at(self, address: IPAddress, networks: Collection[str]) -> RemoteEnd | None:
        """Return who has an address; `networks`: the ids here of those that are preferred."""
        found = [it for it in self._all() if address in it.addresses]
        return min(found, key=lambda it: it.record.network.id not in networks, default=None)

    def called(self, ref: str) -> RemoteEnd | None:
        """Return who is called so: NETWORK/NAME, a name, or an id with at least 12 characters."""
        network, slash, name = ref.rpartition("/")
        for it in self._all():
            if slash and it.record.network.name != network:
                continue
            if name and (name == it.name or (len(name) >= 12 and it.peer.endpoint.startswith(name))):
                return it
        return None

    def _all(self) -> Iterator[RemoteEnd]:
        view, me = self._cluster.view, self._cluster.me
        for ident, record in self._cluster.mirroring.shared().items():
            for (host, endpoint), peer in view.peers(ident, me).items():
                advert = view.endpoint(ident, host, endpoint)
                name, front_end, container = (
                    (advert.name, advert.front_end, advert.container) if advert else ("", "", "")
                )
                where = host, name_of(view, host), ident
                called = name or short(endpoint)
                yield RemoteEnd(called, *where, record, peer, front_end, container)
