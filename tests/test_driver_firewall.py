"""What the elements of a network mean: which chains its packets go to, and what is published, masqueraded, guarded."""

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from netplug.drivers.api import Endpoint, HostFacts, LinkFacts, Network, PortMapping, Subnet
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.host import HostDriver
from netplug.drivers.naming import bridge_name, eui64, host_side, point_to_point
from netplug.drivers.options import NetworkOptions
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.plan import Plan
from netplug.drivers.sandbox import place
from netplug.drivers.steps import Element, Gate, Passage, Proto, Table
from netplug.drivers.tables import ANTISPOOF, HOST_MODE, NETWORKS

SUBNETS = (
    Subnet(ip_network("10.208.0.0/24"), ip_interface("10.208.0.1/24")),
    Subnet(ip_network("fd00:208::/64"), ip_interface("fd00:208::1/64")),
)
NET = Network("3a5d" * 16, "blue", SUBNETS, NetworkOptions(mtu=1500))
EP = Endpoint("9f8e" * 16, NET.id, (ip_interface("10.208.0.2/24"), ip_interface("fd00:208::2/64")))
LINK, PORT = bridge_name(NET.id), host_side(EP.id)
CHAINS = ("from", "to", "between", "host")
DRIVER = BridgeDriver()


def content(plan: Plan, table: str = NETWORKS) -> dict[str, dict[str, str]]:
    """Return elements by set or map: data by key."""
    found: dict[str, dict[str, str]] = {}
    for step in plan:
        if isinstance(step, Element) and step.table == table:
            assert step.item not in found.setdefault(step.set, {})
            found[step.set][step.item] = step.data
    return found


def of(net: Network, host: HostFacts | None = None) -> dict[str, dict[str, str]]:
    return content(DRIVER.create_network(net, host or HostFacts()))


@pytest.mark.parametrize(
    ("internal", "chains"),
    [
        (False, ["goto from_open", "goto to_open", "goto between_open", "goto host_open"]),
        (True, ["goto from_internal", "goto to_internal", "drop", "goto host_internal"]),
    ],
)
def test_bridge_of_ours_is_told_by_its_name(internal: bool, chains: list[str]) -> None:
    found = of(replace(NET, internal=internal))
    assert [found[name] for name in CHAINS] == [{LINK: chain} for chain in chains]
    assert found["guarded"] == {LINK: ""}
    assert found["icc"] == {f"{LINK} . {LINK}": ""}
    assert found["home4"] == {f"10.208.0.0/24 . {LINK}": ""}
    assert found["home6"] == {f"fd00:208::/64 . {LINK}": ""}
    assert found.get("masqueraded", {}) == ({} if internal else {LINK: ""})
    assert not found.keys() & {"bridges", "internal"}


@pytest.mark.parametrize("internal", [False, True])
def test_on_a_bridge_of_the_user_only_the_subnet_is_ours(internal: bool) -> None:
    net = replace(NET, internal=internal, options=NetworkOptions(mtu=1500, bridge="br0"))
    found = of(net, HostFacts(links=(LinkFacts("br0", "bridge"),)))
    assert [found[name] for name in CHAINS] == [{"br0": f"jump {name}_bridge"} for name in CHAINS]
    assert found["bridges"] == {"br0": ""}
    assert found.get("internal", {}) == ({"br0": ""} if internal else {})
    assert "guarded" not in found, "other hosts on the bridge are not"
    assert found["home4"] == {"10.208.0.0/24 . br0": ""}


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"icc": False}, "icc"), ({"masquerade": False}, "masqueraded"), ({"spoofchk": False}, "guarded")],
)
def test_option_is_an_element_less(options: dict[str, bool], missing: str) -> None:
    plain, found = of(NET), of(replace(NET, options=replace(NET.options, **options)))
    assert plain.keys() - found.keys() == {missing}


def test_what_comes_by_a_tunnel_is_not_guarded() -> None:
    facts = HostFacts(
        links=(LinkFacts("eth0"),), addresses=((ip_interface("192.0.2.1/24"), "eth0"),), vtep=ip_address("192.0.2.1")
    )
    net = replace(NET, options=NetworkOptions(mode="overlay", mtu=1450, vni=7))
    found = content(OverlayDriver().create_network(net, facts))
    assert "guarded" not in found
    assert found["from"] == {LINK: "goto from_open"}


def test_port_has_its_mac_and_its_addresses_before_it_is_there() -> None:
    plan = DRIVER.create_endpoint(NET, EP, HostFacts())
    mac = DRIVER.join(NET, EP).mac
    found = content(plan, ANTISPOOF)
    assert found == {
        "macs": {f"{PORT} . {mac}": ""},
        "own4": {f"{PORT} . {mac} . 10.208.0.2": ""},
        "own6": {f"{PORT} . {mac} . {ip}": "" for ip in ("fd00:208::2", eui64(mac))},
    }
    keys = [step.key for step in plan]
    assert keys.index(f"link/{PORT}") == 4


def test_port_that_is_not_guarded_is_exempt() -> None:
    net = replace(NET, options=replace(NET.options, spoofchk=False))
    assert content(DRIVER.create_endpoint(net, EP, HostFacts()), ANTISPOOF) == {"exempt": {PORT: "accept"}}
    assert content(DRIVER.create_network(net, HostFacts()), ANTISPOOF) == {}


