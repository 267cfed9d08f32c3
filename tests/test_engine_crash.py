"""The process dies between any two changes of kernel and store; the next life finds one story, and can end it."""

from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest
from engine_host import END, NET, NEXT, OTHER, SANDBOX, Act, Died, Fuse, Host, set_up, tcp, udp

from netplug.drivers.api import HostFacts
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.ipam.lease import Owner, OwnerKind
from netplug.kernel.fake.kernel import FakeKernel

pytestmark = [pytest.mark.matrix, pytest.mark.usefixtures("quiet")]
PORTS = (tcp(8080), udp(53))


async def network(host: Host) -> object:
    return await host.docker_network()


async def endpoint(host: Host) -> object:
    return await host.docker_endpoint(ports=PORTS)


async def join(host: Host) -> object:
    return await host.join()


async def publish(host: Host) -> object:
    return await host.publish()


async def publish_others(host: Host) -> object:
    return await host.publish(END, tcp(9090))


async def add_ports(host: Host) -> object:
    return await host.engine.added_ports.add(END, (tcp(9000, 90), tcp(9001, 91), udp(9053)))


async def remove_ports(host: Host) -> object:
    return await host.engine.added_ports.remove(END, (tcp(9000, 90), udp(9053)))


async def attach_another(host: Host) -> object:
    return await host.attach("ns7", ports=(tcp(7000), tcp(7001, 81)), addresses=(ip_address("10.1.0.9"),))


async def bind_elsewhere(host: Host) -> object:
    """Change the default host address of a network, and then its ports."""
    record = host.engine.registry.network(NET)
    options = replace(record.network.options, host_binding_ipv4=ip_address("127.0.0.1"))
    await host.engine.registry.save(replace(record, network=replace(record.network, options=options)))
    return await host.engine.publishing.converge(NET)


async def unpublish(host: Host) -> object:
    return await host.engine.publishing.unpublish(NET, END)


async def leave(host: Host) -> object:
    return await host.engine.endpoints.leave(NET, END)


async def delete(host: Host) -> object:
    return await host.engine.endpoints.delete(NET, END)


async def delete_network(host: Host) -> object:
    return await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)


async def supersede(host: Host) -> object:
    return await host.docker_endpoint(NEXT)


async def pool_of_docker(host: Host) -> object:
    """Do what Docker does first when we are its IPAM driver."""
    pool = await host.engine.allocator.request_pool("local", network=ip_network("10.208.0.0/24"))
    return await host.engine.allocator.request_address(
        pool.id, address=ip_address("10.208.0.1"), owner=Owner(OwnerKind.GATEWAY)
    )


async def network_of_our_pool(host: Host) -> object:
    subnet = SubnetSpec(ip_network("10.208.0.0/24"), ip_address("10.208.0.1"))
    return await host.engine.networks.create(NetworkSpec(NET, subnets=(subnet,), front_end=FrontEnd.DOCKER))


async def address_of_docker(host: Host) -> object:
    return await host.engine.allocator.request_address(
        "local/10.208.0.0/24", address=ip_address("10.208.0.9"), owner=Owner(OwnerKind.PENDING)
    )


async def endpoint_of_our_pool(host: Host) -> object:
    return await host.docker_endpoint(END, "10.208.0.9/24")


async def cli_network(host: Host) -> object:
    return await host.cli_network()


async def dual_stack(host: Host) -> object:
    v4, v6 = SubnetSpec(aux=(("printer", ip_address("10.2.0.9")),), pool=ip_network("10.2.0.0/24")), SubnetSpec(v6=True)
    return await host.engine.networks.create(NetworkSpec(OTHER, "red", {}, (v4, v6)))


async def delete_dual_stack(host: Host) -> object:
    return await host.engine.networks.delete(OTHER, by=FrontEnd.CLI)


async def attach(host: Host) -> object:
    return await host.attach("ns1", ports=PORTS)


async def attach_dual_stack(host: Host) -> object:
    return await host.attach("ns1", network=OTHER, ports=PORTS)


async def detach(host: Host) -> object:
    return await host.engine.endpoints.detach(NET, "ns1", "eth0")


async def sticky_network(host: Host) -> object:
    return await host.cli_network("10.2.0.0/24", "fd00:2::/64", sticky="true")


