"""Several daemons on one real etcd, each with a fake kernel: what one does, the others bring about."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from etcd_server import Member, needs_etcd, running
from living import Living, living, until

from netplug.cli import CliError
from netplug.drivers.api import HostFacts
from netplug.drivers.tunnel import Fdb, Neighbour, Vtep
from netplug.kernel.fake import FakeKernel

pytestmark = needs_etcd

Start = Callable[..., Living]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Member]:
    with running(tmp_path) as (member,):
        yield member


@pytest.fixture
def start(tmp_path: Path, etcd: Member) -> Iterator[Start]:
    """A function that starts the daemon of a host, by number."""
    with ExitStack() as stack:

        def start(number: int, kernel: FakeKernel | None = None, **flags: Any) -> Living:
            given = {"store": f"etcd://{etcd.host}", "vtep": f"192.0.2.{number}", "host_name": f"host-{number}"}
            return stack.enter_context(
                living(tmp_path / str(number), kernel=kernel or kernel_of(number), **{**given, **flags})
            )

        yield start


def kernel_of(number: int) -> FakeKernel:
    kernel = FakeKernel()
    kernel.foreign.links["eth0"] = ""
    kernel.foreign.addresses.add(("eth0", ip_interface(f"192.0.2.{number}/24")))
    kernel.foreign.facts = HostFacts(uplink="eth0")
    return kernel


def create(host: Living, name: str = "blue", **body: Any) -> dict[str, Any]:
    return host.client.post("networks", body={"name": name, "cluster": True, **body})


def attach(host: Living, netns: str = "lab1", network: str = "blue", **body: Any) -> dict[str, Any]:
    return host.client.post("attach", body={"network": network, "netns": netns, **body})


def detach(host: Living, netns: str = "lab1", network: str = "blue") -> None:
    host.client.post("detach", body={"network": network, "netns": netns})


def networks(host: Living) -> list[str]:
    return [net["name"] for net in host.client.get("networks")["networks"]]


def has(host: Living, name: str = "blue") -> None:
    until(lambda: name in networks(host), f"{name} on {host.settings.host_name}")


def reached(host: Living) -> set[str]:
    """Return the addresses that a host's kernel knows of others, by MAC and VTEP that it knows of them."""
    steps = list(host.kernel._world.state.values())
    at = {step.mac: str(step.vtep) for step in steps if isinstance(step, Fdb)}
    may = {str(step.address) for step in steps if isinstance(step, Vtep)}
    assert set(at.values()) == may
    found = [step for step in steps if isinstance(step, Neighbour) and step.address.version == 4]
    return {f"{step.address} at {at[step.mac]}" for step in found}


def reaches(host: Living, *wanted: str) -> None:
    until(lambda: reached(host) == set(wanted), f"{host.settings.host_name} reaches {wanted}")


def address_of(result: dict[str, Any]) -> str:
    return str(result["addresses"][0]).partition("/")[0]


def test_a_network_of_one_host_is_on_all_and_its_endpoints_are_reached(start: Start) -> None:
    one, two = start(1), start(2)
    made = create(one)
    has(two)
    assert two.client.get("networks", "blue")["id"] == made["id"]
    assert two.client.get("networks", "blue")["options"] == made["options"]
    here, there = attach(one), attach(two)
    assert address_of(here) != address_of(there)
    reaches(two, f"{address_of(here)} at 192.0.2.1")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    late = start(3)
    reaches(late, f"{address_of(here)} at 192.0.2.1", f"{address_of(there)} at 192.0.2.2")
    detach(one)
    reaches(two)
    reaches(late, f"{address_of(there)} at 192.0.2.2")
    with pytest.raises(CliError, match="network 'blue' has endpoints: 1 on host-2"):
        one.client.delete("networks", "blue")
    detach(two)
    one.client.delete("networks", "blue")
    for host in (two, late):
        until(lambda host=host: not networks(host), "it is gone")  # type: ignore[misc]
        assert host.client.get("diff")["differences"] == []
        assert not host.kernel._world.state
