"""Validation of the endpoints that other hosts advertise: a faulty host must not take over addresses of others.

An address belongs to the host that has claimed it. MACs are not claimed: a MAC belongs to an endpoint of this host,
then to a host that is alive, then to the endpoint that was accepted first. An accepted endpoint whose claim disappears
without another host holding it stays accepted: the store may have lost the claim.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from netplug.cluster.claim_holders import ClaimHolders
from netplug.drivers.api import Network, Peer, meshed
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.store.leases import lease_key

EndpointRef = tuple[str, str]
"""The ids of a host and of its endpoint."""


@dataclass(frozen=True, slots=True)
class _CheckedPeer:
    """A peer that the driver has checked. `fault`: why the driver refuses it. `keys`: of the claims that it needs."""

    peer: Peer
    fault: str
    keys: tuple[tuple[IPAddress, str], ...]


@dataclass(frozen=True, slots=True)
class _Context:
    """What the validation depends on: the network, this host's VTEP, MACs and addresses of its own endpoints."""

    net: Network
    vtep: IPAddress | None
    macs: frozenset[str]
    addresses: frozenset[IPAddress]

    def same_checks(self, other: "_Context") -> bool:
        """Whether the driver's checks of peers remain valid."""
        return (self.net, self.vtep) == (other.net, other.vtep)


@dataclass(frozen=True, slots=True)
class Validation:
    """`peers`: the accepted ones, in the order of their publication. `refused`: the reasons, by endpoint."""

    peers: list[Peer]
    refused: Mapping[EndpointRef, str]


@dataclass(slots=True)
class _State:
    """The result of a network's last validation. `accepted`: endpoints, with `macs` and `keys` of their claims.

    `settled`: all were accepted, and no claim has changed since.
    """

    context: _Context | None = None
    adverts: dict[EndpointRef, _CheckedPeer] = field(default_factory=dict)
    accepted: set[EndpointRef] = field(default_factory=set)
    macs: dict[str, EndpointRef] = field(default_factory=dict)
    keys: dict[str, EndpointRef] = field(default_factory=dict)
    settled: bool = False

    def was_accepted(self, ref: EndpointRef, it: _CheckedPeer) -> bool:
        """Whether the endpoint was accepted before with the same MAC and addresses."""
        if ref not in self.accepted:
            return False
        before = self.adverts[ref].peer
        return (before.mac, before.addresses) == (it.peer.mac, it.peer.addresses)

    def accept(self, ref: EndpointRef, it: _CheckedPeer) -> None:
        self.accepted.add(ref)
        self.macs[it.peer.mac] = ref
        for _, key in it.keys:
            self.keys[key] = ref

    def drop(self, ref: EndpointRef) -> None:
        self.accepted.discard(ref)
        if (it := self.adverts.pop(ref, None)) is None:
            return
        if self.macs.get(it.peer.mac) == ref:
            del self.macs[it.peer.mac]
        for _, key in it.keys:
            if self.keys.get(key) == ref:
                del self.keys[key]


