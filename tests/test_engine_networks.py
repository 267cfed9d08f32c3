"""Use cases of networks on a fake kernel."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest
import pytest_asyncio
from engine_host import END, NET, NEXT, OTHER, Host, external
from kernel_calls import keeping

from netplug.drivers.api import HostFacts
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import Address, Bridge, Element, Gate, IPNetwork
from netplug.drivers.tables import NETWORKS
from netplug.engine.records import AttachSpec, FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.ipam.errors import IpamError
from netplug.ipam.lease import Owner, OwnerKind
from netplug.ipam.pool import EXTERNAL
from netplug.kernel.api import StepError

REFUSED = (NetplugError, DriverError, IpamError)
pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.check()
    await host.close()


def owners(host: Host) -> set[tuple[str, str, str]]:
    return {(str(lease.address), lease.owner.kind, lease.owner.id) for lease in host.leases()}


# Creating


async def test_network_of_docker_has_its_bridge_and_gateway(host: Host) -> None:
    record = await host.docker_network()
    (bridge,) = [step for step in record.plan if isinstance(step, Bridge)]
    assert (bridge.name, bridge.mtu, bridge.adopt) == ("np-" + NET[:12], 1500, False)
    assert Address("np-" + NET[:12], ip_interface("10.1.0.1/24")) in record.plan
    assert Element(NETWORKS, "home4", f"10.1.0.0/24 . np-{NET[:12]}") in record.plan
    assert owners(host) == {("10.1.0.1", "gateway", NET)}


async def test_pool_that_docker_asked_for_is_shared_with_the_network(host: Host) -> None:
    allocator = host.engine.allocator
    pool = await allocator.request_pool("local")
    gateway = await allocator.request_address(pool.id, owner=Owner(OwnerKind.GATEWAY))
    spec = NetworkSpec(NET, subnets=(SubnetSpec(pool.network, gateway.address),), front_end=FrontEnd.DOCKER)
    record = await host.engine.networks.create(spec)
    assert record.pools == (pool.id,)
    held = allocator.pool(pool.id)
    assert held is not None
    assert (held.holds, held.holders) == (1, (NET,))
    assert owners(host) == {(str(gateway.address), "gateway", NET)}
    await allocator.release_pool(pool.id)  # Docker's order: pool first, network then
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert allocator.pools() == ()


async def test_chosen_subnets_are_free_ones(host: Host) -> None:
    host.kernel.foreign.facts = HostFacts()
    host.kernel.foreign.addresses.add(("eth0", ip_interface("10.208.0.7/24")))
    first = (await host.cli_network()).network.subnets[0]
    second = (await host.cli_network(ident=OTHER, name="red")).network.subnets[0]
    assert (str(first.pool), str(second.pool)) == ("10.208.1.0/24", "10.208.2.0/24")
    assert str(first.gateway) == "10.208.1.1/24"


async def test_subnet_range_gateway_and_other_addresses_are_as_asked(host: Host) -> None:
    subnet = SubnetSpec(
        ip_network("10.3.0.0/24"),
        ip_address("10.3.0.254"),
        ip_network("10.3.0.64/28"),
        (("printer", ip_address("10.3.0.64")),),
    )
    await host.engine.networks.create(NetworkSpec(NET, "blue", subnets=(subnet,)))
    assert owners(host) == {("10.3.0.254", "gateway", NET), ("10.3.0.64", "aux", NET)}
    assert (await host.attach("ns1")).endpoint.addresses == (ip_interface("10.3.0.65/24"),)


async def test_both_families_and_several_subnets(host: Host) -> None:
    record = await host.cli_network("10.3.0.0/30", "10.4.0.0/24", "fd00:3::/64")
    assert record.network.families() == (4, 6)
    first = await host.attach("ns1")
    assert [str(address) for address in first.endpoint.addresses] == ["10.3.0.2/30", "fd00:3::2/64"]
    second = await host.attach("ns2")  # the first subnet is full
    assert [str(address) for address in second.endpoint.addresses] == ["10.4.0.2/24", "fd00:3::3/64"]


async def test_internal_network_masquerades_nothing(host: Host) -> None:
    spec = NetworkSpec(NET, "blue", subnets=(SubnetSpec(),), internal=True)
    await host.engine.networks.create(spec)
    assert not host.elements("masqueraded")
    assert {step.data for step in host.elements("from", "to", "between", "host")} == {
        "goto from_internal",
        "goto to_internal",
        "drop",
        "goto host_internal",
    }
    assert {step.item for step in host.elements("icc")} == {f"np-{NET[:12]} . np-{NET[:12]}"}


async def test_mode_none_touches_nothing(host: Host) -> None:
    empty = host.dump()
    await host.engine.networks.create(NetworkSpec(NET, "blue", {"mode": "none"}))
    assert host.dump() == empty
    await host.delete_all()


async def test_id_and_name_are_made_up_where_there_are_none(host: Host) -> None:
    record = await host.engine.networks.create(NetworkSpec(subnets=(SubnetSpec(),)))
    assert len(record.network.id) == 64
    assert record.network.name == record.network.id[:12]


async def test_mtu_is_the_uplinks_unless_given(host: Host) -> None:
    host.kernel.foreign.facts = HostFacts(mtu=1400)
    assert (await host.cli_network()).network.options.mtu == 1400
    assert (await host.cli_network(ident=OTHER, name="red", mtu="1300")).network.options.mtu == 1300


async def test_adopted_bridge_stays(host: Host) -> None:
    host.kernel.foreign.links["br0"] = "bridge"
    host.kernel.foreign.addresses.add(("br0", ip_interface("10.9.0.1/24")))
    record = await host.cli_network("10.9.0.0/24", bridge="br0")
    assert set(record.used) == {"link/br0", "address//br0/10.9.0.1/24"}
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert host.kernel.foreign.links["br0"] == "bridge"
    assert host.dump() == (await empty_dump())


async def empty_dump() -> list[str]:
    host = await Host.boot()
    try:
        return host.dump()
    finally:
        await host.close()


async def test_host_beside_containers_leaves_the_gateways_address_to_the_router(host: Host) -> None:
    host.kernel.foreign.links["eth0"] = ""
    subnet = SubnetSpec(ip_network("192.168.1.0/24"), ip_address("192.168.1.1"))
    options = {"mode": "macvlan", "parent": "eth0", "host_access": "true"}
    made = await host.engine.networks.create(NetworkSpec(NET, "lan", options, (subnet,)))
    (there,) = made.network.subnets
    assert (str(there.gateway), str(there.host)) == ("192.168.1.1/24", "192.168.1.2/24")


REFUSALS: dict[str, tuple[NetworkSpec, str]] = {
    "twin by id": (NetworkSpec(NET, "red", subnets=(SubnetSpec(),)), "exists already"),
    "twin by name": (NetworkSpec(OTHER, "blue", subnets=(SubnetSpec(),)), "'blue' exists already"),
    "twin by option": (NetworkSpec(OTHER, "red", {"name": "blue"}, (SubnetSpec(),)), "'blue' exists already"),
    "overlap": (NetworkSpec(OTHER, "red", subnets=(SubnetSpec(ip_network("10.1.0.128/25")),)), "network 'blue'"),
    "overlap with Docker's": (NetworkSpec(OTHER, "red", subnets=(external("10.1.0.0/16"),)), "network 'blue'"),
    "overlap with itself": (
        NetworkSpec(
            OTHER, "red", subnets=(SubnetSpec(ip_network("10.5.0.0/24")), SubnetSpec(ip_network("10.5.0.0/25")))
        ),
        "overlaps 10.5.0.0/24",
    ),
    "a route of the host": (NetworkSpec(OTHER, "red", subnets=(SubnetSpec(ip_network("192.0.2.0/24")),)), "'eth0'"),
    "unknown option": (NetworkSpec(OTHER, "red", {"colour": "red"}, (SubnetSpec(),)), "unknown option 'colour'"),
    "ill-formed option": (NetworkSpec(OTHER, "red", {"mtu": "many"}, (SubnetSpec(),)), "mtu='many'"),
    "unknown mode": (NetworkSpec(OTHER, "red", {"mode": "carrier"}, (SubnetSpec(),)), "carrier"),
    "bridge that is none": (NetworkSpec(OTHER, "red", {"bridge": "eth0"}, (SubnetSpec(),)), "bridge=eth0"),
    "bridge of another": (NetworkSpec(OTHER, "red", {"bridge": "np-" + NET[:12]}, (SubnetSpec(),)), "'blue'"),
    "gateway elsewhere": (
        NetworkSpec(OTHER, "red", subnets=(SubnetSpec(ip_network("10.5.0.0/24"), ip_address("10.6.0.1")),)),
        "10.6.0.1",
    ),
    "gateway twice": (
        NetworkSpec(
            OTHER,
            "red",
            subnets=(
                SubnetSpec(ip_network("10.5.0.0/24"), ip_address("10.5.0.1"), aux=(("x", ip_address("10.5.0.1")),)),
            ),
        ),
        "10.5.0.1",
    ),
    "unknown space": (NetworkSpec(OTHER, "red", subnets=(SubnetSpec(space="mars"),)), "mars"),
}


@pytest.mark.parametrize(("spec", "words"), REFUSALS.values(), ids=REFUSALS)
async def test_refused_network_changes_nothing(host: Host, spec: NetworkSpec, words: str) -> None:
    host.kernel.foreign.links["eth0"] = "veth"
    host.kernel.foreign.addresses.add(("eth0", ip_interface("192.0.2.7/25")))
    await host.cli_network("10.1.0.0/24")
    before = await host.state()
    with pytest.raises(REFUSED, match=words):
        await host.engine.networks.create(spec)
    assert await host.state() == before


@pytest.mark.parametrize("beside", [False, True], ids=["first", "beside another"])
async def test_failure_of_any_step_changes_nothing(host: Host, *, beside: bool) -> None:
    if beside:
        await host.cli_network(ident=OTHER, name="red")
    subnets = (SubnetSpec(ip_network("10.1.0.0/24")), SubnetSpec(ip_network("fd00:1::/64")))
    spec = NetworkSpec(NET, "blue", {"bridge": "br7"}, subnets)
    before = await host.state()
    await host.engine.networks.create(spec)
    keys = [step.key for step in (*host.engine.base_plan.plan, *host.endpoints(), *host.networks()[0].plan)]
    await host.engine.networks.delete(NET, by=FrontEnd.CLI)
    await host.delete_all()
    if beside:
        await host.cli_network(ident=OTHER, name="red")
    before = await host.state()
    there = {step.key for step in (*host.engine.base_plan.plan, *(s for n in host.networks() for s in n.plan))}
    for key in keys:
        if key in there:
            continue
        host.kernel.fail_at(key)
        with pytest.raises(NetplugError, match="because a test wants it"):
            await host.engine.networks.create(spec)
        host.kernel.heal()
        assert await host.state() == before, key
    await host.engine.networks.create(spec)


# Deleting and naming


async def test_who_made_a_network_may_delete_it(host: Host) -> None:
    await host.cli_network()
    await host.docker_network(OTHER, "10.7.0.0/24", name="red")
    before = await host.state()
    for name, by, words in (("blue", FrontEnd.DOCKER, "made by netplug"), ("red", FrontEnd.CLI, "made by docker")):
        with pytest.raises(NetplugError, match=words):
            await host.engine.networks.delete(name, by=by)
    assert await host.state() == before


async def test_cli_network_with_endpoints_stays(host: Host) -> None:
    await host.cli_network()
    await host.attach("ns1")
    before = await host.state()
    with pytest.raises(NetplugError, match="has an endpoint"):
        await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert await host.state() == before


async def test_network_of_docker_takes_its_endpoints_with_it(host: Host) -> None:
    empty = await host.state()
    await host.docker_network()
    await host.docker_endpoint()
    await host.docker_endpoint("e2" * 32, "10.1.0.3/24")
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert await host.state() == empty
    with pytest.raises(NetplugError, match="there is no network"):
        await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)


async def test_shared_plan_comes_with_the_first_and_goes_with_the_last(host: Host) -> None:
    empty = host.dump()
    await host.docker_network()
    base = host.engine.base_plan.plan
    assert base
    await host.cli_network("fd00:4::/64", ident=OTHER, name="red")
    both = host.engine.base_plan.plan
    assert set(both) > set(base)
    await host.engine.networks.delete(OTHER, by=FrontEnd.CLI)
    await host.check()
    assert host.engine.base_plan.plan == base
    await host.cli_network(ident=OTHER, name="red")
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert host.engine.base_plan.plan
    await host.engine.networks.delete(OTHER, by=FrontEnd.CLI)
    assert not host.engine.base_plan.plan
    assert host.dump() == empty


async def test_name_is_learned_unless_given_or_taken(host: Host) -> None:
    await host.docker_network()
    await host.docker_network(OTHER, "10.7.0.0/24", name="red")
    name = host.engine.networks.name
    await name(NET, "blue")
    await name(OTHER, "green")  # it was given
    await name("c3" * 32, "nobody")
    assert [record.network.name for record in host.networks()] == ["blue", "red"]
    await name(NET, "red")  # taken
    assert [record.network.name for record in host.networks()] == ["blue", "red"]
    await host.reboot()
    assert [record.network.name for record in host.networks()] == ["blue", "red"]


async def test_reference_is_an_id_a_name_or_the_beginning_of_an_id(host: Host) -> None:
    await host.cli_network(ident="ab" + NET[2:])
    await host.cli_network(ident="ac" + NET[2:], name="red")
    find = host.engine.registry.network
    assert find("blue") is find("ab" + NET[2:]) is find("ab")
    with pytest.raises(NetplugError, match="2 networks are called 'a'"):
        find("a")
    with pytest.raises(NetplugError, match="no network ''"):
        find("")


# At once


async def test_parallel_creates_of_twins_make_one(host: Host) -> None:
    specs = [NetworkSpec(f"{n:02x}" * 32, "blue", subnets=(SubnetSpec(),)) for n in range(6)]
    made = await asyncio.gather(*(host.engine.networks.create(spec) for spec in specs), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in made) == 1


async def test_parallel_creates_and_deletes_keep_order(host: Host) -> None:
    empty = await host.state()

    async def live(number: int) -> None:
        ident = f"{number:02x}" * 32
        spec = NetworkSpec(ident, f"net{number}", subnets=(SubnetSpec(v6=bool(number % 2)),))
        for _ in range(3):
            await host.engine.networks.create(spec)
            record = await host.engine.endpoints.attach(AttachSpec(ident, f"ns{number}"))
            assert record.endpoint.addresses
            await host.engine.endpoints.detach(ident, f"ns{number}", "eth0")
            await host.engine.networks.delete(ident, by=FrontEnd.CLI)

    await asyncio.gather(*map(live, range(6)))
    assert await host.state() == empty
    assert not host.engine.registry._locks


async def test_a_refused_network_leaves_no_lock(host: Host) -> None:
    with pytest.raises(REFUSED):
        await host.engine.networks.create(NetworkSpec(NET, "blue", subnets=(SubnetSpec(space="mars"),)))
    assert not host.engine.registry._locks


async def test_what_cannot_be_cleared_away_changes_no_outcome(host: Host) -> None:
    """A user's rule leads to a chain of ours: it stays, and goes later; creating and deleting are what they are."""
    gate = Gate(4, "nft")
    await host.see(gates=((4, "nft"),))
    with keeping(host.kernel, gate):
        await host.cli_network()
        await host.engine.networks.delete("blue", by=FrontEnd.CLI)
        assert list(host.engine.base_plan.plan) == [gate]
        assert await host.reconciler.diff() == []
        host.kernel.foreign.addresses.add(("eth0", ip_interface("10.9.0.7/24")))
        with pytest.raises(DriverError, match="contains the host's own address"):
            await host.cli_network("10.9.0.0/24")
        await host.cli_network()
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert not host.engine.base_plan.plan


