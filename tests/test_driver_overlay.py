from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from netplug.drivers.api import Endpoint, HostFacts, LinkFacts, Meshed, Network, Peer, Subnet
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import bridge_name, host_side, vxlan_name
from netplug.drivers.options import NetworkOptions
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.steps import Bridge, Element, Hook, Table, Veth
from netplug.drivers.tunnel import Fdb, Vxlan
from netplug.drivers.tunnel_tables import of_fast_path, of_peers

NET = Network(
    "3a5d" * 16,
    "blue",
    (Subnet(ip_network("10.208.0.0/24"), ip_interface("10.208.0.1/24")),),
    NetworkOptions(mode="overlay", mtu=1450, vni=4097),
)
SIX = Subnet(ip_network("fd00:208::/64"), ip_interface("fd00:208::1/64"))
PEER = Peer("b" * 64, "02:6e:0a:d0:00:03", (ip_address("10.208.0.3"),), ip_address("192.0.2.2"))
DRIVER = OverlayDriver()


def host(vtep: str = "192.0.2.1", mtu: int = 1500, link: str = "eth0") -> HostFacts:
    links = (LinkFacts(link, mtu=mtu), LinkFacts("eth9", mtu=9000))
    address = ip_interface(vtep)
    return HostFacts(1400, "eth9", links, addresses=((address, link),), vtep=address.ip)


HOST = host()


@pytest.mark.parametrize(
    ("change", "quick"),
    [({}, True), ({"spoofchk": False}, False), ({"icc": False}, False), ({"bridge": "br0"}, False)],
    ids=["plain", "unchecked", "separated", "with others on the bridge"],
)
def test_frames_take_the_shortcut_where_nothing_else_has_to_look(change: dict[str, Any], quick: bool) -> None:
    net = replace(NET, options=replace(NET.options, **change))
    endpoint = Endpoint("e" * 64, NET.id, (ip_interface("10.208.0.2/24"),))
    plans = DRIVER.create_network(net, HOST), DRIVER.create_endpoint(net, endpoint, HOST), DRIVER.peers(net, [PEER])
    assert [any(map(of_fast_path, plan)) for plan in plans] == [quick] * 3
    assert [isinstance(step, Table) for step in plans[0]].count(True) == quick


def test_port_forwards_only_what_is_its_own() -> None:
    addresses = (ip_interface("10.208.0.2/24"), ip_interface("fd00:208::2/64"))
    endpoint = Endpoint("e" * 64, NET.id, addresses, "02:6E:0A:D0:00:02")
    link, vxlan, mac = host_side(endpoint.id), vxlan_name(NET.id), "02:6e:0a:d0:00:02"
    plan = DRIVER.create_endpoint(replace(NET, subnets=(*NET.subnets, SIX)), endpoint, HOST)
    table = f"netdev netplug-{vxlan}"
    assert [step for step in plan if of_fast_path(step)] == [
        Element(table, "near", mac, link),
        Element(table, "own4", f"{link} . {mac} . 10.208.0.2", vxlan),
        Element(table, "own6", f"{link} . {mac} . fd00:208::2", vxlan),
        Hook(table, link, "from_port"),
    ]


def test_fast_path_comes_after_its_links_and_frames_are_filtered_before() -> None:
    endpoint = Endpoint("e" * 64, NET.id, (ip_interface("10.208.0.2/24"),))
    for plan, link in ((DRIVER.create_network(NET, HOST), Vxlan), (DRIVER.create_endpoint(NET, endpoint, HOST), Veth)):
        kinds = [link if isinstance(step, link) else of_fast_path(step) for step in plan]
        assert True not in kinds[: kinds.index(link)]
    steps = DRIVER.create_network(NET, HOST).steps
    (filtered,) = (at for at, it in enumerate(steps) if isinstance(it, Element) and it.set == "vnis")
    (tunnel,) = (at for at, it in enumerate(steps) if isinstance(it, Vxlan))
    assert filtered < tunnel


