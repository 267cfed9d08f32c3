"""What is wrong and no look at the kernel shows: there as long as it is reported, told once when it begins and ends."""

import pytest
from built_in_drivers import DRIVERS
from engine_host import NET, OTHER, Host
from structlog.testing import capture_logs

from netplug.drivers.api import Firewalld, HostFacts, Network
from netplug.drivers.options import NetworkOptions
from netplug.engine.conditions import Conditions, Difference
from netplug.engine.firewalld import blocked

TWIN = Difference("host b", "vtep", "has the address of this host, 192.0.2.1")
SMALL = Difference("network blue", "mtu", "host b has room for 1350 bytes, not for 1450")


def test_a_report_takes_the_place_of_what_its_source_reported_before() -> None:
    conditions = Conditions()
    conditions.report("vteps", [TWIN])
    conditions.report("mtu", [SMALL, SMALL])
    assert conditions.all() == [SMALL, TWIN]
    conditions.report("vteps", [])
    assert conditions.all() == [SMALL]


def test_the_log_says_once_when_something_begins_and_ends() -> None:
    conditions = Conditions()
    with capture_logs() as said:
        for found in ([TWIN], [TWIN], [], []):
            conditions.report("vteps", found)
    assert [(it["event"], it["owner"], it["what"]) for it in said] == [
        ("condition.found", TWIN.owner, TWIN.what),
        ("condition.over", TWIN.owner, TWIN.what),
    ]


@pytest.mark.usefixtures("quiet")
async def test_diff_shows_what_is_reported_and_repair_claims_nothing() -> None:
    host = await Host.boot()
    host.engine.conditions.report("vteps", [TWIN])
    assert await host.reconciler.diff() == [TWIN]
    assert await host.reconciler.repair() == []
    host.engine.conditions.report("vteps", [])
    assert await host.reconciler.diff() == []
    await host.close()


async def test_firewalld_in_the_way_is_shown_with_the_command_that_helps() -> None:
    host = await Host.boot()
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld())
    assert await host.reconciler.diff() == []  # there is no network that it could harm
    await host.cli_network()
    (found,) = await host.reconciler.diff()
    assert (found.owner, found.object) == ("host", "firewalld")
    command = "firewall-cmd --permanent --zone=trusted --add-interface=np-+ && firewall-cmd --reload"
    assert found.what == f"does not know the networks' links, and drops packets from them: {command}"
    host.kernel.foreign.facts = HostFacts(firewalld=Firewalld(frozenset({"np-"})))
    assert await host.reconciler.diff() == []
    await host.cli_network(ident=OTHER, name="mine", bridge="br7")
    (found,) = await host.reconciler.diff()
    assert "--zone=trusted --add-interface=br7 && firewall-cmd --reload" in found.what
    assert "np-" not in found.what
    host.kernel.foreign.facts = HostFacts()
    assert await host.reconciler.diff() == []
    await host.close()


def test_firewalld_that_drops_what_tunnels_bring_is_shown() -> None:
    overlay = Network(NET, "blue", options=NetworkOptions(mode="overlay"))
    links = frozenset({"np-"})
    (found,) = blocked(HostFacts(firewalld=Firewalld(links, trusted=links)), [overlay], DRIVERS)
    command = "firewall-cmd --permanent --add-port=4789/udp && firewall-cmd --reload"
    assert found.what == f"drops packets from other hosts of overlays: {command}"
    assert not blocked(HostFacts(firewalld=Firewalld(links, frozenset({4789}), links)), [overlay], DRIVERS)
    for whole in ("eth1", ""):  # the underlay may be what is trusted
        assert not blocked(HostFacts(firewalld=Firewalld(links, trusted=links | {whole})), [overlay], DRIVERS)