async def test_refusal_is_the_kernels_and_leaves_nothing(host: Host) -> None:
    """As without libnftables: the step is refused, and so would its removal be."""
    empty = [line for line in host.dump() if not line.startswith("sysctl")]
    host.kernel.fail_at(f"table/{NETWORKS}")
    with pytest.raises(StepError, match=NETWORKS):
        await host.cli_network()
    assert [line for line in host.dump() if not line.startswith("sysctl")] == empty
    assert await host.reconciler.diff() == []


async def test_containers_are_kept_away_from_the_store_that_hosts_share(host: Host) -> None:
    refused = {Element(NETWORKS, "store4", "203.0.113.5 . 2379"), Element(NETWORKS, "store_here", "2479")}
    await host.engine.base_plan.keep_away([(ip_address("203.0.113.5"), 2379), (ip_address("127.0.0.1"), 2479)])
    await host.cli_network()
    assert set(host.elements("store4", "store6", "store_here")) == refused
    # Whoever works without a daemon was told nothing of it.
    await host.reboot()
    assert host.engine.base_plan.store == ((ip_address("203.0.113.5"), 2379), (ip_address("127.0.0.1"), 2479))
    await host.cli_network(ident=OTHER, name="red")
    assert set(host.elements("store4", "store6", "store_here")) == refused
    await host.engine.base_plan.keep_away([])
    await host.reboot()
    assert await host.reconciler.diff() == []
    assert not host.elements("store4", "store6", "store_here")