@pytest.mark.parametrize("dual", [False, True])
def test_port_whose_mac_others_may_change_has_addresses_alone(dual: bool) -> None:
    ep = EP if dual else replace(EP, addresses=EP.addresses[:1])
    plan = DRIVER.create_endpoint(NET, ep, HostFacts())
    found = content(place(plan, ep, DRIVER.join(NET, ep), "/run/netns/a", "eth0", any_mac=True), ANTISPOOF)
    # What it is given at first still meets the fewest rules.
    first = {f"{PORT} . {DRIVER.join(NET, ep).mac}": ""}
    own = {name: {f"{it} . {ip}": "" for it in first} for name, ip in (("own4", "10.208.0.2"), ("own6", "fd00:208::2"))}
    addresses = {"any4": {f"{PORT} . 10.208.0.2": ""}, "any6": {f"{PORT} . fd00:208::2": ""}}
    everything = own | addresses | {"macs": first, "exempt": {PORT: "goto any_mac"}}
    of_ipv4 = {name: everything[name] for name in ("exempt", "own4", "any4")}
    assert found == (everything if dual else of_ipv4)


def published(*ports: PortMapping) -> dict[str, dict[str, str]]:
    return content(DRIVER.expose(NET, replace(EP, ports=ports)))


def test_port_is_published_on_all_addresses_or_on_one() -> None:
    assert published(PortMapping(Proto.TCP, 80, None, 8080)) == {
        "published4_any": {"tcp . 8080": "10.208.0.2 . 80"},
        "published6_any": {"tcp . 8080": "fd00:208::2 . 80"},
    }
    one = PortMapping(Proto.SCTP, 80, ip_address("192.0.2.1"), 8080)
    six = PortMapping(Proto.UDP, 53, ip_address("2001:db8::1"), 5353)
    assert published(one, six) == {
        "published4": {"192.0.2.1 . sctp . 8080": "10.208.0.2 . 80"},
        "published6": {"2001:db8::1 . udp . 5353": "fd00:208::2 . 53"},
    }
    assert published(PortMapping(Proto.TCP, 80, ip_address("::1"), 8080)) == {}, "it is relayed"


def test_name_server_is_at_port_53_of_the_gateways() -> None:
    found = of(NET)
    for name, gateway in (("published4", "10.208.0.1"), ("published6", "fd00:208::1")):
        assert found[name] == {f"{gateway} . {it} . 53": f"{gateway} . {RESOLVER_PORT}" for it in ("udp", "tcp")}
    assert "published4" not in of(replace(NET, options=replace(NET.options, dns=False)))


@pytest.mark.parametrize("internal", [False, True])
def test_host_mode_leads_unused_ports_to_a_link_of_its_own(internal: bool) -> None:
    net = replace(NET, internal=internal, options=NetworkOptions(mode="host", mtu=1500))
    plan, link = HostDriver().create_endpoint(net, EP, HostFacts()), point_to_point(EP.id)
    found = content(plan)
    assert found["from"] == {link: "goto from_internal" if internal else "goto from_open"}
    assert found["home4"] == {f"10.208.0.2 . {link}": "", f"10.208.0.1 . {link}": ""}
    assert found.get("masqueraded", {}) == ({} if internal else {link: ""})
    assert not found.keys() & {"icc", "guarded"}
    leads = {
        f"target{ip.version}": {it: str(ip) for it in ("tcp", "udp")} for ip in (address.ip for address in EP.addresses)
    }
    assert content(plan, HOST_MODE) == ({} if internal else leads)


def test_store_is_refused_on_this_host_and_on_others() -> None:
    addresses = ((ip_interface("192.0.2.1/24"), "eth0"),)
    store = tuple((ip_address(ip), 2379) for ip in ("127.0.0.1", "192.0.2.1", "192.0.2.9", "2001:db8::9"))
    plan = DRIVER.base((4,), HostFacts(addresses=addresses, store=store))
    assert content(plan) == {
        "store_here": {"2379": ""},
        "store4": {"192.0.2.1 . 2379": "", "192.0.2.9 . 2379": ""},
    }
    assert "store6" in content(DRIVER.base((4, 6), HostFacts(store=store)))


def test_tables_are_the_same_for_one_ip_version_and_for_both() -> None:
    def tables(driver: BridgeDriver | HostDriver, *families: int) -> list[str]:
        return [step.key for step in driver.base(families, HostFacts()) if isinstance(step, Table)]

    assert tables(DRIVER, 4) == tables(DRIVER, 4, 6) == ["table/inet netplug", "table/bridge netplug"]
    assert tables(HostDriver(), 4, 6) == ["table/inet netplug", "table/inet netplug-host"]


def test_iptables_lets_pass_where_there_are_rules_and_a_users_bridge_by_its_subnet_alone() -> None:
    host = HostFacts(gates=((4, "nft"), (4, "legacy"), (6, "nft")))
    gates = [step for step in DRIVER.base((4,), host) if isinstance(step, Gate)]
    assert gates == [Gate(4, "nft"), Gate(4, "legacy")]
    assert not [step for step in DRIVER.base((4, 6), HostFacts()) if isinstance(step, Gate)]
    assert not [step for step in DRIVER.create_network(NET, host) if isinstance(step, Passage)]
    net = replace(NET, subnets=SUBNETS[:1], options=replace(NET.options, bridge="br0"))
    assert [step for step in DRIVER.create_network(net, host) if isinstance(step, Passage)] == [
        Passage(4, flavour, "br0", SUBNETS[0].pool) for flavour in ("nft", "legacy")
    ]
