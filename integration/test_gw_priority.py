"""The way out of a sandbox in several networks, by priority, with traffic that flows meanwhile."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness import Host, Namespace, Netplug, SeenServer, Stream, Wire, cli_network, namespace, tcp_ask

pytestmark = pytest.mark.usefixtures("netplug")
LOST_AT_MOST = 2
"""Of what is on its way to a link while that is removed; ten milliseconds lie between two datagrams."""
TRIES = 4
"""On a busy machine more is on its way."""


def dual_stack(number: int, *options: str) -> tuple[str, ...]:
    return "--subnet", f"10.91.{number}.0/24", "--subnet", f"fd00:91:{number}::/64", *options


@pytest.fixture
def lab(netplug: Netplug) -> Iterator[tuple[Namespace, str, str, str]]:
    """A namespace, and three networks of rising priority."""
    with ExitStack() as stack:
        bare = stack.enter_context(namespace(netplug.host))
        low, usual, high = (
            stack.enter_context(cli_network(netplug, *dual_stack(number, *options)))
            for number, options in enumerate((("-o", "gw_priority=-1"), (), ("-o", "gw_priority=10")), 1)
        )
        yield bare, low, usual, high


def way(bare: Namespace, version: int = 4) -> str:
    """Return the network of the default route, by its number."""
    (route,) = bare.exec("ip", f"-{version}", "route", "show", "default").splitlines()
    return route.split()[2].split("." if version == 4 else ":")[2]


@pytest.mark.parametrize("version", [4, 6])
def test_way_out_follows_the_priority_and_traffic_goes_on(
    netplug: Netplug, client: Host, wire: Wire, lab: tuple[Namespace, str, str, str], version: int
) -> None:
    bare, low, usual, high = lab
    bare.attach(netplug, usual, "--ifname", "eth1")
    target = wire.right if version == 4 else wire.right6
    lost = {}
    changes = {
        "a lower one comes": (bare.attach, low, "eth0", "2"),
        "a higher one comes": (bare.attach, high, "eth2", "3"),
        "the highest goes": (bare.detach, high, "eth2", "2"),
        "the next goes": (bare.detach, usual, "eth1", "1"),
    }
    for what, (act, network, ifname, expected) in changes.items():
        most, tries = (LOST_AT_MOST, TRIES) if "goes" in what else (0, 1)
        for left in reversed(range(tries)):
            with Stream(bare, client, target, bound_to_source=False) as stream:
                act(netplug, network, "--ifname", ifname)
                assert [way(bare), way(bare, 6)] == [expected] * 2, what
                assert bare.pings(target)
            assert stream.sent > 10
            lost[what] = len(stream.lost)
            if lost[what] <= most or not left:
                break
            bare.attach(netplug, network, "--ifname", ifname)
        assert lost[what] <= most, lost
    bare.detach(netplug, low, "--ifname", "eth0")


@pytest.mark.parametrize("version", [4, 6])
def test_connections_and_ports_of_a_network_stay_when_another_is_the_way_out(
    netplug: Netplug, client: Host, wire: Wire, lab: tuple[Namespace, str, str, str], version: int
) -> None:
    bare, low, usual, high = lab
    target, host, every = (wire.right, wire.left, "0.0.0.0") if version == 4 else (wire.right6, wire.left6, "::")
    bare.attach(netplug, usual, "--ifname", "eth1", "--publish", "8081:80")
    with SeenServer(bare, "tcp", 80, every), Stream(bare, client, target) as stream:
        bare.attach(netplug, high, "--ifname", "eth2", "--publish", "8082:80")
        bare.attach(netplug, low, "--ifname", "eth0", "--publish", "8083:80")
        assert way(bare, version) == "3"
        for port in (8081, 8082, 8083):
            assert tcp_ask(client, host, port) == target
        assert not netplug.drift()
        bare.detach(netplug, high, "--ifname", "eth2")
        assert way(bare, version) == "2"
        for port in (8081, 8083):
            assert tcp_ask(client, host, port) == target
        bare.detach(netplug, low, "--ifname", "eth0")
    assert not stream.lost
    bare.detach(netplug, usual, "--ifname", "eth1")
    assert "suppress" not in (rules := bare.exec("ip", f"-{version}", "rule"))
    assert "from 10.91" not in rules


def test_priority_of_one_namespace_precedes_that_of_the_network(
    netplug: Netplug, lab: tuple[Namespace, str, str, str]
) -> None:
    bare, low, _, high = lab
    bare.attach(netplug, high, "--ifname", "eth2")
    bare.attach(netplug, low, "--ifname", "eth0", "-o", "gw_priority=11")
    assert way(bare) == "1"
    assert not netplug.drift()
    netplug.kill()
    netplug.start()
    assert way(bare) == "1"
    assert not netplug.drift()
    bare.detach(netplug, low, "--ifname", "eth0")
    assert way(bare) == "3"
    bare.detach(netplug, high, "--ifname", "eth2")
