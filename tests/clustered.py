"""Daemons on one real etcd, each with a fake kernel: for tests of what hosts bring about together."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from etcd_server import Member
from living import Living, living, until

from netplug.cluster.identity import NOT_YET
from netplug.daemon.life import Daemon
from netplug.drivers.api import HostFacts
from netplug.drivers.steps import Element
from netplug.drivers.tunnel import Fdb, Neighbour
from netplug.drivers.tunnel_tables import of_peers
from netplug.kernel.fake.kernel import FakeKernel


class Hosts:
    """Starts the daemons of hosts, by number; `start` with a number that was used before starts its next life."""

    def __init__(self, folder: Path, store: str, stack: ExitStack) -> None:
        self._folder = folder
        self.store = store
        self._stack = stack
        self._started: dict[int, Living] = {}
        self.kernels: dict[int, FakeKernel] = {}

    def start(self, number: int, *, refused: bool = False, **flags: Any) -> Living:
        """Start it; `marks`: of its machine. `refused`: the store answers, and refuses all."""
        kernel = self.kernels.setdefault(number, kernel_of(number))
        given = {"store": self.store, "vtep": f"192.0.2.{number}", "host_name": f"host-{number}", **flags}
        it = self._started[number] = self._stack.enter_context(
            living(self._folder / str(number), kernel=kernel, **given)
        )
        until(lambda: refused or it.do_and_get(has_asked), f"host-{number} was answered by the store, or not")
        return it

    def copy(self, number: int, to: int) -> None:
        """Copy a host's disk, as it is now, to another machine."""
        shutil.copytree(self._folder / str(number), self._folder / str(to), ignore=lambda *_: {"run", "plugins"})

    def past_the_grace(self, etcd: Member) -> None:
        """Let the time pass for which a host that was stopped may be about to start again."""
        for key in etcd.records("cluster/stopped/"):
            etcd.delete(key)

    @property
    def living(self) -> list[Living]:
        """The daemons that have not been stopped."""
        return [it for it in self._started.values() if it.alive]

    def way_is_clear(self, host: Living) -> None:
        """Let the time pass for which a host's daemon waits until Docker has made a network."""
        host.do(lambda daemon: daemon.cluster.mirroring.expected_from_docker.clear())
        self.look_again(host)

    def look_again(self, host: Living) -> None:
        """Have a host's daemon look at everything, as it does on its timer."""
        host.do(lambda daemon: daemon.cluster.view.touch_all())


@contextmanager
def hosts_on(folder: Path, store: str) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(folder, store, stack)


def has_asked(daemon: Daemon) -> bool:
    """Tell whether a daemon takes part in its cluster, or knows why not: its start waits for that a second at most."""
    if daemon.cluster is None:
        return True
    mirroring = daemon.cluster.mirroring
    if mirroring._store.refusal not in {"", NOT_YET}:
        return True
    return bool(mirroring.catalogue.identity or mirroring._breaker.why)


def kernel_of(number: int) -> FakeKernel:
    kernel = FakeKernel()
    kernel.foreign.links["eth0"] = ""
    kernel.foreign.addresses.add(("eth0", ip_interface(f"192.0.2.{number}/24")))
    kernel.foreign.facts = HostFacts(uplink="eth0")
    return kernel


def apart(number: int = 0) -> list[dict[str, str]]:
    """Return a subnet whose first half is for addresses that a test chooses: hosts take others, each at random."""
    return [{"subnet": f"10.224.{number}.0/24", "range": f"10.224.{number}.128/25"}]


def create(host: Living, name: str = "blue", **body: Any) -> dict[str, Any]:
    return host.client.post("networks", body={"name": name, "cluster": True, **body})


def update(host: Living, name: str = "blue", *, dry_run: bool = False, **body: Any) -> dict[str, Any]:
    """Change a network; options by their keys, all else as the request has it."""
    parts = {"internal", "labels", "remove_labels", "add_subnets", "remove_subnets"}
    given = {key: value for key, value in body.items() if key in parts}
    given["options"] = {key: value for key, value in body.items() if key not in parts}
    return host.client.patch("networks", name, body={**given, "dry_run": dry_run})


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
    return reached_by(host.kernel)


def reached_by(kernel: FakeKernel) -> set[str]:
    """As `reached`; what does not fit together, as in the midst of a change, is named too."""
    steps = list(kernel._world.state.values())
    at = {step.mac: str(step.vtep) for step in steps if isinstance(step, Fdb)}
    accepted = (step for step in steps if isinstance(step, Element) and of_peers(step) and step.set != "remote")
    may = {step.item.partition(" ")[0] for step in accepted}
    found = [step for step in steps if isinstance(step, Neighbour) and step.address.version == 4]
    odd = {f"{vtep}: allowed or used alone" for vtep in may ^ set(at.values())}
    odd |= {f"{mac}: nobody's" for mac in at.keys() - {step.mac for step in steps if isinstance(step, Neighbour)}}
    return {f"{step.address} at {at.get(step.mac, 'nowhere')}" for step in found} | odd


def reaches(host: Living, *wanted: str) -> None:
    until(lambda: reached(host) == set(wanted), f"{host.settings.host_name} reaches {wanted}")


def claim(etcd: Member, where: str, address: str) -> None:
    """Have an address claimed for an endpoint of a host, by its key, as a host does that tells of it."""
    _, host, endpoint = where.removeprefix("cluster/endpoints/").split("/")
    gateways = [key for key, value in etcd.records("ipam/leases/").items() if value["owner"]["kind"] == "gateway"]
    (prefix,) = {key.rpartition("/")[0] for key in gateways}
    lease = {"pool": unquote(prefix.rpartition("/")[2]), "address": address, "host": host}
    etcd.write(f"{prefix}/{address}", {**lease, "owner": {"kind": "endpoint", "id": endpoint, "name": ""}})


def address_of(result: dict[str, Any]) -> str:
    return str(result["addresses"][0]).partition("/")[0]
