"""Addresses that Docker requested of netplug's IPAM: nobody else gets one before Docker releases it."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from engine_host import END, NET, NEXT, SANDBOX, Act, Died, Fuse, Host, set_up

from netplug.engine.records import EndpointSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.kernel.fake.kernel import FakeKernel

pytestmark = pytest.mark.usefixtures("quiet")
POOL, ADDRESS = "local/10.208.0.0/24", ip_address("10.208.0.9")


async def network(host: Host) -> None:
    allocator, gateway = host.engine.allocator, ip_address("10.208.0.1")
    await allocator.request_pool("local", network=ip_network("10.208.0.0/24"))
    await allocator.request_address(POOL, address=gateway, owner=Owner(OwnerKind.GATEWAY))
    subnet = SubnetSpec(ip_network("10.208.0.0/24"), gateway)
    await host.engine.networks.create(NetworkSpec(NET, subnets=(subnet,), front_end=FrontEnd.DOCKER))


async def address(host: Host) -> None:
    await host.engine.allocator.request_address(POOL, address=ADDRESS, owner=Owner(OwnerKind.PENDING, name="web"))


async def endpoint(host: Host) -> None:
    await host.docker_endpoint(END, f"{ADDRESS}/24")


async def join(host: Host) -> None:
    await host.join()


async def delete(host: Host) -> None:
    await host.engine.endpoints.delete(NET, END)


async def attach(host: Host) -> None:
    await host.attach("ns1", addresses=(ADDRESS,))


async def detach(host: Host) -> None:
    await host.engine.endpoints.detach(NET, "ns1", "eth0")


async def survives(host: Host, changes: int, act: Act) -> bool:
    """Act in a process that dies after so many changes, and return whether it came to the end."""
    host.live(Fuse(changes))
    await host.engine.registry.load()
    await host.engine.allocator.load()
    await host.engine.base_plan.load()
    try:
        await act(host)
    except Died:
        return False
    return True


def lease(host: Host) -> Lease | None:
    return host.engine.allocator.lease(POOL, ADDRESS)


def owner(host: Host) -> tuple[str, str] | None:
    found = lease(host)
    return (found.owner.kind, found.owner.id) if found else None


ENDED = {"create": ((network, address), endpoint), "delete": ((network, address, endpoint, join), delete)}


@pytest.mark.parametrize("case", ENDED.values(), ids=ENDED)
async def test_address_is_docker_s_wherever_the_process_dies(case: tuple[tuple[Act, ...], Act]) -> None:
    given, act = case
    kernel = FakeKernel()
    kernel.inhabitants.add(SANDBOX)
    host = await set_up(kernel, given)
    changes, ended, found = 0, False, set()
    while not ended:
        it = await host.clone()
        ended = await survives(it, changes, act)
        for _ in range(2):
            await it.reboot()
            await it.check()
            assert owner(it) in {("pending", ""), ("endpoint", END)}, f"after {changes} changes"
            with pytest.raises(IpamError, match=r"is leased to (docker|endpoint)"):
                await attach(it)
        found.add(owner(it))
        await it.engine.pools.release_address(POOL, ADDRESS)
        assert lease(it) is None
        await attach(it)
        await it.close()
        changes += 1
    assert len(found) == 2
    await host.close()


@pytest.mark.parametrize("changes", range(9))
async def test_address_that_docker_did_not_request_is_free_after_a_death(changes: int) -> None:
    host = await set_up(FakeKernel(), (network, attach))
    await survives(host, changes, detach)
    await host.reboot()
    await host.check()
    await detach(host) if owner(host) else None
    assert lease(host) is None
    await host.close()


async def test_address_stays_docker_s_if_the_endpoint_is_refused() -> None:
    host = await set_up(FakeKernel(), (network, address))

    class Refuses:
        async def joined(self, _: object) -> None:
            raise RuntimeError("no")

        async def left(self, _: object) -> None: ...

        async def settled(self, _: object) -> None: ...

    host.engine.endpoints.listener = Refuses()
    with pytest.raises(RuntimeError, match="no"):
        await endpoint(host)
    assert owner(host) == ("pending", "")
    await host.check()
    await host.close()


async def test_endpoint_keeps_an_address_that_was_released_while_it_was_built() -> None:
    """Docker lost patience, or netplug took the lease for an orphan: what is built has its address."""
    host = await set_up(FakeKernel(), (network, address))
    build, wanted = host.engine.journal.build, EndpointSpec(END, NET, (ip_interface(f"{ADDRESS}/24"),))

    async def slow(*args: object) -> object:
        await host.engine.pools.release_address(POOL, ADDRESS)
        return await build(*args)  # type: ignore[arg-type]

    host.engine.journal.build = slow  # type: ignore[method-assign,assignment]
    await host.engine.endpoints.create(wanted)
    assert owner(host) == ("endpoint", END)
    await host.check()
    # If somebody else has it by then, there is no endpoint.
    await host.engine.endpoints.delete(NET, END)

    async def slower(*args: object) -> object:
        found = await slow(*args)
        await host.engine.allocator.request_address(POOL, address=ADDRESS, owner=Owner(OwnerKind.PENDING))
        await host.engine.allocator.assign(POOL, ADDRESS, Owner(OwnerKind.AUX, NET, "printer"))
        return found

    host.engine.journal.build = slower  # type: ignore[method-assign,assignment]
    with pytest.raises(IpamError, match="is leased to aux printer"):
        await host.engine.endpoints.create(EndpointSpec(NEXT, NET, wanted.addresses))
    assert not host.endpoints()
    await host.close()
