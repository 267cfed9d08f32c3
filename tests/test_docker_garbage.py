"""What Docker did away with while one of the two daemons was down goes; what it has, or is just making, stays."""

from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, Host, running, until

from netplug.docker import garbage
from netplug.docker.garbage import GarbageCollector
from netplug.drivers.steps import IPAddress
from netplug.engine.records import DockerView, EndpointRecord, FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.lease import Owner, OwnerKind

pytestmark = pytest.mark.usefixtures("quiet", "garbage_at_once")
LATER = "e3" * 32


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """A network of Docker's with two endpoints."""
    host = await Host.boot()
    await host.docker_network()
    await host.docker_endpoint()
    await host.docker_endpoint(NEXT, "10.1.0.3/24")
    yield host
    await host.close()


def ids(host: Host) -> set[str]:
    return {record.endpoint.id for record in host.endpoints()}


def docker(*views: DockerView | None) -> garbage.View:
    """Answer so, one after the other, and go on with the last."""
    left = list(views)

    async def view() -> DockerView | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return view


def has(*endpoints: str, networks: tuple[str, ...] = (NET,)) -> DockerView:
    return DockerView(frozenset(endpoints), frozenset(networks))


async def test_endpoints_that_docker_forgot_go_and_new_ones_stay(host: Host) -> None:
    them = GarbageCollector(host.engine, docker(None, None, has(NEXT)))
    suspects = them.suspects()
    await host.docker_endpoint(LATER, "10.1.0.33/24")  # made after the restart, and not yet in Docker's list
    await them.after_restart_of_docker(suspects)
    assert ids(host) == {NEXT, LATER}
    await host.check()


async def test_activation_begins_the_search(host: Host) -> None:
    await host.reboot(docker=docker(has(NEXT)))
    host.kernel.inhabitants.add("/run/docker/netns/1")
    async with running(host):
        host.reconciler.garbage.on_activate()
        await until(lambda: ids(host) == {NEXT})


async def test_session_ends_with_dockers_answer(host: Host) -> None:
    allocator = host.engine.allocator
    forgotten = await allocator.request_pool("local")
    await allocator.request_address(forgotten.id, owner=Owner(OwnerKind.PENDING))
    allocator.begin_session()
    them = GarbageCollector(host.engine, docker(has(END, NEXT)))
    await them.after_restart_of_docker(them.suspects())
    assert allocator.pool(forgotten.id) is None


@pytest.mark.parametrize("restarted", ["docker", "netplug"])
async def test_without_docker_the_dead_are_told_by_their_sandboxes(host: Host, restarted: str) -> None:
    await host.join(NEXT, "/run/docker/netns/2")
    host.kernel.inhabitants.add("/run/docker/netns/2")
    them = GarbageCollector(host.engine, None)
    await (them.after_restart_of_docker if restarted == "docker" else them.after_start)(them.suspects())
    assert ids(host) == {NEXT}


async def test_docker_that_stays_silent_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PATIENCE_S", 0.0)
    them = GarbageCollector(host.engine, docker(None))
    await host.join(NEXT, "/run/docker/netns/2")
    host.kernel.inhabitants.add("/run/docker/netns/2")
    await them.after_restart_of_docker(them.suspects())
    assert ids(host) == {NEXT}


async def test_container_removed_while_we_were_down_is_found_at_the_start(host: Host) -> None:
    them = GarbageCollector(host.engine, docker(has(NEXT)))
    await them.after_start(them.suspects())
    assert ids(host) == {NEXT}


async def test_container_that_docker_was_just_starting_is_spared(host: Host) -> None:
    them = GarbageCollector(host.engine, docker(has(NEXT), has(NEXT, END)))
    await them.after_start(them.suspects())
    assert ids(host) == {END, NEXT}


async def test_container_whose_removal_began_before_the_start_goes_when_docker_lists_it_no_more(host: Host) -> None:
    them = GarbageCollector(host.engine, docker(has(NEXT, END), has(NEXT)))
    await them.after_start(them.suspects())
    assert ids(host) == {NEXT}
    await host.check()


async def test_container_that_docker_lists_again_at_each_second_look_stays(host: Host) -> None:
    them = GarbageCollector(host.engine, docker(has(NEXT), has(NEXT, END), has(NEXT), has(NEXT, END), has(NEXT, END)))
    await them.after_start(them.suspects())
    assert ids(host) == {END, NEXT}