async def test_network_that_docker_removes_stays_for_those_who_are_not_dockers(host: Host) -> None:
    await host.docker_network()
    await host.docker_endpoint()
    await host.attach("ns1")
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    (record,) = host.networks()
    (left,) = host.endpoints()
    assert (record.front_end, left.sandbox) == (FrontEnd.CLI, "/run/netns/ns1")
    await host.reboot()
    await host.check()
    with pytest.raises(NetplugError, match="has an endpoint"):
        await host.engine.networks.delete(NET, by=FrontEnd.CLI)
    await host.engine.endpoints.detach(NET, "ns1", "eth0")
    await host.engine.networks.delete(NET, by=FrontEnd.CLI)
    assert host.networks() == []
    await host.check()


async def test_networks_of_one_lan_have_ranges_of_their_own(host: Host) -> None:
    lan = ip_network("192.168.1.0/24")
    lower, upper = lan.subnets()
    host.kernel.foreign.links |= {"eth1": "", "eth2": ""}

    def spec(name: str, parent: str, part: IPNetwork | None) -> NetworkSpec:
        subnet = SubnetSpec(lan, ip_address("192.168.1.1"), part)
        return NetworkSpec(name=name, options={"mode": "macvlan", "parent": parent}, subnets=(subnet,))

    create = host.engine.networks.create
    await create(spec("one", "eth1", lower))
    await create(spec("two", "eth2", upper))
    for part in (None, lower, ip_network("192.168.1.192/26")):
        with pytest.raises((IpamError, NetplugError), match=r"give each network of a LAN an --ip-range of its own"):
            await create(spec("three", "eth2", part))
    with pytest.raises(NetplugError, match=r"overlaps 192\.168\.1\.0/24 of network 'one'"):
        await create(NetworkSpec(name="four", subnets=(SubnetSpec(lan, range=ip_network("192.168.1.64/26")),)))
    first = await host.attach("ns1", network="one")
    second = await host.attach("ns2", network="two")
    assert first.endpoint.addresses[0].ip in lower
    assert second.endpoint.addresses[0].ip in upper
    with pytest.raises(IpamError, match="is in the range of another network of subnet"):
        await host.attach("ns3", network="one", addresses=(upper[9],))
    for name, netns in (("one", "ns1"), ("two", "ns2")):
        await host.engine.endpoints.detach(name, netns, "eth0")
        await host.engine.networks.delete(name, by=FrontEnd.CLI)
    assert host.leases() == []
    await create(NetworkSpec(name="four", subnets=(SubnetSpec(lan),)))


