"""Many use cases at once, of all front ends and on few objects, in random orders: afterwards there is one story."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_network
from random import Random
from typing import Any

import pytest
from engine_host import DEADLINE_S, NET, OTHER, Host, tcp

from netplug.drivers.steps import Step
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import Description, FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.lease import Owner, OwnerKind
from netplug.kernel.api import IN_USE, Before, Outcome, StepError
from netplug.store.api import Delete, Put, StoreError

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("quiet"), pytest.mark.timeout(5 * DEADLINE_S)]
SEEDS = range(int(os.environ.get("AT_ONCE_FIRST", "0")), int(os.environ.get("AT_ONCE_LAST", "16")))
"""More of them find more: `AT_ONCE_LAST=1000` takes some minutes."""
ROUNDS, AT_ONCE, REFUSED = 3, 14, 0.02
BOXES = "/run/docker/netns/1", "/run/docker/netns/2"
Act = Callable[[], Awaitable[object]]


class Users:
    """Users of a host who know nothing of each other. `troubled`: callers hang up, store and kernel refuse some."""

    def __init__(self, host: Host, random: Random, *, troubled: bool) -> None:
        self.host = host
        self._random = random
        self._refused = REFUSED if troubled else 0.0
        self._slow_down()

    def _slow_down(self) -> None:
        """Let each change take some time of others, and fail at times."""
        store: Any = self.host.engine.store
        txn, ensure = store.txn, self.host.kernel.ensure

        async def slow_txn(compares: Any, ops: Sequence[Put | Delete], *, durable: bool = False) -> Any:
            await self._pause(0, 0, 1, 3, 10)
            if self._random.random() < self._refused:
                raise StoreError("the disk is full")
            return await txn(compares, ops, durable=durable)

        async def slow_ensure(
            steps: Sequence[Step], outcomes: list[Outcome] | None = None, before: Before | None = None
        ) -> list[Outcome]:
            done: list[Outcome] = [] if outcomes is None else outcomes
            for step in steps:
                await self._pause(0, 0, 0, 2)
                if self._random.random() < self._refused:
                    raise StepError("internal", step, "refused")
                await ensure((step,), done, before)
            return done

        store.txn, self.host.kernel.ensure = slow_txn, slow_ensure  # type: ignore[method-assign]

    async def _pause(self, *turns: int) -> None:
        for _ in range(self._random.choice(turns)):
            await asyncio.sleep(0)

    def calm(self) -> None:
        self._refused = 0.0

    async def act(self) -> None:
        """Do something, sometime."""
        await self._pause(0, 1, 5, 20, 60)
        network = self._random.choice((NET, OTHER))
        known = network in {record.network.id for record in self.host.networks()}
        acts = self._everyday(network) if known or self._random.random() < 0.3 else self._beginnings(network)
        if known and self._random.random() < 0.1:
            acts = self._ends(network)
        work = asyncio.ensure_future(self._random.choice(acts)())  # type: ignore[arg-type]
        if self._refused and self._random.random() < 0.2:
            asyncio.get_running_loop().call_later(self._random.random() / 100, work.cancel)
        with suppress(Exception, asyncio.CancelledError):
            await work

    def _beginnings(self, network: str) -> list[Act]:
        number = (NET, OTHER).index(network)
        host, subnet, gateway = self.host, ip_network(f"10.{number}.0.0/24"), ip_address(f"10.{number}.0.1")

        async def in_our_pool() -> None:
            pool = await host.engine.pools.request("local", subnet, None, v6=False)
            await host.engine.pools.request_address(pool.id, gateway, Owner(OwnerKind.GATEWAY))
            made = NetworkSpec(network, subnets=(SubnetSpec(subnet, gateway),), front_end=FrontEnd.DOCKER)
            await host.engine.networks.create(made)

        return [
            in_our_pool,
            lambda: host.docker_network(network, str(subnet)),
            lambda: host.cli_network(str(subnet), ident=network, name=self._random.choice(("blue", "red"))),
            lambda: host.cli_network(f"fd00:{number}::/64", ident=network, name="red"),
        ]

    def _ends(self, network: str) -> list[Act]:
        networks, pools = self.host.engine.networks, self.host.engine.pools

        async def with_pool() -> None:
            await networks.delete(network, by=FrontEnd.DOCKER)
            await pools.release(f"local/10.{(NET, OTHER).index(network)}.0.0/24")

        return [with_pool, lambda: networks.delete(network, by=FrontEnd.CLI)]

    def _everyday(self, network: str) -> list[Act]:
        random, number = self._random, (NET, OTHER).index(network)
        engine, host, last = self.host.engine, self.host, random.choice((2, 3, 4))
        end, address = f"{number}{last}" * 32, IPv4Address(f"10.{number}.0.{last}")
        pool, netns, ifname = (
            f"local/10.{number}.0.0/24",
            random.choice(("ns1", "ns2")),
            random.choice(("eth0", "eth1")),
        )
        port = tcp(random.choice((8080, 8081, 0)))
        options = random.choice(({"rate": "8mbit"}, {"rate": ""}, {"sticky": "1h"}, {"sticky": ""}, {"dns": "off"}))
        more = SubnetSpec(ip_network(f"fd00:{number}9::/64"), v6=True)

        async def endpoint_in_our_pool() -> None:
            await engine.pools.request_address(pool, address, Owner(OwnerKind.PENDING))
            await host.docker_endpoint(end, f"{address}/24", network=network, ports=(port,))

        async def end_in_our_pool() -> None:
            await engine.endpoints.delete(network, end)
            await engine.pools.release_address(pool, address)

        return [
            endpoint_in_our_pool,
            end_in_our_pool,
            lambda: host.docker_endpoint(end, f"{address}/24", network=network, ports=(port,)),
            lambda: engine.endpoints.join(network, end, random.choice(BOXES)),
            lambda: engine.endpoints.leave(network, end),
            lambda: engine.endpoints.delete(network, end),
            lambda: engine.publishing.publish(network, end, random.choice((None, (port,)))),
            lambda: engine.publishing.unpublish(network, end),
            lambda: engine.added_ports.add(end, (tcp(random.choice((9000, 9001)), 90),)),
            lambda: engine.added_ports.remove(end, (tcp(9000, 90),)),
            lambda: host.attach(netns, network=network, name=netns, ports=(port,), ifname=ifname),
            lambda: engine.endpoints.detach(network, netns, ifname),
            lambda: engine.network_updates.update(
                network, NetworkChange(options, internal=random.choice((None, True, False)))
            ),
            lambda: engine.network_updates.update(network, NetworkChange(add=(more,))),
            lambda: engine.networks.name(network, random.choice(("blue", "red", "green"))),
            lambda: engine.endpoints.describe(network, end, Description("c" * 64, "web", details=True)),
            host.reconciler.repair,
            self._follow_mtu,
        ]

    async def _follow_mtu(self) -> None:
        await self.host.see(mtu=self._random.choice((1400, 1500)), uplink="eth0")
        await self.host.engine.convergence.all()


@pytest.mark.parametrize("troubled", [False, True], ids=["calm", "troubled"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_use_cases_at_once_leave_one_story(seed: int, *, troubled: bool) -> None:
    random, host = Random(seed), await Host.boot()  # noqa: S311 - to repeat it
    empty = host.dump()
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.inhabitants.update(BOXES)
    await host.see(gates=random.choice(((), ((4, "nft"), (6, "nft")))))
    users = Users(host, random, troubled=troubled)
    for _ in range(ROUNDS):
        await asyncio.gather(*(users.act() for _ in range(AT_ONCE)))
    users.calm()
    assert not host.engine.registry._locks
    assert not host.engine.registry.starting
    for _ in range(2):
        await host.reconciler.repair()
    names = [record.network.name for record in host.networks()]
    assert len(set(names)) == len(names)
    await _check(host)
    await host.reboot()
    await _check(host)
    await host.delete_all()
    await host.reconciler.repair()
    await _check(host)
    assert host.dump() == empty
    assert (await host.store.range(""))[0] == []
    await host.close()


async def _check(host: Host) -> None:
    """Check that all tell one story. A port that somebody else has got meanwhile is missed, rightly."""
    allocator = host.engine.allocator
    for pool in (it for it in allocator.pools() if not it.holds):
        for lease in list(allocator.leases(pool.id)):
            if not lease.owner.id:  # Docker's to release
                await allocator.release_address(pool.id, lease.address)
    missed = [it for it in await host.reconciler.diff() if it.object.startswith("port ")]
    assert all(IN_USE in it.what for it in missed)
    if not missed:
        await host.check()
