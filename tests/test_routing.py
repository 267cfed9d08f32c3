"""Forwarding as a guest: on for ours alone, and as it was before once our last network is gone."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_interface

import pytest
import pytest_asyncio
from engine_host import NET, OTHER, Host

from netplug.drivers.api import HostFacts
from netplug.drivers.steps import Element, Table
from netplug.engine.records import FrontEnd

pytestmark = pytest.mark.usefixtures("quiet")
V4, V6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
ACCEPT_RA = "net/ipv6/conf/eth0/accept_ra"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """One that forwards nothing, and has its IPv6 default route from a router's advertisements."""
    it = await Host.boot()
    it.kernel.foreign.links |= {"eth0": "", "eth9": ""}
    it.kernel.foreign.addresses |= {
        (link, ip_interface(address))
        for link, number in (("eth0", 1), ("eth9", 9))
        for address in (f"192.0.{number}.1/24", f"2001:db8:{number}::1/64")
    }
    it.kernel.foreign.facts = HostFacts(forwarding=(), advertised=(("eth0", 1),))
    it.kernel._world.sysctls |= {V4: "0", V6: "0", ACCEPT_RA: "1"}
    yield it
    await it.close()


def settings(host: Host) -> tuple[str, str, str]:
    found = host.kernel._world.sysctls
    return found[V4], found[V6], found[ACCEPT_RA]


def present(host: Host, chain: str = "", table: str = "") -> None:
    """Let an engine of IPv4 be there, by its chain of iptables or its table of nft, or let it go."""
    host.kernel.foreign.facts = replace(
        host.kernel.foreign.facts, chains=((4, chain),) if chain else (), tables=((4, table),) if table else ()
    )


def guarded(host: Host, family: int) -> bool:
    """Return whether the host forwards nothing of others."""
    found = [step for step in host.kernel._world.state.values() if isinstance(step, Element)]
    links = {step.item for step in found if step.set == f"strangers{family}"}
    assert links in (set(), {"eth0", "eth9"})
    return bool(links)


async def make(host: Host, ident: str = NET, name: str = "blue", number: int = 3) -> None:
    await host.cli_network(f"10.{number}.0.0/24", f"fd00:{number}::/64", ident=ident, name=name)


async def test_forwarding_and_advertisements_are_as_before_when_the_last_network_is_gone(host: Host) -> None:
    await make(host)
    await make(host, OTHER, "red", 4)
    assert settings(host) == ("1", "1", "2")
    assert guarded(host, 4)
    assert guarded(host, 6)
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    await host.reconciler.repair()
    assert settings(host) == ("1", "1", "2")
    assert await host.reconciler.diff() == []
    await host.engine.networks.delete("red", by=FrontEnd.CLI)
    assert settings(host) == ("0", "0", "1")
    assert not host.engine.base_plan.plan


async def test_what_was_before_is_known_to_the_next_life(host: Host) -> None:
    await make(host)
    await host.reboot()
    assert await host.reconciler.diff() == []
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert settings(host) == ("0", "0", "1")


async def test_network_of_one_family_leaves_the_other_alone(host: Host) -> None:
    await host.cli_network("10.3.0.0/24")
    assert settings(host) == ("1", "0", "1")


async def test_host_that_forwards_goes_on_and_nothing_of_its_own_is_dropped(host: Host) -> None:
    host.kernel.foreign.facts = HostFacts(forwarding=(4, 6), advertised=(("eth0", 2),))
    host.kernel._world.sysctls |= {V4: "1", V6: "1", ACCEPT_RA: "2"}
    await make(host)
    assert not guarded(host, 4)
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert settings(host) == ("1", "1", "2")


async def test_forwarding_stays_for_an_engine_that_came_later_and_so_do_the_strangers(host: Host) -> None:
    await make(host)
    present(host, "DOCKER-USER")
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert settings(host) == ("1", "0", "1")
    assert guarded(host, 4)
    assert not guarded(host, 6)
    # Nobody else keeps it: what is lost is mended, at once and at a look.
    table = Table("inet", "netplug", "").key
    for heal in (host.engine.base_plan.hold, host.reconciler.repair):
        host.kernel.lose(table)
        assert not guarded(host, 4)
        assert await heal()
        assert guarded(host, 4)
    assert await host.reconciler.diff() == []
    # And it is known what was before, through networks and lives, until the engine is gone.
    await host.reboot()
    await make(host)
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert (settings(host)[0], guarded(host, 4)) == ("1", True)
    present(host)
    await host.reboot()
    assert settings(host) == ("0", "0", "1")
    assert not host.engine.base_plan.plan


