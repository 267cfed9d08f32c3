"""What tunnels lie on changes under hosts that run: VTEPs move, go, come back, are had twice; an mtu drops."""

import time
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, kernel_of, reaches, update
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cli import CliError
from netplug.cluster import vtep
from netplug.drivers.steps import Bridge, Veth
from netplug.drivers.tunnel import Vxlan

pytestmark = needs_etcd

SOON_S = 5.0


def number(host: Living) -> int:
    return int(host.settings.host_name.rpartition("-")[2])


def readdress(host: Living, *addresses: str) -> None:
    """Let somebody give a host's uplink other addresses."""
    kernel = host.kernel
    kernel.foreign.addresses = {("eth0", ip_interface(f"{address}/24")) for address in addresses}
    if host.alive:
        host.do(lambda _: kernel.moved.set())


def sends_from(host: Living) -> set[str]:
    return {str(step.local) for step in list(host.kernel._world.state.values()) if isinstance(step, Vxlan)}


def differences(host: Living) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.client.get("diff")["differences"]
    return found


def vteps(host: Living) -> dict[str, str]:
    return {one["name"]: one["vtep"] for one in host.client.get("hosts")["hosts"]}


def notes(host: Living) -> dict[str, list[str]]:
    return {one["name"]: one["notes"] for one in host.client.get("hosts")["hosts"]}


def settled(*hosts: Living) -> None:
    for host in hosts:
        until(lambda host=host: differences(host) == [], f"no difference on {host.settings.host_name}")  # type: ignore[misc]


def pair(hosts: Hosts, vtep: str = "eth0") -> tuple[Living, Living]:
    one, other = (hosts.start(it, vtep=vtep.format(it)) for it in (1, 2))
    create(one)
    has(other)
    return one, other


def test_a_host_that_gets_another_address_is_reached_there(hosts: Hosts) -> None:
    one, other = pair(hosts)
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    started = time.monotonic()
    readdress(other, "192.0.2.22")
    reaches(one, f"{address_of(there)} at 192.0.2.22")
    assert time.monotonic() - started < SOON_S
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    assert sends_from(other) == {"192.0.2.22"}
    assert vteps(one) == {"host-1": "192.0.2.1", "host-2": "192.0.2.22"}
    settled(one, other)
    # And what comes later is made for the new one.
    create(one, "red")
    has(other, "red")
    assert sends_from(other) == {"192.0.2.22"}