@pytest.mark.parametrize("again", [False, True])
async def test_address_goes_with_the_container_unless_it_was_requested_again(host: Host, *, again: bool) -> None:
    """Docker released it, and the request was lost."""
    allocator, address = host.engine.allocator, ip_address("10.9.0.7")
    pool = await allocator.request_pool("local", network=ip_network("10.9.0.0/24"))
    await allocator.request_address(pool.id, address=address, owner=Owner(OwnerKind.PENDING))
    listed, gone = (
        DockerView(frozenset({END, NEXT}), frozenset({NET}), frozenset({pool.network}), addresses)
        for addresses in (frozenset[IPAddress]({address}), frozenset[IPAddress]())
    )
    looks = iter((listed, gone, gone))

    async def view() -> DockerView:
        look = next(looks, gone)
        if again and look is gone and (lease := allocator.lease(pool.id, address)) in suspects.leases:
            await allocator.release_address(pool.id, address)
            await allocator.request_address(pool.id, address=address, owner=lease.owner)
        return look

    them = GarbageCollector(host.engine, view)
    suspects = them.suspects()
    await them.after_start(suspects)
    assert bool([*allocator.leases(pool.id)]) is again


async def test_request_without_a_body_begins_the_search(host: Host) -> None:
    looks, listed = 0, has(NEXT, END)

    async def view() -> DockerView:
        nonlocal looks
        looks += 1
        return listed

    await host.reboot(docker=view)
    async with running(host):
        await until(lambda: looks == 2)  # those of the start
        listed = has(NEXT)
        host.reconciler.garbage.on_lost_request()
        await until(lambda: ids(host) == {NEXT})


@pytest.mark.parametrize("claimed", [True, False])
async def test_network_that_docker_has_no_more_goes_if_it_was_its_own(host: Host, *, claimed: bool) -> None:
    if claimed:
        await host.engine.networks.name(NET, "blue")
    them = GarbageCollector(host.engine, docker(has(networks=())))
    await them.after_start(them.suspects())
    assert bool(host.networks()) is not claimed
    await host.check()


async def test_network_with_living_endpoints_stays_whatever_docker_says(host: Host) -> None:
    await host.engine.networks.name(NET, "blue")
    them = GarbageCollector(host.engine, docker(has(END, networks=())))
    await them.after_start(them.suspects())
    assert ids(host) == {END}
    assert host.networks()


@pytest.mark.parametrize("known", [True, False])
async def test_pools_and_addresses_that_docker_has_no_more_are_released(host: Host, *, known: bool) -> None:
    allocator = host.engine.allocator
    pool = await allocator.request_pool("local", network=ip_network("10.9.0.0/24"))
    lost = await allocator.request_pool("local", network=ip_network("10.10.0.0/24"))
    wanted: set[IPAddress] = {ip_address("10.9.0.7")}
    await allocator.request_address(pool.id, address=ip_address("10.9.0.7"), owner=Owner(OwnerKind.PENDING))
    await allocator.request_address(pool.id, address=ip_address("10.9.0.8"), owner=Owner(OwnerKind.PENDING))
    subnets = {pool.network, lost.network} if known else {pool.network}
    view = DockerView(frozenset({END, NEXT}), frozenset({NET}), frozenset(subnets), frozenset(wanted))
    them = GarbageCollector(host.engine, docker(view))
    suspects = them.suspects()
    await allocator.request_address(pool.id, address=ip_address("10.9.0.9"), owner=Owner(OwnerKind.PENDING))
    await them.after_start(suspects)
    assert {str(lease.address) for lease in allocator.leases(pool.id)} == {"10.9.0.7", "10.9.0.9"}
    assert (allocator.pool(lost.id) is not None) is known


async def test_addresses_of_dead_endpoints_are_released_after_a_failure_too(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator = host.engine.allocator
    pool = await allocator.request_pool("local", network=ip_network("10.9.0.0/24"))
    await host.engine.networks.create(
        NetworkSpec(LATER, subnets=(SubnetSpec(pool.network),), front_end=FrontEnd.DOCKER)
    )
    await host.docker_endpoint("a1" * 32, "10.9.0.7/24", network=LATER)
    await host.docker_endpoint("b2" * 32, "10.9.0.8/24", network=LATER)
    them = GarbageCollector(host.engine, docker(has(END, NEXT, networks=(NET, LATER))))
    suspects = them.suspects()
    left = host.engine.endpoints.listener.left

    async def refuse(record: EndpointRecord) -> None:
        if len(ids(host)) == 3:
            raise OSError("not now")
        await left(record)

    with monkeypatch.context() as patch:
        patch.setattr(host.engine.endpoints.listener, "left", refuse)
        with pytest.raises(OSError, match="not now"):
            await them.after_start(suspects)
    await them.after_start(suspects)
    assert ids(host) == {END, NEXT}
    assert [lease for lease in allocator.leases(pool.id) if lease.owner.kind is OwnerKind.PENDING] == []
