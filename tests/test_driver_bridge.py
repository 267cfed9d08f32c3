from dataclasses import replace
from ipaddress import ip_interface, ip_network

import pytest

from netplug.drivers.api import Endpoint, HostFacts, LinkFacts, Network, Subnet
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.errors import DriverError
from netplug.drivers.naming import bridge_name, host_side, mac_of_address, mark, sandbox_side
from netplug.drivers.options import NetworkOptions
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.plan import Plan
from netplug.drivers.sandbox import place
from netplug.drivers.steps import Address, Announce, Element, Route, Veth

NET = Network(
    "3a5d" * 16,
    "blue",
    (Subnet(ip_network("10.208.0.0/24"), ip_interface("10.208.0.1/24")),),
    NetworkOptions(mtu=1500),
)
EP = Endpoint("9f8e" * 16, NET.id, (ip_interface("10.208.0.2/24"),))


@pytest.mark.parametrize(
    ("net", "others", "host", "words"),
    [
        (
            replace(NET, options=NetworkOptions(bridge="eth0")),
            (),
            HostFacts(links=(LinkFacts("eth0", "veth"),)),
            "option bridge=eth0: the host has a veth link of this name",
        ),
        (
            replace(NET, options=NetworkOptions(bridge="br0")),
            (Network("ffff" * 16, "red", options=NetworkOptions(bridge="br0")),),
            HostFacts(),
            "bridge 'br0' belongs to network 'red'",
        ),
        (
            replace(NET, options=NetworkOptions(slaac=True)),
            (),
            HostFacts(),
            "option slaac=true: spoofchk lets containers send from no address but those that they are given",
        ),
        (
            NET,
            (),
            HostFacts(routes=((ip_network("10.208.0.128/25"), "eth0"),)),
            r"subnet 10.208.0.0/24 overlaps the host's route 10.208.0.128/25 on link 'eth0'",
        ),
        (NET, (), HostFacts(routes=((ip_network("10.208.0.0/24"), "docker0"),)), "on link 'docker0'"),
        (
            NET,
            (),
            HostFacts(addresses=((ip_interface("10.208.0.7/8"), "eth0"),)),
            "subnet 10.208.0.0/24 contains the host's own address 10.208.0.7 on link 'eth0'",
        ),
        (replace(NET, subnets=(Subnet(ip_network("127.0.0.0/8")),)), (), HostFacts(), "has loopback addresses"),
        (replace(NET, subnets=(Subnet(ip_network("224.0.0.0/8")),)), (), HostFacts(), "has multicast addresses"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    net: Network, others: tuple[Network, ...], host: HostFacts, words: str
) -> None:
    with pytest.raises(DriverError, match=words):
        BridgeDriver().check(net, others, host)


@pytest.mark.parametrize(
    "route",
    [
        ("10.0.0.0/8", "eth0"),
        ("10.208.0.0/24", bridge_name(NET.id)),
        ("fd00::/8", "eth0"),
        ("10.209.0.0/24", "eth0"),
    ],
)
def test_routes_that_do_no_harm_are_allowed(route: tuple[str, str]) -> None:
    checked = BridgeDriver().check(NET, (), HostFacts(routes=((ip_network(route[0]), route[1]),)))
    assert checked is None


def test_existing_bridge_is_accepted_when_named() -> None:
    net = replace(NET, options=NetworkOptions(bridge="br0"))
    host = HostFacts(links=(LinkFacts("br0", "bridge"),), routes=((ip_network("10.208.0.0/24"), "br0"),))
    BridgeDriver().check(net, (), host)
    assert "link/br0" in {step.key for step in BridgeDriver().create_network(net, host)}


def test_names_fit_the_kernel_and_differ_by_role() -> None:
    names = {bridge_name(NET.id), host_side(NET.id), sandbox_side(NET.id)}
    assert len(names) == 3
    assert all(len(name) <= 15 for name in names)
    assert all(len(mark(name)) < 128 for name in names)


def test_mac_follows_the_address() -> None:
    one, two = ip_interface("10.208.0.2/24"), ip_interface("10.208.0.3/24")
    assert mac_of_address(one) != mac_of_address(two)
    assert BridgeDriver().join(NET, EP).mac == mac_of_address(one)


def test_bare_sandbox_gets_link_addresses_and_routes() -> None:
    driver = BridgeDriver()
    plan = place(driver.create_endpoint(NET, EP, HostFacts()), EP, driver.join(NET, EP), "/run/netns/a", "eth0")
    (veth,) = (step for step in plan if isinstance(step, Veth))
    assert (veth.netns, veth.peer) == ("/run/netns/a", "eth0")
    assert [type(step) for step in plan] == [*[Element] * 3, Veth, Announce, Address, Route]
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("driver", "room"), [(BridgeDriver(), 1023), (OverlayDriver(), 1022)])
def test_endpoint_beyond_the_ports_of_a_bridge_is_refused(driver: BridgeDriver, room: int) -> None:
    driver.admit(NET, room - 1)
    with pytest.raises(
        DriverError, match=f"'blue' has {room} containers on this host, and a Linux bridge takes {room}"
    ):
        driver.admit(NET, room)
    driver.admit(replace(NET, options=NetworkOptions(bridge="br0")), room)