@pytest.mark.parametrize("chain", ["DOCKER-USER", "LIBVIRT_FWO", "NETAVARK_FORWARD"])
async def test_engine_that_forwards_by_its_own_links_does_not_make_a_router_of_the_host(host: Host, chain: str) -> None:
    present(host, chain)
    await make(host)
    assert guarded(host, 4)
    assert guarded(host, 6)


@pytest.mark.parametrize("chain", ["CNI-FORWARD", "KUBE-FORWARD"])
async def test_engine_that_forwards_by_all_links_gets_through_and_for_its_own_family_alone(
    host: Host, chain: str
) -> None:
    await make(host)
    present(host, chain)
    await host.reconciler.repair()
    assert not guarded(host, 4)
    await make(host, OTHER, "red", 4)
    assert not guarded(host, 4)
    assert guarded(host, 6)
    assert settings(host) == ("1", "1", "2")
    for name in ("blue", "red"):
        await host.engine.networks.delete(name, by=FrontEnd.CLI)
    assert settings(host) == ("1", "0", "1")
    assert not guarded(host, 6)


@pytest.mark.parametrize("table", ["netavark", "docker-bridges"])
async def test_engine_with_rules_in_nftables_alone_keeps_forwarding_on(host: Host, table: str) -> None:
    await make(host)
    present(host, table=table)
    await host.reconciler.repair()
    assert (guarded(host, 4), guarded(host, 6)) == (True, True)
    assert await host.reconciler.diff() == []
    await host.engine.networks.delete("blue", by=FrontEnd.CLI)
    assert settings(host) == ("1", "0", "1")
    assert (guarded(host, 4), guarded(host, 6)) == (True, False)
    present(host)
    await host.reboot()
    assert settings(host) == ("0", "0", "1")


async def test_bridge_without_a_physical_port_is_no_stranger(host: Host) -> None:
    await make(host)
    host.kernel.foreign.links["cni0"] = "bridge"
    host.kernel.foreign.addresses.add(("cni0", ip_interface("10.77.0.1/24")))
    await host.reconciler.repair()
    assert guarded(host, 4)


async def test_host_may_forward_for_others_if_told_so(host: Host) -> None:
    await make(host)
    host.engine.base_plan.forward_others = True
    await host.reconciler.repair()
    assert (guarded(host, 4), guarded(host, 6)) == (False, False)
    assert settings(host) == ("1", "1", "2")
    assert await host.reconciler.diff() == []


async def test_link_that_is_gone_takes_what_was_set_of_it_along(host: Host) -> None:
    host.kernel.foreign.links["eth1"] = ""
    host.kernel.foreign.facts = HostFacts(forwarding=(), advertised=(("eth0", 1), ("eth1", 1)))
    other = ACCEPT_RA.replace("eth0", "eth1")
    host.kernel._world.sysctls[other] = "1"
    await make(host)
    del host.kernel.foreign.links["eth1"]
    await host.reconciler.repair()
    assert await host.reconciler.diff() == []
    await host.engine.base_plan.hold()
    assert all(step.key != f"sysctl/{other}" for step in host.engine.base_plan.plan)
    host.kernel.foreign.links["eth1"] = ""
    host.kernel._world.sysctls[other] = "1"
    await host.reconciler.repair()
    assert host.kernel._world.sysctls[other] == "2"
    del host.kernel.foreign.links["eth1"]
    await make(host, OTHER, "red", 4)  # before anybody looked
    assert await host.reconciler.diff() == []
    for name in ("blue", "red"):
        await host.engine.networks.delete(name, by=FrontEnd.CLI)
    assert settings(host) == ("0", "0", "1")
    assert not host.engine.base_plan.plan


async def test_host_that_forwarded_before_does_so_for_others_whoever_turns_it_off(host: Host) -> None:
    host.kernel.foreign.facts = HostFacts(forwarding=(4, 6))
    host.kernel._world.sysctls |= {V4: "1", V6: "1"}
    await make(host)
    before = host.dump()
    host.kernel._world.sysctls[V4] = "0"
    host.kernel.foreign.facts = HostFacts(forwarding=(6,))
    await host.reconciler.repair()
    assert host.dump() == before
    assert not guarded(host, 4)
