"""The allocator against a naive model: free addresses in a list, picked from the front and released to the end.

What is kept for a name is a list too, kept longest first.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_ipam_store import DictStore

from netplug.ipam.allocator import Allocator
from netplug.ipam.errors import IpamError, Kind
from netplug.ipam.lease import RETURNING, IPAddress, Lease, Owner, OwnerKind
from netplug.ipam.pool import Base, IPNetwork, Pool, Space

_T = TypeVar("_T")
CUT = Base(ip_network("10.8.0.0/29"), 31)
NETWORKS: list[tuple[IPNetwork, IPNetwork | None]] = [
    (ip_network("10.9.0.0/30"), None),
    (ip_network("10.9.0.8/29"), None),
    (ip_network("10.9.0.32/31"), None),
    (ip_network("10.9.0.40/32"), None),
    (ip_network("fd00:9::/126"), None),
    (ip_network("10.9.1.0/28"), ip_network("10.9.1.8/29")),
    (ip_network("10.9.1.0/28"), None),
    (ip_network("10.9.0.0/24"), None),
]
KINDS = st.sampled_from([kind for kind in OwnerKind if kind is not OwnerKind.KEPT])
OWNERS = st.builds(Owner, KINDS, st.sampled_from(["", "e1", "e2"]), st.sampled_from(["", "web", "db"]))
STICKY_S = 6


@dataclass
class ModelPool:
    space: str
    network: IPNetwork
    range: IPNetwork | None = None
    holds: int = 0
    holders: tuple[str, ...] = ()
    leases: dict[IPAddress, Lease] = field(default_factory=dict)
    free: list[IPAddress] = field(default_factory=list)
    replay: set[IPAddress] = field(default_factory=set)
    unreplayed: int = 0
    sticky: int = 0
    kept: list[Lease] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crash()

    @property
    def pool(self) -> Pool:
        return Pool(self.space, self.network, self.range, self.holds, self.holders, self.sticky)

    def crash(self) -> None:
        self.replay, self.unreplayed = set(), 0
        usable = set(self.network.hosts())  # says the same of /30, /31, /32 and /126 as we do
        if self.network.version == 6:
            usable |= {self.network.broadcast_address}
        taken = {*self.leases, *(kept.address for kept in self.kept)}
        self.free = [each for each in (self.range or self.network) if each in usable and each not in taken]

    def give_back(self, address: IPAddress, now: float) -> None:
        lease = self.leases.pop(address)
        self.replay.discard(address)
        name = lease.owner.name
        if not self.sticky or not name or lease.owner.kind not in RETURNING:
            self.free_again(address)
            return
        for older in [kept for kept in self.kept if kept.owner.name == name]:
            self.forget(older)
        self.kept.append(Lease(lease.pool, address, Owner(OwnerKind.KEPT, name=name), lease.mac, now + self.sticky))

    def kept_for(self, owner: Owner, now: float) -> Lease | None:
        found = [kept for kept in self.kept if kept.owner.name == owner.name and kept.until > now]
        return found[0] if found and owner.kind in RETURNING else None

    def forget(self, kept: Lease) -> None:
        self.kept.remove(kept)
        self.free_again(kept.address)

    def free_again(self, address: IPAddress) -> None:
        first, last = self.pool.window
        if first <= int(address) <= last:
            self.free.append(address)


class IpamMachine(RuleBasedStateMachine):
    @initialize(first=st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True))
    def start(self, first: list[tuple[IPNetwork, IPNetwork | None]]) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = DictStore()
        self.model: dict[str, ModelPool] = {}
        self.cuts = [CUT.subnet(index) for index in range(CUT.count)]
        self.now = 1000.0
        self.boot()
        for which in first:
            self.claim_pool(which)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    def run(self, work: Coroutine[object, object, _T]) -> _T:
        return self.loop.run_until_complete(work)

    def refused(self, kind: Kind, work: Coroutine[object, object, object]) -> None:
        with pytest.raises(IpamError) as caught:
            self.run(work)
        assert caught.value.kind is kind

    def tick(self) -> float:
        self.now += 1
        return self.now

    def boot(self) -> None:
        self.allocator = Allocator(self.store, [Space("local", (CUT,))], clock=lambda: self.now)
        self.run(self.allocator.load())

    def any_pool(self, data: st.DataObject) -> ModelPool:
        return self.model[data.draw(st.sampled_from(sorted(self.model)))]

    def any_address(self, data: st.DataObject, model: ModelPool) -> IPAddress:
        """Draw one near the beginning of what is picked from, or just outside."""
        offset = data.draw(st.sampled_from([0, 8] if model.range else [0]))
        return model.network.network_address + offset + data.draw(st.integers(0, 5))

    def tidy(self, model: ModelPool) -> None:
        if not model.pool.wanted:
            del self.model[model.pool.id]
            if model.network.prefixlen == CUT.size and model.network.version == 4 and CUT.has(model.network):
                self.cuts.append(model.network)

    @rule(which=st.sampled_from(NETWORKS))
    def request_pool(self, which: tuple[IPNetwork, IPNetwork | None]) -> None:
        self.claim_pool(which)

    def claim_pool(self, which: tuple[IPNetwork, IPNetwork | None]) -> None:
        network, part = which
        wanted = Pool("local", network, part)
        work = self.allocator.request_pool("local", network=network, range=part)
        model = self.model.get(wanted.id)
        if model is None:
            others = [other.network for other in self.model.values() if other.network.version == network.version]
            if any(network.overlaps(other) for other in others):
                self.refused(Kind.EXISTS, work)
                return
            model = self.model[wanted.id] = ModelPool("local", network, part)
        if model.unreplayed:
            model.unreplayed -= 1
        else:
            model.holds += 1
        assert self.run(work) == model.pool

    @rule()
    def cut_pool(self) -> None:
        work = self.allocator.request_pool("local")
        if not self.cuts:
            self.refused(Kind.UNAVAILABLE, work)
            return
        model = ModelPool("local", self.cuts.pop(0), holds=1)
        self.model[model.pool.id] = model
        assert self.run(work) == model.pool

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release_pool(self, data: st.DataObject) -> None:
        model = self.any_pool(data)
        assert self.run(self.allocator.release_pool(model.pool.id)) == bool(model.holds)
        if model.holds:
            model.holds -= 1
            model.unreplayed = min(model.unreplayed, model.holds)
            self.tidy(model)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), holder=st.sampled_from(["n1", "n2"]))
    def keep(self, data: st.DataObject, holder: str) -> None:
        model = self.any_pool(data)
        self.run(self.allocator.bind(model.pool.id, holder))
        if holder not in model.holders:
            model.holders = (*model.holders, holder)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), holder=st.sampled_from(["n1", "n2"]))
    def let_go(self, data: st.DataObject, holder: str) -> None:
        model = self.any_pool(data)
        assert self.run(self.allocator.unbind(model.pool.id, holder)) == (holder in model.holders)
        model.holders = tuple(other for other in model.holders if other != holder)
        self.tidy(model)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), owner=OWNERS, count=st.integers(1, 4))
    def request_any(self, data: st.DataObject, owner: Owner, count: int) -> None:
        model = self.any_pool(data)
        for _ in range(count):
            work = self.allocator.request_address(model.pool.id, owner=owner)
            self.tick()
            if mine := model.kept_for(owner, self.now):
                model.kept.remove(mine)
                lease = Lease(model.pool.id, mine.address, owner, mine.mac)
            elif model.free or model.kept:
                address = model.free.pop(0) if model.free else model.kept.pop(0).address
                lease = Lease(model.pool.id, address, owner)
            else:
                self.refused(Kind.UNAVAILABLE, work)
                return
            model.leases[lease.address] = lease
            assert self.run(work) == lease

    @precondition(lambda self: self.model)
    @rule(data=st.data(), owner=OWNERS)
    def request_static(self, data: st.DataObject, owner: Owner) -> None:
        model = self.any_pool(data)
        address = self.any_address(data, model)
        work = self.allocator.request_address(model.pool.id, address=address, owner=owner, mac="m")
        reserved = model.network.version == 4 and model.network.prefixlen <= 30
        ends = {model.network.network_address, model.network.broadcast_address}
        if address not in model.network or (reserved and address in ends):
            self.refused(Kind.INVALID, work)
        elif address in model.replay:
            model.replay.remove(address)
            assert self.run(work) == model.leases[address]
        elif address in model.leases:
            self.refused(Kind.UNAVAILABLE, work)
        else:
            model.leases[address] = Lease(model.pool.id, address, owner, "m")
            if address in model.free:
                model.free.remove(address)
            model.kept = [kept for kept in model.kept if kept.address != address]
            assert self.run(work) == model.leases[address]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), owner=OWNERS)
    def assign(self, data: st.DataObject, owner: Owner) -> None:
        model = self.any_pool(data)
        address = self.any_address(data, model)
        work = self.allocator.assign(model.pool.id, address, owner)
        if address not in model.leases:
            self.refused(Kind.NOT_FOUND, work)
            return
        model.leases[address] = Lease(model.pool.id, address, owner, model.leases[address].mac)
        model.replay.discard(address)
        assert self.run(work) == model.leases[address]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release_address(self, data: st.DataObject) -> None:
        model = self.any_pool(data)
        address = self.any_address(data, model)
        known, now = address in model.leases, self.tick()
        assert self.run(self.allocator.release_address(model.pool.id, address)) == known
        if known:
            model.give_back(address, now)

    @precondition(lambda self: any(model.leases for model in self.model.values()))
    @rule(data=st.data())
    def release_all(self, data: st.DataObject) -> None:
        model = self.any_pool(data)
        for address in data.draw(st.permutations(list(model.leases))):
            now = self.tick()
            assert self.run(self.allocator.release_address(model.pool.id, address))
            model.give_back(address, now)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), sticky=st.sampled_from([0, STICKY_S, STICKY_S, STICKY_S]))
    def stick(self, data: st.DataObject, sticky: int) -> None:
        model = self.any_pool(data)
        self.run(self.allocator.set_sticky(model.pool.id, sticky))
        model.sticky = sticky
        for kept in list(model.kept) if not sticky else ():
            model.forget(kept)

    @rule()
    def expire(self) -> None:
        self.tick()
        self.run(self.allocator.expire())
        for model in self.model.values():
            for kept in [kept for kept in model.kept if kept.until <= self.now]:
                model.forget(kept)

    @rule()
    def crash(self) -> None:
        self.boot()
        held = {model.network for model in self.model.values()}
        self.cuts = [net for net in map(CUT.subnet, range(CUT.count)) if net not in held]
        for model in self.model.values():
            model.crash()

    @rule()
    def begin_session(self) -> None:
        self.allocator.begin_session()
        for model in self.model.values():
            model.unreplayed = model.holds
            model.replay = set(model.leases) if model.holds else set()

    @invariant()
    def memory_store_and_model_agree(self) -> None:
        pools = {key: model.pool for key, model in self.model.items()}
        leases = {(key, address): each for key, model in self.model.items() for address, each in model.leases.items()}
        leases |= {(key, kept.address): kept for key, model in self.model.items() for kept in model.kept}
        assert {pool.id: pool for pool in self.allocator.pools()} == pools == self.store.pools
        assert self.store.leases == leases
        for key, model in self.model.items():
            assert {lease.address: lease for lease in self.allocator.leases(key)} == model.leases
            usage = self.allocator.usage(key)
            assert (usage.free, usage.leased, usage.kept) == (len(model.free), len(model.leases), len(model.kept))
            assert list(self.allocator.retained(key)) == [kept for kept in model.kept if kept.until > self.now]


TestIpamMachine = IpamMachine.TestCase
TestIpamMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