def test_hosts_may_send_into_the_overlays_that_they_are_members_of() -> None:
    other = replace(NET, options=replace(NET.options, vni=4098, vxlan_port=8472))
    six = replace(PEER, vtep=ip_address("2001:db8::2"))
    members = [
        step
        for net, peer in ((NET, PEER), (other, six))
        for step in (
            *DRIVER.create_network(net, HOST),
            *DRIVER.peers(net, [peer, replace(peer, mac="02:00:00:00:00:09")]),
        )
        if isinstance(step, Element) and step.table == "inet netplug-vxlan"
    ]
    assert [(step.set, step.item, step.data) for step in members] == [
        ("vnis", "4789 . 4097", ""),
        ("vteps4", "192.0.2.2 . 4789 . 4097", ""),
        ("vnis", "8472 . 4098", ""),
        ("vteps6", "2001:db8::2 . 8472 . 4098", ""),
    ]
    (table,) = (it for it in DRIVER.base((4,), HOST) if isinstance(it, Table) and it.name == "netplug-vxlan")
    assert table in DRIVER.base((6,), HOST).steps


def test_what_comes_with_peers_is_told_from_what_the_network_has() -> None:
    endpoint = Endpoint("e" * 64, NET.id, (ip_interface("10.208.0.2/24"),))
    own = (*DRIVER.create_network(NET, HOST), *DRIVER.create_endpoint(NET, endpoint, HOST), *DRIVER.base((4, 6), HOST))
    assert not any(map(of_peers, own))
    with_peers = DRIVER.peers(NET, [PEER])
    assert [of_peers(step) for step in with_peers] == [isinstance(step, Element) for step in with_peers]


