"""What the other hosts tell, brought about here: their endpoints in this host's kernel, and by name.

What does not count (`verdicts`) is left out, logged, and shown by `netplug diff` as long as it is told.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from netplug.cluster.barrier import Barrier
from netplug.cluster.claim_holders import ClaimHolders
from netplug.cluster.networks import Definitions
from netplug.cluster.verdicts import Judge, Where, addresses_of
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
"""After which what failed is tried again."""


class Names(Protocol):
    """Who is called what."""

    def learn(self, network: str, ident: str, entry: Entry | None) -> None:
        """Take what is now said of an endpoint on another host; None: nothing. `network`: its id here."""


class Peering:
    """Of one host. `whole`: whether the store has all that it ever had."""

    def __init__(
        self,
        engine: Engine,
        view: View,
        claimed: ClaimHolders,
        networks: Definitions,
        barrier: Barrier,
        me: str,
        *,
        whole: Callable[[], bool],
    ) -> None:
        self.names: Names | None = None
        self._engine = engine
        self._view = view
        self._claimed = claimed
        self._networks = networks
        self._barrier = barrier
        self._me = me
        self._whole = whole
        self._judge = Judge(engine, claimed, me, alive=view.alive, named=lambda host: name_of(view, host))
        self._reached: dict[str, Sequence[Peer]] = {}
        self._refused: dict[str, Mapping[Where, str]] = {}
        self._done: dict[str, int] = {}
        claimed.changed = self._look_at_claims

    async def bring_about(self) -> None:
        """Look at all networks of which something was told, and confirm what is here by now."""
        await self._claimed.synced.wait()
        built = self._networks.shared()
        for network in tuple(self._view.touched):
            self._view.touched.discard(network)
            told = self._view.published.pop(network, {})
            if network in built:
                try:
                    await self._bring_about(network, built[network])
                except Exception as exc:  # noqa: BLE001 - one network keeps no other from its peers
                    log.warning("peers.failed", network=short(network), error=str(exc) or repr(exc))
                    asyncio.get_running_loop().call_later(RETRY_S, self._again, network)
                    self._view.requeue(network, told)
                    continue
            else:
                self._view.renamed.pop(network, None)
            for host, (_, last) in told.items():
                self._done[host] = max(last, self._done.get(host, 0))
        for network in self._refused.keys() - built.keys():
            del self._refused[network]
        self._judge.forget(built.keys())
        self._say_refused(built)
        self._confirm()

    def _confirm(self) -> None:
        """Confirm to each host what is here, as far as nothing that it told of before is still to come."""
        pending: dict[str, int] = {}
        for told in self._view.published.values():
            for host, (first, _) in told.items():
                pending[host] = min(first, pending.get(host, first))
        ready = {host: last for host, last in self._done.items() if last < pending.get(host, last + 1)}
        for host in ready:
            del self._done[host]
        self._barrier.applied(ready)

    async def _bring_about(self, network: str, record: NetworkRecord) -> None:
        here = record.network.id
        renamed = self._view.renamed.pop(network, set())
        try:
            told = self._view.peers(network, self._me)
            verdict = await self._judge.judge(network, record, told, whole=self._whole())
            before, self._refused[network] = self._refused.get(network, {}), verdict.refused
            renamed |= before.keys() ^ verdict.refused.keys()
            self._reached[network] = peers = self._with_missing(network, here, verdict.peers)
            await self._engine.peers.apply(here, peers)
            self._name(here, network, renamed, told.keys() - verdict.refused.keys())
        except BaseException:
            self._view.renamed[network] |= renamed
            raise

    def _with_missing(self, network: str, here: str, told: Sequence[Peer]) -> Sequence[Peer]:
        """While a store that lost its data fills again, add those that were there, unless somebody else has their
        addresses now.
        """
        if self._whole():
            return told
        there = {(peer.endpoint, peer.vtep) for peer in told}
        taken = {address for peer in told for address in peer.addresses}
        taken |= addresses_of(self._engine.registry.endpoints(here))
        return [
            *(
                peer
                for peer in self._reached.get(network, ())
                if (peer.endpoint, peer.vtep) not in there and taken.isdisjoint(peer.addresses)
            ),
            *told,
        ]

    def _name(self, here: str, network: str, renamed: Collection[Where], counted: Collection[Where]) -> None:
        """Have the endpoints of other hosts called as they say; who is reached keeps its name. `here`: as above."""
        for host, ident in renamed:
            told = self._view.endpoint(network, host, ident)
            if self.names is None or host == self._me or (told is None and not self._whole()):
                continue
            key, entry = f"{ident}@{host}", None
            if told is not None and told.names and (host, ident) in counted:
                entry = dns_records.of_other(key, told.names, told.addresses, told.ports, healthy=told.healthy)
            self.names.learn(here, key, entry)

    def _say_refused(self, built: Mapping[str, NetworkRecord]) -> None:
        found = [
            Difference(
                f"peers of network {built[network].network.name}",
                f"endpoint {short(ident)} on host {name_of(self._view, host)}",
                f"{why}: what its host tells of it does not count",
            )
            for network, refused in sorted(self._refused.items())
            for (host, ident), why in sorted(refused.items())
        ]
        self._engine.conditions.report("peers", found)

    def _look_at_claims(self, keys: Collection[str]) -> None:
        """Look again at the networks of which something is refused: its claim may have come, or another have gone."""
        for network, refused in self._refused.items():
            if refused:
                self._view.touch(network)
        for network in self._judge.concerned(keys):
            self._view.touch(network)

    def _again(self, network: str) -> None:
        self._view.touched.add(network)
        self._view.changed.set()
