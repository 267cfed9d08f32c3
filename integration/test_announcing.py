"""An address that gets another MAC: neighbours, and the host itself, hear of it at once; on a dark segment later."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import Host, Namespace, Netplug, attached, cli_network, namespace, tcp_ask, wait_until
from harness.frames import captured
from harness.traffic import SeenServer
from scapy.layers.l2 import ARP

DUAL = ("--subnet", "10.76.0.0/24", "--ipv6", "--subnet", "fd00:76::/64")
ADDRESSES = ("10.76.0.50", "fd00:76::50")
GIVEN = tuple(word for address in ADDRESSES for word in ("--ip", address))
HEARD_TIMEOUT_S = 5

pytestmark = pytest.mark.usefixtures("netplug")


def believed(entries: str) -> dict[str, str]:
    """Return MACs by address."""
    return {it["dst"]: it["lladdr"] for it in json.loads(entries) if "lladdr" in it and it["dst"] in ADDRESSES}


def everywhere(host: Host, neighbour: Namespace) -> list[dict[str, str]]:
    return [believed(host.output("ip", "-j", "neigh")), believed(neighbour.exec("ip", "-j", "neigh"))]


def test_neighbours_and_the_host_follow_an_address_to_another_mac(host: Host, netplug: Netplug) -> None:
    with cli_network(netplug, *DUAL) as net, attached(netplug, net) as (neighbour, _):
        for mac in ("02:00:00:00:76:01", "02:00:00:00:76:02"):
            with attached(netplug, net, *GIVEN, "--mac", mac, "--publish", "8076:80") as (place, _):
                if mac.endswith("2"):
                    wanted = dict.fromkeys(ADDRESSES, mac)
                    wait_until(lambda wanted=wanted: everywhere(host, neighbour) == [wanted] * 2, HEARD_TIMEOUT_S)
                for address in ADDRESSES:
                    assert neighbour.pings(address)
                    host.run(["busybox", "ping", "-c", "1", "-W", "2", address])
                assert everywhere(host, neighbour) == [dict.fromkeys(ADDRESSES, mac)] * 2
                with SeenServer(place, "tcp", 80):
                    assert tcp_ask(host, "127.0.0.1", 8076)


@contextmanager
def dark_parent(host: Host) -> Iterator[None]:
    """A link that is down; one that is up and has no carrier is asked for in tests/contract."""
    for line in ("link add dark0 type veth peer name other0", "link set other0 up"):
        host.run(["ip", *line.split()])
    try:
        yield
    finally:
        host.run(["ip", "link", "del", "dark0"])


def test_macvlan_on_a_dark_parent_waits_for_light(host: Host, netplug: Netplug) -> None:
    with (
        dark_parent(host),
        cli_network(netplug, "-o", "mode=macvlan", "-o", "parent=dark0", *DUAL) as net,
        namespace(host) as place,
    ):
        place.attach(netplug, net, *GIVEN)
        with captured(host, "other0") as frames:
            host.run(["ip", "link", "set", "dark0", "up"])
            wait_until(lambda: "LOWER_UP" in host.output("ip", "link", "show", "dark0"), HEARD_TIMEOUT_S)
            # What is attached after that is told of after that.
            with attached(netplug, net, "--ip", "10.76.0.51", "--ip", "fd00:76::51"):
                pass
        told = [str(frame[ARP].psrc) for frame in frames if ARP in frame and frame[ARP].psrc == frame[ARP].pdst]
        assert told[0] == ADDRESSES[0]
        place.detach(netplug, net)