def test_routes_alone_move_a_vtep_that_nobody_chose(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address from which the store is reached: the kernel's routes say which one that is."""
    way = ["192.0.2.2"]
    monkeypatch.setattr(vtep, "_source", lambda _: ip_address(way[0]))
    kernel = hosts.kernels.setdefault(2, kernel_of(2))
    kernel.foreign.addresses.add(("eth1", ip_interface("198.51.100.2/24")))
    one, other = hosts.start(1, vtep="192.0.2.1"), hosts.start(2, vtep="")
    create(one)
    has(other)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    started = time.monotonic()
    way[0] = "198.51.100.2"
    other.do(lambda _: kernel.rerouted.set())
    reaches(one, f"{address_of(there)} at 198.51.100.2")
    assert time.monotonic() - started < SOON_S
    settled(one, other)


def test_routes_say_what_the_way_of_a_vtep_on_the_loopback_link_carries(hosts: Hosts) -> None:
    kernel = hosts.kernels.setdefault(2, kernel_of(2))
    kernel.foreign.addresses.add(("lo", ip_interface("203.0.113.2/32")))
    kernel.foreign.facts = replace(kernel.foreign.facts, mtu=1500)
    one, other = hosts.start(1, vtep="192.0.2.1"), hosts.start(2, vtep="203.0.113.2")
    create(one)
    has(other)
    attach(other)
    assert differences(other) == []
    kernel.foreign.facts = replace(kernel.foreign.facts, mtu=1400)
    other.do(lambda _: kernel.rerouted.set())
    until(lambda: [it["what"] for it in differences(other)] != [], "it is said")
    (found,) = differences(other)
    assert found["what"] == "mtu 1450 is too large: the path of VTEP 203.0.113.2 allows 1350 bytes"


@pytest.mark.parametrize("alive", [True, False], ids=["running", "down"])
def test_an_uplink_is_replaced_by_another_link_with_another_address_and_mtu(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """All that follows from the uplink follows: tunnels, peers, and the MTU of networks that have the uplink's."""
    way = ["192.0.2.2"]
    monkeypatch.setattr(vtep, "_source", lambda _: ip_address(way[0]))
    one, other = hosts.start(1, vtep="192.0.2.1"), hosts.start(2, vtep="")
    kernel = other.kernel
    create(one)
    has(other)
    here, there = attach(one), attach(other)
    other.client.post("networks", body={"name": "own"})
    attach(other, "lab2", "own")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    if not alive:
        other.stop()
    del kernel.foreign.links["eth0"]
    kernel.foreign.links["eth1"], kernel.foreign.mtus["eth1"] = "", 1400
    kernel.foreign.addresses = {("eth1", ip_interface("198.51.100.2/24"))}
    kernel.foreign.facts = replace(kernel.foreign.facts, uplink="eth1", mtu=1400)
    way[0] = "198.51.100.2"
    if alive:
        other.do(lambda _: kernel.moved.set())
    else:
        other = hosts.start(2, vtep="")
    reaches(one, f"{address_of(there)} at 198.51.100.2")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    assert sends_from(other) == {"198.51.100.2"}
    until(lambda: mtus(other) == {1400, 1450}, "what has the uplink's mtu has that of the new one")
    # The cluster has one MTU. The user chooses another one, and all is well.
    until(lambda: differences(other), "it is said")
    (found,) = differences(other)
    assert found["what"] == "mtu 1450 is too large: the path of VTEP 198.51.100.2 allows 1350 bytes"
    assert update(one, mtu="1350")["notes"] == []
    settled(one, other)
    assert (mtus(one), mtus(other)) == ({1350}, {1350, 1400})


def mtus(host: Living) -> set[int]:
    return {step.mtu for step in list(host.kernel._world.state.values()) if isinstance(step, Veth | Bridge | Vxlan)}


@pytest.mark.parametrize("alive", [True, False], ids=["running", "down"])
def test_two_hosts_swap_their_addresses(hosts: Hosts, alive: bool) -> None:
    one, other = pair(hosts)
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    if not alive:
        one.stop()
        other.stop()
    readdress(one, "192.0.2.2")
    readdress(other, "192.0.2.1")
    if not alive:
        one, other = (hosts.start(it, vtep="eth0") for it in (1, 2))
    reaches(one, f"{address_of(there)} at 192.0.2.1")
    reaches(other, f"{address_of(here)} at 192.0.2.2")
    assert (sends_from(one), sends_from(other)) == ({"192.0.2.2"}, {"192.0.2.1"})
    settled(one, other)


@pytest.mark.parametrize("vtep", ["eth0", "192.0.2.{}"])
def test_an_address_that_goes_and_comes_back_is_missed_and_said(hosts: Hosts, vtep: str) -> None:
    one, other = pair(hosts, vtep)
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    readdress(other)
    until(lambda: differences(other), "it is said there")
    (found,) = differences(other)
    assert (found["owner"], found["object"]) == ("host", "vtep")
    assert found["what"].startswith("VTEP 192.0.2.2: ")
    until(lambda: notes(one)["host-2"], "it is said here")
    assert notes(one) == {"host-1": [], "host-2": [found["what"]]}
    # Nothing else changes, and what is asked for meanwhile is done.
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    late = attach(other, "lab2")
    readdress(other, "192.0.2.2")
    until(lambda: notes(one)["host-2"] == [], "it is over")
    reaches(one, f"{address_of(there)} at 192.0.2.2", f"{address_of(late)} at 192.0.2.2")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    settled(one, other)


def test_a_second_address_moves_nothing(hosts: Hosts) -> None:
    one, other = pair(hosts)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    readdress(other, "192.0.2.2", "192.0.2.1", "2001:db8::2")
    until(lambda: not other.kernel.moved.is_set(), "it has looked")
    create(one, "red")
    has(other, "red")
    assert sends_from(other) == {"192.0.2.2"}


def test_what_changed_while_the_daemon_was_down_is_brought_about(hosts: Hosts) -> None:
    one, other = pair(hosts)
    here, there = attach(one), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    other.stop()
    readdress(other, "192.0.2.22")
    other = hosts.start(2, vtep="eth0")
    reaches(one, f"{address_of(there)} at 192.0.2.22")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    assert sends_from(other) == {"192.0.2.22"}
    settled(one, other)


def test_of_two_hosts_with_one_vtep_the_older_goes_on(hosts: Hosts, etcd: Member) -> None:
    one, other = pair(hosts, "192.0.2.{}")
    here = attach(one)
    hosts.kernels[3] = hosts.kernels[1].__class__()
    third = hosts.kernels[3]
    third.foreign.links["eth0"] = ""
    third.foreign.addresses.add(("eth0", ip_interface("192.0.2.1/24")))
    late = hosts.start(3, vtep="192.0.2.1")
    has(late)
    words = "VTEP 192.0.2.1 belongs to host host-1, which had it first: endpoints of this host are not reached"
    for host in (one, other, late):
        until(lambda host=host: notes(host)["host-3"] == [words], "it is said")  # type: ignore[misc]
        until(lambda host=host: differences(host), "it shows")  # type: ignore[misc]
        assert [(it["owner"], it["what"]) for it in differences(host)] == [("host host-3", words)]
    with pytest.raises(CliError, match="this host's VTEP belongs to host host-1"):
        attach(late)
    there = attach(one, "lab2")
    reaches(other, f"{address_of(here)} at 192.0.2.1", f"{address_of(there)} at 192.0.2.1")
    # The next life of the older one is still the older one.
    one.stop()
    one = hosts.start(1, vtep="192.0.2.1")
    with pytest.raises(CliError, match="this host's VTEP belongs to host host-1"):
        attach(late)
    detach(one, "lab2")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    # Who gets an address of his own is one like the others.
    late.stop()
    third.foreign.addresses.add(("eth0", ip_interface("192.0.2.3/24")))
    late = hosts.start(3, vtep="192.0.2.3")
    mine = attach(late)
    reaches(other, f"{address_of(here)} at 192.0.2.1", f"{address_of(mine)} at 192.0.2.3")
    settled(one, other, late)


def test_an_mtu_that_drops_later_is_said_with_host_and_number(hosts: Hosts) -> None:
    one, other = pair(hosts)
    other.kernel.foreign.mtus["eth0"] = 1400
    other.do(lambda _: other.kernel.moved.set())
    until(lambda: differences(other), "it is said there")
    (found,) = differences(other)
    words = "mtu 1450 is too large: the path of VTEP 192.0.2.2 allows 1350 bytes"
    assert (found["owner"], found["object"], found["what"]) == ("network blue", "mtu", words)
    until(lambda: notes(one)["host-2"] == [f"network blue: {words}"], "it is said here")
    other.kernel.foreign.mtus["eth0"] = 1500
    other.do(lambda _: other.kernel.moved.set())
    until(lambda: notes(one)["host-2"] == [], "it is over")
    settled(one, other)
