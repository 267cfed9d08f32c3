"""Thousands of ports of one container: planned and encoded without the event loop, in a time that grows with them."""

import threading
from ipaddress import ip_interface, ip_network

import pytest

from netplug.drivers.api import Endpoint, Network, PortMapping, Subnet
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.options import NetworkOptions
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Proto
from netplug.tasks.turns import aside

NET = Network(
    "4a1f" * 16, "blue", NetworkOptions(), (Subnet(ip_network("10.208.0.0/24"), ip_interface("10.208.0.1/24")),)
)
PORTS = tuple(PortMapping(Proto.UDP, 80, None, port, port) for port in range(10_000, 12_000))


def test_ports_are_not_added_plan_by_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each addition copies what is there: 10 000 ports would be a hundred million steps."""
    endpoint = Endpoint("9f8e" * 16, NET.id, (ip_interface("10.208.0.2/24"),), ports=PORTS)
    before = BridgeDriver().expose(NET, endpoint)
    monkeypatch.setattr(Plan, "__add__", lambda *_: pytest.fail("added"))
    assert len(BridgeDriver().expose(NET, endpoint)) == len(before) > 2 * len(PORTS)


@pytest.mark.parametrize(("size", "here"), [(1, True), (10_000, False)])
async def test_long_work_leaves_the_event_loop(size: int, here: bool) -> None:
    found = await aside(size, threading.get_ident)
    assert (found == threading.get_ident()) is here
