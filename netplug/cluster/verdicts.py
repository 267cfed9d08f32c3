"""Which of the endpoints that other hosts tell of count: a bad member must not take anything from anybody.

An address is its host's who has claimed it. A MAC is claimed by nobody: whose endpoint is here has it, then who lives,
then who was there before. What was taken in and has lost its claim to nobody stays: the claim may just be missing.
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

Where = tuple[str, str]
"""Host and endpoint."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What follows from a peer alone. `fault`: what the driver finds wrong. `keys`: of the claims that it needs."""

    peer: Peer
    fault: str
    keys: tuple[tuple[IPAddress, str], ...]


@dataclass(frozen=True, slots=True)
class _Around:
    """What else a verdict rests on: the network, this host's VTEP, MACs and addresses of its own endpoints."""

    net: Network
    vtep: IPAddress | None
    macs: frozenset[str]
    addresses: frozenset[IPAddress]

    def like(self, other: "_Around") -> bool:
        """Whether what follows from a peer alone is the same."""
        return (self.net, self.vtep) == (other.net, other.vtep)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`peers`: those that count, in the order in which they were told. `refused`: of the others, why not."""

    peers: list[Peer]
    refused: Mapping[Where, str]


@dataclass(slots=True)
class _Memory:
    """Of one network, as of the last verdict. `accepted`: those that count, with `macs` and `keys` of their claims.

    `settled`: all counted, and nothing speaks against that since.
    """

    around: _Around | None = None
    told: dict[Where, _Checked] = field(default_factory=dict)
    accepted: set[Where] = field(default_factory=set)
    macs: dict[str, Where] = field(default_factory=dict)
    keys: dict[str, Where] = field(default_factory=dict)
    settled: bool = False

    def counted(self, where: Where, it: _Checked) -> bool:
        """Whether what is told of an endpoint counted before."""
        if where not in self.accepted:
            return False
        before = self.told[where].peer
        return (before.mac, before.addresses) == (it.peer.mac, it.peer.addresses)

    def accept(self, where: Where, it: _Checked) -> None:
        self.accepted.add(where)
        self.macs[it.peer.mac] = where
        for _, key in it.keys:
            self.keys[key] = where

    def drop(self, where: Where) -> None:
        self.accepted.discard(where)
        if (it := self.told.pop(where, None)) is None:
            return
        if self.macs.get(it.peer.mac) == where:
            del self.macs[it.peer.mac]
        for _, key in it.keys:
            if self.keys.get(key) == where:
                del self.keys[key]


class Judge:
    """`me`: this host's id. `alive`: whether a host lives; `named`: what it is called."""

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
        self._memory: dict[str, _Memory] = {}

    def forget(self, networks: Collection[str]) -> None:
        """Forget all networks but these."""
        for network in self._memory.keys() - networks:
            del self._memory[network]

    def concerned(self, keys: Collection[str]) -> list[str]:
        """Note that these claims have changed, and return the networks in which what counts depends on them."""
        found = [network for network, memory in self._memory.items() if any(key in memory.keys for key in keys)]
        for network in found:
            self._memory[network].settled = False
        return found

    async def judge(self, network: str, record: NetworkRecord, told: Mapping[Where, Peer], *, whole: bool) -> Verdict:
        """Judge what is told of a network.

        Word comes with each endpoint, and of a thousand others it says the same as before. So where all counted, only
        what differs is looked at.

        Args:
            network: its id in the cluster.
            record: it, as it is here.
            told: all endpoints on other hosts; those that are as before are the same objects.
            whole: whether the store has all claims; else who counted before does.

        Raises:
            StoreError: it does not say who has an address.
        """
        memory, around = self._memory.setdefault(network, _Memory()), self._around(record)
        known = memory.told if memory.around and memory.around.like(around) else {}
        fresh = {
            where: self._check(record, peer)
            for where, peer in told.items()
            if (before := known.get(where)) is None or before.peer is not peer
        }
        # Of what was not looked at before, claims may have been written that are not heard of yet.
        keys = [(where[0], key) for where, it in fresh.items() for _, key in it.keys]
        await self._claimed.refresh([key for host, key in keys if self._claimed.holder(key) != host])
        settled = memory.settled and whole and memory.around == around
        memory.around = around
        if settled and self._all_count(memory, told, fresh):
            return Verdict([*told.values()], {})
        return self._anew(memory, {where: fresh.get(where) or memory.told[where] for where in told}, whole=whole)

    def _all_count(self, memory: _Memory, told: Mapping[Where, Peer], fresh: Mapping[Where, _Checked]) -> bool:
        there = {where for where, it in fresh.items() if memory.counted(where, it)}
        for where in (*(memory.told.keys() - told.keys()), *(it for it in fresh if it in memory.told)):
            memory.drop(where)
        memory.told |= fresh
        for where, it in fresh.items():
            if self._why_not(memory, where, it, there=where in there, whole=True):
                memory.accepted |= there  # for who judges all of them
                return False
            memory.accept(where, it)
        return True

    def _anew(self, memory: _Memory, told: dict[Where, _Checked], *, whole: bool) -> Verdict:
        there = {where for where, it in told.items() if memory.counted(where, it)}
        memory.told, memory.accepted, memory.macs, memory.keys = told, set(), {}, {}
        refused = {}
        # Who has the better right to a MAC comes first.
        for where in sorted(told, key=lambda where: (not self._alive(where[0]), where not in there)):
            it = told[where]
            if why := self._why_not(memory, where, it, there=where in there, whole=whole):
                refused[where] = why
            else:
                memory.accept(where, it)
        memory.settled = not refused
        return Verdict([it.peer for where, it in told.items() if where not in refused], refused)

    def _why_not(self, memory: _Memory, where: Where, it: _Checked, *, there: bool, whole: bool) -> str:
        """Return why something does not count beside what has been accepted."""
        if it.fault:
            return it.fault
        for address, key in it.keys if whole or not there else ():
            holder = self._claimed.holder(key)
            if holder is None and not there:
                return f"address {address} is leased to nobody"
            if holder not in {None, where[0]}:
                owner = f"host {self._named(holder)}" if holder else "the network itself"
                return f"address {address} is leased to {owner}"
        assert memory.around  # noqa: S101 - set by `judge`
        if it.peer.mac in memory.around.macs:
            return f"MAC {it.peer.mac} is that of an endpoint of this host"
        if holding := memory.macs.get(it.peer.mac):
            return f"MAC {it.peer.mac} is that of an endpoint of host {self._named(holding[0])}"
        if mine := [address for address in it.peer.addresses if address in memory.around.addresses]:
            return f"address {mine[0]} is that of an endpoint of this host"
        return ""

    def _around(self, record: NetworkRecord) -> _Around:
        mine = [it for it in self._engine.registry.endpoints(record.network.id) if self._is_mine(record, it)]
        macs = frozenset(it.endpoint.chosen_mac().lower() for it in mine)
        return _Around(record.network, self._engine.base_plan.host.vtep, macs, frozenset(addresses_of(mine)))

    def _is_mine(self, record: NetworkRecord, endpoint: EndpointRecord) -> bool:
        """Whether no other host has an address of an endpoint of this one, as when this one was forgotten meanwhile."""
        keys = self._keys(record, (interface.ip for interface in endpoint.endpoint.addresses))
        return all(self._claimed.holder(key) in {None, self._me} for _, key in keys)

    def _keys(self, record: NetworkRecord, addresses: Iterable[IPAddress]) -> tuple[tuple[IPAddress, str], ...]:
        pools = [pool for ident in record.pools if (pool := self._engine.allocator.pool(ident))]
        return tuple(
            (address, lease_key(pool.id, address)) for address in addresses for pool in pools if address in pool.network
        )

    def _check(self, record: NetworkRecord, peer: Peer) -> _Checked:
        driver, fault = self._engine.drivers.of(record.network), ""
        assert meshed(driver)  # noqa: S101 - the network is one of several hosts
        try:
            driver.check_peer(record.network, peer, self._engine.base_plan.host)
        except DriverError as exc:
            fault = exc.message
        return _Checked(peer, fault, self._keys(record, peer.addresses))


def addresses_of(records: Iterable[EndpointRecord]) -> set[IPAddress]:
    """Return the addresses of endpoints of this host."""
    return {it.ip for record in records for it in record.endpoint.addresses}