class PeerValidator:
    """Validates peers. `me`: this host's id. `alive`: tells whether a host is alive; `named`: returns its name."""

    def __init__(
        self,
        engine: Engine,
        claimed: ClaimHolders,
        me: str,
        *,
        alive: Callable[[str], bool],
        named: Callable[[str], str],
    ) -> None:
        self._me = me
        self._engine = engine
        self._claimed = claimed
        self._alive = alive
        self._named = named
        self._states: dict[str, _State] = {}

    def forget(self, networks: Collection[str]) -> None:
        """Forget the results of all networks except these."""
        for network in self._states.keys() - networks:
            del self._states[network]

    def affected(self, keys: Collection[str]) -> list[str]:
        """Note that claims have changed, and return the networks with accepted endpoints that depend on them."""
        found = [network for network, state in self._states.items() if any(key in state.keys for key in keys)]
        for network in found:
            self._states[network].settled = False
        return found

    async def validate(
        self, network: str, record: NetworkRecord, adverts: Mapping[EndpointRef, Peer], *, complete: bool
    ) -> Validation:
        """Validate the advertised endpoints of a network.

        This runs for each new endpoint, while a thousand others are unchanged. So if all were accepted before, only
        changed ones are checked.

        Args:
            network: its id in the cluster.
            record: the network on this host.
            adverts: all endpoints on other hosts; unchanged ones are the same objects as before.
            complete: whether the store has all claims; otherwise endpoints stay accepted.

        Raises:
            StoreError: the store does not answer a question about claims.
        """
        state, context = self._states.setdefault(network, _State()), self._context(record)
        known = state.adverts if state.context and state.context.same_checks(context) else {}
        changed = {
            ref: self._check(record, peer)
            for ref, peer in adverts.items()
            if (before := known.get(ref)) is None or before.peer is not peer
        }
        # For new endpoints, claims may have been written whose events have not arrived yet.
        keys = [(ref[0], key) for ref, it in changed.items() for _, key in it.keys]
        await self._claimed.refresh([key for host, key in keys if self._claimed.holder(key) != host])
        settled = state.settled and complete and state.context == context
        state.context = context
        if settled and self._validate_changed(state, adverts, changed):
            return Validation([*adverts.values()], {})
        return self._validate_all(
            state, {ref: changed.get(ref) or state.adverts[ref] for ref in adverts}, complete=complete
        )

    def _validate_changed(
        self, state: _State, adverts: Mapping[EndpointRef, Peer], changed: Mapping[EndpointRef, _CheckedPeer]
    ) -> bool:
        accepted_before = {ref for ref, it in changed.items() if state.was_accepted(ref, it)}
        for ref in (*(state.adverts.keys() - adverts.keys()), *(it for it in changed if it in state.adverts)):
            state.drop(ref)
        state.adverts |= changed
        for ref, it in changed.items():
            if self._refusal(state, ref, it, accepted_before=ref in accepted_before, complete=True):
                state.accepted |= accepted_before  # for `_validate_all`
                return False
            state.accept(ref, it)
        return True

    def _validate_all(self, state: _State, adverts: dict[EndpointRef, _CheckedPeer], *, complete: bool) -> Validation:
        accepted_before = {ref for ref, it in adverts.items() if state.was_accepted(ref, it)}
        state.adverts, state.accepted, state.macs, state.keys = adverts, set(), {}, {}
        refused = {}
        # The endpoint with precedence for a MAC comes first.
        for ref in sorted(adverts, key=lambda ref: (not self._alive(ref[0]), ref not in accepted_before)):
            it = adverts[ref]
            if why := self._refusal(state, ref, it, accepted_before=ref in accepted_before, complete=complete):
                refused[ref] = why
            else:
                state.accept(ref, it)
        state.settled = not refused
        return Validation([it.peer for ref, it in adverts.items() if ref not in refused], refused)

    def _refusal(
        self, state: _State, ref: EndpointRef, it: _CheckedPeer, *, accepted_before: bool, complete: bool
    ) -> str:
        """Return why an endpoint is refused, given those accepted so far; empty if it is accepted."""
        if it.fault:
            return it.fault
        for address, key in it.keys if complete or not accepted_before else ():
            holder = self._claimed.holder(key)
            if holder is None and not accepted_before:
                return f"address {address} has no lease"
            if holder not in {None, ref[0]}:
                owner = f"host {self._named(holder)}" if holder else "the network itself"
                return f"address {address} is leased to {owner}"
        assert state.context  # noqa: S101 - set by `validate`
        if it.peer.mac in state.context.macs:
            return f"MAC {it.peer.mac} belongs to an endpoint of this host"
        if holding := state.macs.get(it.peer.mac):
            return f"MAC {it.peer.mac} belongs to an endpoint of host {self._named(holding[0])}"
        if mine := [address for address in it.peer.addresses if address in state.context.addresses]:
            return f"address {mine[0]} belongs to an endpoint of this host"
        return ""

    def _context(self, record: NetworkRecord) -> _Context:
        mine = [it for it in self._engine.registry.endpoints(record.network.id) if self._is_mine(record, it)]
        macs = frozenset(it.endpoint.chosen_mac().lower() for it in mine)
        return _Context(record.network, self._engine.base_plan.host.vtep, macs, frozenset(addresses_of(mine)))

    def _is_mine(self, record: NetworkRecord, endpoint: EndpointRecord) -> bool:
        """Whether no other host holds an address of this endpoint, as after this host was removed from the cluster."""
        keys = self._keys(record, (interface.ip for interface in endpoint.endpoint.addresses))
        return all(self._claimed.holder(key) in {None, self._me} for _, key in keys)

    def _keys(self, record: NetworkRecord, addresses: Iterable[IPAddress]) -> tuple[tuple[IPAddress, str], ...]:
        pools = [pool for ident in record.pools if (pool := self._engine.allocator.pool(ident))]
        return tuple(
            (address, lease_key(pool.id, address)) for address in addresses for pool in pools if address in pool.network
        )

    def _check(self, record: NetworkRecord, peer: Peer) -> _CheckedPeer:
        driver, fault = self._engine.drivers.of(record.network), ""
        assert meshed(driver)  # noqa: S101 - the network is one of several hosts
        try:
            driver.check_peer(record.network, peer, self._engine.base_plan.host)
        except DriverError as exc:
            fault = exc.message
        return _CheckedPeer(peer, fault, self._keys(record, peer.addresses))


def addresses_of(records: Iterable[EndpointRecord]) -> set[IPAddress]:
    """Return the addresses of endpoints of this host."""
    return {it.ip for record in records for it in record.endpoint.addresses}
