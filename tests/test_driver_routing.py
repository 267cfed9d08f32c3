"""Between which links the host forwards nothing, if netplug turned forwarding on."""

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from netplug.drivers import routing
from netplug.drivers.api import HostFacts, LinkFacts
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Element, Sysctl, Table
from netplug.drivers.tables import NETWORKS

LINKS = {
    "lo": LinkFacts("lo"),
    "eth0": LinkFacts("eth0"),
    "eth0.7": LinkFacts("eth0.7", "vlan"),
    "wlan0": LinkFacts("wlan0"),
    "tun0": LinkFacts("tun0", "tun"),
    "uplink": LinkFacts("uplink", "veth"),
    "br0": LinkFacts("br0", "bridge"),
    "eth1": LinkFacts("eth1", master="br0"),
    "vnet0": LinkFacts("vnet0", "tun", master="br0"),
    "docker0": LinkFacts("docker0", "bridge"),
    "veth123": LinkFacts("veth123", "veth", master="docker0"),
    "cali123": LinkFacts("cali123", "veth"),
    "ptp123": LinkFacts("ptp123", "veth"),
    "ve-box": LinkFacts("ve-box", "veth"),
    "kube-ipvs0": LinkFacts("kube-ipvs0", "dummy"),
    "np-3a5d5fd21a47": LinkFacts("np-3a5d5fd21a47", "bridge"),
    "npm3a5d5fd21a47": LinkFacts("npm3a5d5fd21a47", "macvlan"),
}
ADDRESSES = {
    "eth0": "192.0.2.1/24",
    "eth0.7": "198.51.100.1/24",
    "tun0": "10.8.0.2/32",
    "uplink": "203.0.113.1/30",
    "br0": "10.1.0.1/24",
    "docker0": "172.17.0.1/16",
    "ptp123": "10.22.0.1/32",
    "cali123": "169.254.7.7/16",
    "ve-box": "10.0.0.1/28",
    "kube-ipvs0": "10.96.0.1/32",
    "np-3a5d5fd21a47": "10.208.0.1/24",
    "npm3a5d5fd21a47": "10.209.0.1/24",
}
UPLINKS = {"eth0", "eth0.7", "tun0", "uplink", "br0"}
HOST = HostFacts(
    uplink="eth0",
    links=tuple(LINKS.values()),
    addresses=tuple((ip_interface(it), name) for name, it in ADDRESSES.items()),
    forwarding=(),
)


def strangers(plan: Plan, family: int = 4) -> set[str]:
    return {step.item for step in plan if isinstance(step, Element) and step.set == f"strangers{family}"}


def test_uplinks_are_strangers_and_what_engines_made_is_not() -> None:
    plan = routing.forwarding(4, HOST)
    assert strangers(plan) == UPLINKS
    assert [step.item for step in plan if isinstance(step, Element) and step.set == "bridged"] == ["br0 . br0"]
    assert plan.steps[-1] == Sysctl("net/ipv4/ip_forward", "1", "0"), "the last step: nothing is forwarded before"


def test_link_is_a_stranger_for_the_ip_version_that_it_has() -> None:
    six = replace(HOST, addresses=((ip_interface("2001:db8::1/64"), "wlan0"), (ip_interface("fe80::1/64"), "uplink")))
    assert strangers(routing.forwarding(6, six), 6) == {"eth0", "wlan0"}


@pytest.mark.parametrize(
    "facts",
    [
        {"forwarding": (4, 6)},
        {"forward_others": True},
        {"chains": ((4, "KUBE-FORWARD"),)},
        {"chains": ((4, "CNI-FORWARD"),)},
        {"tables": ((4, "kube-proxy"), (6, "kube-proxy"))},
    ],
    ids=["forwarded before", "asked for", "Kubernetes", "CNI plugins", "kube-proxy with nftables"],
)
def test_nothing_is_dropped_where_others_forward_between_uplinks(facts: dict[str, object]) -> None:
    assert strangers(routing.forwarding(4, replace(HOST, **facts))) == set()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "facts",
    [
        {"chains": ((4, "DOCKER-USER"), (4, "LIBVIRT_FWO"), (4, "NETAVARK_FORWARD"))},
        {"tables": ((4, "docker-bridges"), (4, "netavark"))},
        {"chains": ((6, "KUBE-FORWARD"),)},
    ],
)
def test_engine_that_forwards_for_its_own_links_changes_nothing(facts: dict[str, object]) -> None:
    assert strangers(routing.forwarding(4, replace(HOST, **facts))) == UPLINKS  # type: ignore[arg-type]


def test_hardened_host_takes_no_redirects_when_forwarding_is_off_again() -> None:
    hardened = replace(HOST, redirects=False)
    plan = routing.forwarding(4, hardened)
    redirects = Sysctl("net/ipv4/conf/all/accept_redirects", "0", "0")
    assert plan.steps[-2:] == (redirects, Sysctl("net/ipv4/ip_forward", "1", "0")), "it is restored last"
    # The kernel turned it off with forwarding.
    now = replace(HOST, forwarding=(4,), redirects=False)
    assert routing.facts_without(plan, now) == hardened
    assert routing.facts_without(routing.forwarding(4, HOST), now) == HOST


def test_stranger_that_is_none_any_more_is_let_pass() -> None:
    plan = routing.forwarding(4, HOST)
    assert not routing.former_strangers(plan, HOST)
    more = replace(HOST, links=(*HOST.links, LinkFacts("eth2")), addresses=(*HOST.addresses, HOST.addresses[0]))
    assert not routing.former_strangers(plan, more), "one more is no reason"
    gone = tuple(link for link in HOST.links if link.name != "tun0")
    assert routing.former_strangers(plan, replace(HOST, links=gone)) == {"tun0"}
    ports = tuple(link for link in HOST.links if link.name != "eth1")
    found = routing.former_strangers(plan, replace(HOST, links=ports))
    assert "br0" in found, "it has no ports but of virtual machines now"
    assert routing.former_strangers(plan, replace(HOST, chains=((4, "KUBE-FORWARD"),))) == UPLINKS


def test_table_stays_with_the_strangers_as_long_as_an_engine_needs_forwarding() -> None:
    table = Table("inet", "netplug", "")
    plan = Plan((table, Element(NETWORKS, "store_here", "2379"))) + routing.forwarding(4, HOST)
    assert not routing.needed_by_others(plan, HOST)
    docker = replace(HOST, chains=((4, "DOCKER-USER"),), forwarding=(4,))
    kept = routing.needed_by_others(Plan((table,)) + routing.forwarding(4, docker), docker)
    assert table not in kept.steps
    kept = routing.needed_by_others(plan, replace(HOST, chains=((4, "DOCKER-USER"),)))
    assert table in kept.steps
    assert strangers(kept) == UPLINKS
    assert not [step for step in kept if isinstance(step, Element) and step.set == "store_here"]
    kept = routing.needed_by_others(plan, replace(HOST, chains=((4, "KUBE-FORWARD"),)))
    assert [type(step) for step in kept] == [Sysctl]


def test_link_that_comes_after_the_last_network_is_a_stranger_too() -> None:
    plan = Plan((Table("inet", "netplug", ""),)) + routing.forwarding(4, HOST)
    more = (*HOST.links, LinkFacts("eth2"))
    addresses = (*HOST.addresses, (ip_interface("203.0.113.1/24"), "eth2"))
    later = replace(HOST, chains=((4, "DOCKER-USER"),), links=more, addresses=addresses)
    assert strangers(routing.needed_by_others(plan, later)) == UPLINKS | {"eth2"}