async def test_networks_of_one_lan_share_what_dockers_ipam_gives_out(host: Host) -> None:
    """Docker tells a driver no --ip-range, and gives no address of a subnet twice."""
    lan, router = ip_network("192.168.1.0/24"), ip_address("192.168.1.1")
    host.kernel.foreign.links |= {"eth1": "", "eth2": ""}

    def spec(name: str, **options: str) -> NetworkSpec:
        subnet = SubnetSpec(lan, router, space=EXTERNAL)
        return NetworkSpec(id=name * 64, options=options | {"name": name}, subnets=(subnet,), front_end=FrontEnd.DOCKER)

    create = host.engine.networks.create
    await create(spec("a", mode="macvlan", parent="eth1"))
    await create(spec("b", mode="macvlan", parent="eth2"))
    with pytest.raises(NetplugError, match=r"overlaps 192\.168\.1\.0/24 of network 'a'"):
        await create(spec("c", mode="bridge"))
    await host.docker_endpoint(END, "192.168.1.9/24", network="a" * 64)
    with pytest.raises(IpamError, match=r"192\.168\.1\.1 .*is leased"):
        await host.docker_endpoint(NEXT, "192.168.1.1/24", network="b" * 64)
    await host.engine.networks.delete("a", by=FrontEnd.DOCKER)
    # The router is still the other's, after our restart too.
    await host.reboot()
    with pytest.raises(IpamError, match=r"192\.168\.1\.1 .*is leased"):
        await host.docker_endpoint(NEXT, "192.168.1.1/24", network="b" * 64)
    await host.check()
    await host.engine.networks.delete("b", by=FrontEnd.DOCKER)
    assert host.leases() == []
    await host.check()
