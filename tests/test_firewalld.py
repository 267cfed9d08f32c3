"""firewalld: the zone of our links, and what is said of it."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from built_in_drivers import DRIVERS
from engine_host import NET, OTHER, Host
from structlog.testing import capture_logs

from netplug.drivers import firewalld
from netplug.drivers.api import Firewalld, HostFacts, LinkFacts, Network
from netplug.drivers.options import NetworkOptions
from netplug.drivers.plan import Plan
from netplug.drivers.zones import Zone
from netplug.engine.firewalld import blocked
from netplug.engine.records import FrontEnd
from netplug.errors import NetplugError

OURS = (("np-+", "netplug"),)
TRUSTED = frozenset({"np-+"})


async def zones(host: Host) -> tuple[tuple[str, str], ...]:
    found = (await host.kernel.facts()).firewalld
    assert found
    return found.zones


def port(name: str, bridge: str = "br7") -> LinkFacts:
    return LinkFacts(name, "veth", master=bridge)


# Plans


def test_links_of_ours_need_one_step_where_firewalld_runs() -> None:
    assert firewalld.base(HostFacts()) == Plan()
    assert firewalld.base(HostFacts(firewalld=Firewalld())) == Plan((Zone("np-+"),))
    assert firewalld.network("np-0123456789ab", HostFacts()) == Plan()


def test_bridge_of_the_user_needs_a_step_of_its_own() -> None:
    ours = HostFacts(links=(LinkFacts("br7", "bridge"), port("nph1"), port("npv1"), port("eth1", "br8")))
    assert firewalld.network("br7", HostFacts()) == firewalld.network("br7", ours) == Plan((Zone("br7"),))


def test_bridge_with_ports_of_others_keeps_its_zone() -> None:
    assert firewalld.network("br7", HostFacts(links=(port("nph1"), port("eth1")))) == Plan()


@pytest.mark.parametrize(("link", "zone"), [("br7", "dmz"), ("np-1", "netplug"), ("np-+", "netplug"), ("np-9", "work")])
def test_zone_of_a_link(link: str, zone: str) -> None:
    found = Firewalld((("br7", "dmz"), ("np-+", "netplug"), ("np-9", "work")))
    assert (found.zone(link), found.zone("br70")) == (zone, "")


# On a host


async def test_zone_comes_with_the_first_network_and_goes_with_the_last() -> None:
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    await host.cli_network()
    await host.cli_network(ident=OTHER, name="mine", bridge="br7")
    assert await zones(host) == (("br7", "netplug"), ("np-+", "netplug"))
    assert await host.reconciler.diff() == []
    await host.engine.networks.take_down(OTHER, by=FrontEnd.CLI)
    assert await zones(host) == OURS
    await host.engine.networks.take_down(NET, by=FrontEnd.CLI)
    assert await zones(host) == ()
    await host.close()


@pytest.mark.usefixtures("quiet")
async def test_zone_follows_a_firewalld_that_starts_later_or_forgets() -> None:
    host = await Host.boot()
    await host.cli_network()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    await host.reconciler.repair()
    assert await zones(host) == OURS
    host.kernel.lose("zone/np-+")
    assert [(it.object, it.what) for it in await host.reconciler.diff()] == [("zone/np-+", "missing")]
    await host.reconciler.repair()
    assert await zones(host) == OURS
    host.kernel.foreign.facts = HostFacts()  # stopped
    assert await host.reconciler.diff() == []
    await host.close()


@pytest.mark.usefixtures("quiet")
async def test_zone_stays_while_firewalld_reloads() -> None:
    """Its rules look then as if there were none; our zone may need a reload itself, during which others look."""
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    await host.cli_network()
    await host.cli_network(ident=OTHER, name="mine", bridge="br7")
    host.kernel.foreign.facts = HostFacts()
    await host.engine.base_plan.read_host()
    await host.engine.base_plan.trim(host.engine.registry.all_networks)
    await host.reconciler.repair()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    assert await zones(host) == (("br7", "netplug"), ("np-+", "netplug"))
    for net in (OTHER, NET):
        await host.engine.networks.take_down(net, by=FrontEnd.CLI)
    assert await zones(host) == ()
    await host.close()


async def test_zone_of_the_administrator_stays() -> None:
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld((("np-+", "trusted"),), trusted=TRUSTED))
    await host.cli_network()
    assert await zones(host) == (("np-+", "trusted"),)
    assert await host.reconciler.diff() == []
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld((("np-+", "public"),)))
    (found,) = await host.reconciler.diff()
    assert (found.owner, found.object) == ("host", "firewalld")
    assert found.what == "has link np-+ in zone 'public', and drops packets from it that this zone does not accept"
    await host.close()


async def test_firewalld_that_cannot_be_asked_is_shown_with_the_command_that_helps() -> None:
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    host.kernel.foreign.lacks.add("message bus")
    assert await host.reconciler.diff() == []  # there is no network that it could harm
    await host.cli_network()
    (found,) = await host.reconciler.diff()
    assert (found.owner, found.object) == ("host", "zone/np-+")
    command = "firewall-cmd --permanent --zone=trusted --add-interface=np-+ && firewall-cmd --reload"
    assert found.what == f"missing: there is no message bus: {command}"
    await host.close()


async def test_network_whose_link_firewalld_refuses_is_not_created() -> None:
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    before = host.kernel.dump()
    host.kernel.fail_at("zone/np-+")
    with capture_logs(), pytest.raises(NetplugError):
        await host.cli_network()
    assert host.kernel.dump() == before
    assert host.engine.base_plan.plan == Plan()
    await host.close()


# What is the administrator's to decide


def test_bridge_with_ports_of_others_is_shown_with_the_command_that_helps() -> None:
    host = HostFacts(firewalld=Firewalld(OURS, trusted=TRUSTED), links=(port("eth1"),))
    mine = Network(NET, "mine", options=NetworkOptions(mode="bridge", bridge="br7"))
    (found,) = blocked(host, [mine], DRIVERS)
    assert found.what.startswith("has no zone for bridge br7, and drops packets from it; it has ports of others")
    assert "--zone=trusted --add-interface=br7 && firewall-cmd --reload" in found.what
    chosen = Firewalld((*OURS, ("br7", "trusted")), trusted=TRUSTED | {"br7"})
    assert not blocked(HostFacts(firewalld=chosen, links=host.links), [mine], DRIVERS)


def test_firewalld_that_drops_what_tunnels_bring_is_shown() -> None:
    overlay = Network(NET, "blue", options=NetworkOptions(mode="overlay"))
    host = HostFacts(vtep=ip_address("192.0.2.1"), addresses=((ip_interface("192.0.2.1/24"), "eth1"),))

    def said(zones: tuple[tuple[str, str], ...], ports: frozenset[int] = frozenset(), *trusted: str) -> list[str]:
        found = Firewalld((*OURS, *zones), ports, TRUSTED.union(trusted))
        return [it.what for it in blocked(replace(host, firewalld=found), [overlay], DRIVERS)]

    words = "drops packets from other hosts of overlays: firewall-cmd --permanent"
    assert said(()) == [f"{words} --add-port=4789/udp && firewall-cmd --reload"]
    in_work = [f"{words} --zone=work --add-port=4789/udp && firewall-cmd --reload"]
    assert said((("eth1", "work"),)) == said((("eth+", "work"),)) == in_work
    # Docker's bridges are in such a zone.
    assert said((("docker0", "docker"), ("eth1", "work")), frozenset(), "docker0") == in_work
    assert said((), frozenset({4789})) == []
    assert said((("eth+", "lan"),), frozenset(), "eth+") == []
    assert said((), frozenset(), "") == []