async def attach_web(host: Host) -> object:
    return await host.attach("ns1", name="web", mac="02:42:0a:02:00:07")


async def attach_web_alone(host: Host) -> object:
    return await host.attach("ns1", name="web")


async def none_network(host: Host) -> object:
    return await host.engine.networks.create(NetworkSpec(NET, "blue", {"mode": "none"}))


async def attach_anew(host: Host) -> object:
    """Attach a namespace that died and whose name came again."""
    host.kernel.vanish("/run/netns/ns1")
    host.kernel._world.gone.clear()
    return await attach(host)


async def macvlan(host: Host) -> object:
    host.kernel.foreign.links["eth0"] = ""
    return await host.cli_network(
        "192.168.1.0/24", ident=NET, name="lan", mode="macvlan", parent="eth0", host_access="true"
    )


async def macvlan_of_docker(host: Host) -> object:
    host.kernel.foreign.links["eth0"] = ""
    return await host.docker_network(mode="macvlan", parent="eth0")


async def follow_mtu(host: Host) -> object:
    """Follow an uplink with another MTU."""
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.foreign.facts = HostFacts(mtu=1400, uplink="eth0")
    await host.engine.base_plan.read_host()
    return await host.engine.convergence.all()


async def change(host: Host) -> object:
    """Change options of a network that need steps to be added, altered and removed."""
    async with host.engine.registry.lock(NET):
        record = host.engine.registry.network(NET)
        options = replace(record.network.options, rate=(8_000_000, 8_000_000), mtu=1300, spoofchk=False, icc=False)
        return await host.engine.convergence.change(replace(record, network=replace(record.network, options=options)))


async def update(host: Host) -> object:
    """Change a network as a user does; what follows for its ports and sandboxes too."""
    wanted = NetworkChange({"rate": "8mbit", "icc": "false", "dns": "off"}, internal=True, labels={"team": "net"})
    return await host.engine.network_updates.update(NET, wanted)


async def update_back(host: Host) -> object:
    return await host.engine.network_updates.update(NET, NetworkChange({"rate": ""}, internal=False))


async def update_subnets(host: Host) -> object:
    (there,) = host.engine.registry.network(NET).network.subnets
    wanted = (SubnetSpec(ip_network("10.9.0.0/24")), SubnetSpec(ip_network("fd00:9::/64"), v6=True))
    change = NetworkChange({"sticky": "1h"}, add=wanted, remove=(there.pool,))
    return await host.engine.network_updates.update(NET, change)


@dataclass(frozen=True)
class Case:
    """`given` was done, then `act` dies. `between`: it may be found half done, in a way that a user understands."""

    given: tuple[Act, ...]
    act: Act
    between: bool = False