@pytest.mark.parametrize(
    ("facts", "mtu"),
    [(HOST, 1450), (host("2001:db8::1"), 1430), (host(mtu=9000), 8950), (host(link="lo", mtu=65536), 1350)],
    ids=["IPv4", "IPv6", "jumbo", "on the loopback link"],
)
def test_mtu_is_what_the_way_of_the_vtep_leaves(facts: HostFacts, mtu: int) -> None:
    assert DRIVER.complete(NetworkOptions(mode="overlay"), facts).mtu == mtu
    assert DRIVER.complete(NetworkOptions(mode="overlay", mtu=1000), facts).mtu == 1000


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HostFacts(), "mode overlay: this daemon is not part of a cluster.*a daemon with a cluster store"),
        (HostFacts(vtep=ip_address("192.0.2.1")), "VTEP 192.0.2.1 is not an address of this host"),
        (host(mtu=117), "VXLAN leaves 67 bytes of the mtu of VTEP 192.0.2.1, and IPv4 needs 68"),
    ],
)
def test_host_that_cannot_tunnel_is_refused(facts: HostFacts, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        DRIVER.complete(NetworkOptions(mode="overlay"), facts)


@pytest.mark.parametrize(
    ("net", "others", "facts", "words"),
    [
        (
            replace(NET, options=replace(NET.options, mtu=1500)),
            (),
            HOST,
            r"option mtu=1500: VXLAN over IPv4 adds 50 bytes, .* 192.0.2.1 has mtu 1500 \(choose at most 1450\)",
        ),
        (
            replace(NET, options=replace(NET.options, mtu=1431)),
            (),
            host("2001:db8::1"),
            r"option mtu=1431: VXLAN over IPv6 adds 70 bytes, .* \(choose at most 1430\)",
        ),
        (
            replace(NET, subnets=(*NET.subnets, SIX), options=replace(NET.options, mtu=1250)),
            (),
            host(mtu=1300),
            "option mtu=1250: IPv6 needs 1280",
        ),
        (replace(NET, options=replace(NET.options, vni=0)), (), HOST, "network 'blue' of mode overlay has no VNI"),
        (
            NET,
            (Network("ffff" * 16, "red", options=NetworkOptions(mode="overlay", vni=4097)),),
            HOST,
            "option vni=4097: network 'red' uses it on UDP port 4789",
        ),
        (
            NET,
            (),
            replace(HOST, links=(*HOST.links, LinkFacts("flannel.1", "vxlan", vni=4097, port=4789))),
            "option vni=4097: vxlan link 'flannel.1' of the host uses it on UDP port 4789",
        ),
        (
            replace(NET, options=replace(NET.options, bridge="br0")),
            (Network("ffff" * 16, "red", options=NetworkOptions(bridge="br0")),),
            HOST,
            "bridge 'br0' belongs to network 'red'",
        ),
        (
            NET,
            (),
            replace(HOST, routes=((ip_network("10.208.0.0/25"), "eth0"),)),
            "subnet 10.208.0.0/24 overlaps the host's route 10.208.0.0/25",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    net: Network, others: tuple[Network, ...], facts: HostFacts, words: str
) -> None:
    with pytest.raises(DriverError, match=words):
        DRIVER.check(net, others, facts)


def test_what_does_no_harm_is_allowed() -> None:
    links = (
        LinkFacts("flannel.1", "vxlan", vni=4097, port=8472),
        LinkFacts("swarm0", "vxlan", vni=4098, port=4789),
        LinkFacts(vxlan_name(NET.id), "vxlan", vni=4097, port=4789),
    )
    other = Network("ffff" * 16, "red", options=NetworkOptions(mode="overlay", vni=4097, vxlan_port=8472))
    facts = replace(HOST, links=(*HOST.links, *links), routes=((ip_network("10.208.0.0/24"), bridge_name(NET.id)),))
    checked = DRIVER.check(NET, (other,), facts)
    assert checked is None


def test_gateway_has_the_same_mac_on_hosts_that_know_the_network_by_other_ids() -> None:
    there = replace(NET, id="9f8e" * 16)
    bridges = [DRIVER.create_network(net, HOST).steps[0] for net in (NET, there)]
    assert isinstance(bridges[0], Bridge)
    assert isinstance(bridges[1], Bridge)
    assert bridges[0].mac == bridges[1].mac
    other = DRIVER.create_network(replace(NET, options=replace(NET.options, vni=4098)), HOST).steps[0]
    assert isinstance(other, Bridge)
    assert other.mac != bridges[0].mac


def test_only_overlays_have_peers() -> None:
    assert isinstance(DRIVER, Meshed)
    assert not isinstance(BridgeDriver(), Meshed)


def test_links_of_a_network_are_told_apart_by_name() -> None:
    names = {bridge_name(NET.id), vxlan_name(NET.id)}
    assert len(names) == 2
    assert all(len(name) <= 15 for name in names)
    (link,) = (step for step in DRIVER.create_network(NET, HOST) if isinstance(step, Vxlan))
    assert {link.name, link.master} == names


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (replace(PEER, vtep=ip_address("127.0.0.1")), "VTEP 127.0.0.1 is not an address of another host"),
        (replace(PEER, vtep=ip_address("192.0.2.1")), "VTEP 192.0.2.1 is not an address of another host"),
        (replace(PEER, vtep=ip_address("239.1.1.1")), "VTEP 239.1.1.1 is not an address of another host"),
        (replace(PEER, vtep=ip_address("0.0.0.0")), "VTEP 0.0.0.0 is not an address of another host"),
        (
            replace(PEER, vtep=ip_address("2001:db8::2")),
            "VTEP 2001:db8::2 is an IPv6 address, this host's is 192.0.2.1",
        ),
        (replace(PEER, mac="01:00:5e:00:00:01"), "MAC '01:00:5e:00:00:01' is not valid for an endpoint"),
        (replace(PEER, mac="ff:ff:ff:ff:ff:ff"), "MAC 'ff:ff:ff:ff:ff:ff' is not"),
        (replace(PEER, mac="00:00:00:00:00:00"), "MAC '00:00:00:00:00:00' is not"),
        (replace(PEER, mac=DRIVER.mac(NET)), "is not valid for an endpoint"),
        (replace(PEER, mac="02:6e:0a:d0:00"), "MAC '02:6e:0a:d0:00' is not"),
        (replace(PEER, mac=""), "MAC '' is not"),
        (replace(PEER, addresses=(ip_address("10.208.1.3"),)), "address 10.208.1.3 is not valid for an endpoint"),
        (replace(PEER, addresses=(ip_address("10.208.0.1"),)), "address 10.208.0.1 is not valid for an endpoint"),
        (replace(PEER, addresses=(ip_address("fd00:208::3"),)), "address fd00:208::3 is not valid for an endpoint"),
    ],
)
def test_peer_that_reaches_beyond_its_network_is_refused(peer: Peer, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        DRIVER.check_peer(NET, peer, HOST)


def test_peer_as_published_is_accepted_elsewhere() -> None:
    checked = DRIVER.check_peer(NET, PEER, HOST)
    assert checked is None


def test_steps_of_a_plan_have_keys_of_their_own() -> None:
    net = replace(NET, subnets=(*NET.subnets, SIX), options=replace(NET.options, bum=True))
    moved = replace(PEER, vtep=ip_address("192.0.2.3"))
    other = replace(PEER, mac="02:6e:0a:d0:00:04")
    plan = DRIVER.peers(net, (PEER, moved, other))
    assert len({step.key for step in plan}) == len(plan)
    remote = {step.mac: str(step.vtep) for step in plan if isinstance(step, Fdb) and step.mac in {PEER.mac, other.mac}}
    assert remote == {PEER.mac: "192.0.2.3", other.mac: "192.0.2.2"}