CASES = {
    "network of Docker's": Case((), network),
    "network of Docker's in our pool": Case((pool_of_docker,), network_of_our_pool),
    "network of the CLI": Case((), cli_network),
    "dual stack beside IPv4": Case((cli_network,), dual_stack),
    "endpoint": Case((network,), endpoint),
    "endpoint in our pool": Case((pool_of_docker, network_of_our_pool, address_of_docker), endpoint_of_our_pool),
    "endpoint in another's place": Case((network, endpoint, join, publish), supersede, between=True),
    "join": Case((network, endpoint), join),
    "publish": Case((network, endpoint, join), publish),
    "publish others": Case((network, endpoint, join, publish), publish_others, between=True),
    "unpublish": Case((network, endpoint, join, publish), unpublish),
    "add ports": Case((network, endpoint, join, publish), add_ports),
    "remove added ports": Case((network, endpoint, join, publish, add_ports), remove_ports),
    "publish beside added ports": Case((network, endpoint, join, add_ports), publish),
    "unpublish beside added ports": Case((network, endpoint, join, publish, add_ports), unpublish),
    "leave with added ports": Case((network, endpoint, join, publish, add_ports), leave),
    "join again with added ports": Case((network, endpoint, join, publish, add_ports, leave), join),
    "publish elsewhere": Case((network, endpoint, join, publish, add_ports), bind_elsewhere),
    "publish two elsewhere": Case((network, attach_another, endpoint, join, publish, add_ports), bind_elsewhere),
    "leave": Case((network, endpoint, join, publish), leave),
    "join again": Case((network, endpoint, join, publish, leave), join),
    "delete joined endpoint": Case((network, endpoint, join, publish), delete),
    "delete endpoint that left": Case((network, endpoint, join, leave), delete),
    "delete endpoint in our pool": Case(
        (pool_of_docker, network_of_our_pool, address_of_docker, endpoint_of_our_pool, join), delete
    ),
    "delete network": Case((network,), delete_network),
    "delete network in our pool": Case((pool_of_docker, network_of_our_pool), delete_network),
    "delete network with an endpoint": Case((network, endpoint, join, publish), delete_network, between=True),
    "delete dual stack beside IPv4": Case((cli_network, dual_stack), delete_dual_stack),
    "attach": Case((cli_network,), attach),
    "attach to dual stack": Case((dual_stack,), attach_dual_stack),
    "attach in place of the dead": Case((cli_network, attach), attach_anew, between=True),
    "detach": Case((cli_network, attach), detach),
    "macvlan network": Case((), macvlan),
    "attach to macvlan": Case((macvlan,), attach),
    "detach from macvlan": Case((macvlan, attach), detach),
    "join macvlan": Case((macvlan_of_docker, endpoint), join),
    "leave macvlan": Case((macvlan_of_docker, endpoint, join), leave),
    "join macvlan again": Case((macvlan_of_docker, endpoint, join, leave), join),
    "sticky network": Case((), sticky_network),
    "attach to sticky network": Case((sticky_network,), attach_web),
    "detach from sticky network": Case((sticky_network, attach_web), detach),
    "come back to sticky network": Case((sticky_network, attach_web, detach), attach_web),
    "follow the host": Case((network, endpoint, join, publish), follow_mtu),
    "follow the host in a namespace": Case((cli_network, attach), follow_mtu),
    "change": Case((network, endpoint, join, publish), change),
    "change beside a namespace": Case((cli_network, attach), change),
    "update": Case((network, endpoint, join, publish), update, between=True),
    "update back": Case((network, endpoint, join, publish, update), update_back, between=True),
    "update beside a namespace": Case((cli_network, attach), update, between=True),
    "update back beside a namespace": Case((cli_network, attach, update), update_back, between=True),
    "update subnets": Case((cli_network,), update_subnets, between=True),
    "attach to network without links": Case((none_network,), attach_web_alone),
}


SANDBOXES = {
    f"{name}-{'alive' if lives else 'dead'}": (case, lives)
    for name, case in CASES.items()
    for lives in ((False, True) if join in (*case.given, case.act) else (False,))
}
"""Each case with a sandbox that no process lives in; where an endpoint joins one, also with one that lives."""


@pytest.mark.parametrize(("case", "has_processes"), SANDBOXES.values(), ids=SANDBOXES)
async def test_death_in_the_middle_leaves_nothing_half(case: Case, *, has_processes: bool) -> None:
    kernel = FakeKernel()
    if has_processes:
        kernel.inhabitants.add(SANDBOX)
    empty = await Host.boot()
    given = await set_up(kernel, case.given)
    before = given.shape()
    after = (await _live_on(given, case)).shape()
    changes = 0
    while not await _die(given, case, changes, empty.dump(), {before, after}):
        changes += 1
    assert changes >= 1
    await given.close()
    await empty.close()


async def _live_on(given: Host, case: Case) -> Host:
    host = await given.clone()
    await case.act(host)
    await host.check()
    await host.reboot()
    await host.check()
    await host.close()
    return host


async def _die(given: Host, case: Case, changes: int, empty: list[str], allowed: set[object]) -> bool:
    """Let the process die after so many changes; True when it came to the end of what it did."""
    host = await given.copy()
    fuse = Fuse(changes)
    host.live(fuse)
    await _load(host)
    ended = False
    with suppress(Died):
        await case.act(host)
        ended = True
    await host.reboot()
    await host.check()
    if not case.between:
        assert host.shape() in allowed, f"after {changes} changes"
    await host.delete_all()
    await host.check()
    assert host.dump() == empty
    assert (await host.store.range(""))[0] == []
    await host.close()
    return ended


async def _load(host: Host) -> None:
    """Begin as a daemon does that has nothing to mend."""
    await host.engine.registry.load()
    await host.engine.allocator.load()
    await host.engine.base_plan.load()
