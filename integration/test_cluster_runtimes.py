"""One overlay, three hosts, and on each another way of running containers: they find each other by name.

Docker on the first, podman and a CNI runtime on the second, bare namespaces on the third.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from shutil import which

import pytest
from harness import BIN_DIR, Dockerd, Namespace, Podman, Runtime, cni_attached, container, resolve, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd
from harness.dockerd import SOCKET

pytestmark = [needs_etcd, pytest.mark.skipif(which("podman") is None, reason="needs podman (make setup)")]

GATEWAY = "10.90.3.1"


@dataclass(frozen=True)
class End:
    """A container of some runtime. `finds`: what it gets for a name, as its own C library asks; it pings that, too."""

    name: str
    ip: str
    finds: Callable[[str], str]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Cluster, Dockerd]]:
    with cluster(0) as it:
        it.add("--docker-host", f"unix://{SOCKET}")
        it.add()
        it.add()
        dockerd = Dockerd(it.members[0].host)
        dockerd.docker("network", "create", "-d", "bridge", "warm-up")  # what dockerd makes once and keeps
        dockerd.docker("run", "--rm", "--network", "warm-up", "-p", "1", "bb:1", "true")
        dockerd.docker("network", "rm", "warm-up")
        yield it, dockerd


def finds(one: End, other: End) -> bool:
    """Whether one has another's address for its name, and reaches it."""
    try:
        return one.finds(other.name) == other.ip
    except (AssertionError, ValueError, OSError):
        return False


def pinged(said: str) -> str:
    """Return the address that `ping` has had for a name."""
    assert " 0% packet loss" in said, said
    return said.partition("(")[2].partition(")")[0]


@contextmanager
def docker_end(dockerd: Dockerd, name: str) -> Iterator[End]:
    with container(dockerd, "--network", "blue", "--name", name) as box:
        yield End(name, box.ip(), lambda other: pinged(box.exec("ping", "-4", "-c", "1", other)))


@contextmanager
def podman_end(podman: Podman, name: str) -> Iterator[End]:
    podman.run(name, "--network", "blue")
    ip = podman.networks(name)["blue"]["IPAddress"]
    yield End(name, ip, lambda other: pinged(podman("exec", name, "ping", "-4", "-c", "1", other)))
    podman("rm", "-f", "-t", "0", name)


def bare_end(place: Namespace, name: str, ip: str) -> End:
    """A namespace that has no files of its own, and so asks the name server that it was told."""

    def finds(other: str) -> str:
        (address,) = resolve(place, GATEWAY, other).data
        assert pinged(place.exec("busybox", "ping", "-c", "1", address)) == address
        return address

    return End(name, ip, finds)


@contextmanager
def cni_end(runtime: Runtime, name: str) -> Iterator[End]:
    with cni_attached(runtime, args=f"K8S_POD_NAME={name}") as (place, one):
        yield bare_end(place, name, one.ip)


@contextmanager
def attached_end(it: Cluster, member: Member, name: str) -> Iterator[End]:
    with it.station(member, "blue", "--name", name) as place:
        yield bare_end(place, name, place.addresses[0])


def test_containers_of_all_runtimes_find_each_other_by_name_over_hosts(hosts: tuple[Cluster, Dockerd]) -> None:
    it, dockerd = hosts
    first, second, third = it.members
    with it.network("blue", "--subnet", "10.90.3.0/24"), ExitStack() as stack:
        dockerd.docker(
            *("network", "create", "-d", "pynet", "--ipam-driver", "pynet", "--ipam-opt", "name=blue"),
            *("-o", "mode=overlay", "-o", "name=blue", "blue"),
        )
        stack.callback(lambda: wait_until(lambda: first.has("blue"), what="blue is of the cluster still"))
        stack.callback(dockerd.docker, "network", "rm", "blue")
        second.cli("cni", "install", "--bin-dir", BIN_DIR)
        conflist = second.cli("cni", "config", "blue")
        listed = json.loads(conflist)
        runtime = Runtime(second.host, *listed["plugins"], name="blue", version=listed["cniVersion"])
        ends = [stack.enter_context(attached_end(it, third, "bare"))]
        # Each, as soon as it is there, finds all that were there, and is found by them: asked once.
        for begin in (
            lambda: docker_end(dockerd, "web"),
            lambda: podman_end(Podman(second.host, "blue", conflist), "pod"),
            lambda: cni_end(runtime, "cnitool"),
            lambda: attached_end(it, third, "late"),
            lambda: docker_end(dockerd, "db"),
        ):
            fresh = stack.enter_context(begin())
            for other in ends:
                it.at_once(partial(finds, other, fresh), f"{other.name} finds {fresh.name}")
                it.at_once(partial(finds, fresh, other), f"{fresh.name} finds {other.name}")
            ends.append(fresh)
        (pool,) = (pool for pool in third.netplug.json("ipam", "ls") if pool["networks"] == ["blue"])
        held = {lease["address"]: lease["host"] for lease in pool["leases"] if lease["owner_kind"] == "endpoint"}
        for member in it.members:
            names = {one["names"][0]: one["addresses"] for one in member.netplug.json("dns", "ls", "--network", "blue")}
            assert names == {end.name: [end.ip] for end in ends}
            wait_until(lambda member=member: member.netplug.drift() == "", what="no drift")  # type: ignore[misc]
        assert held.keys() == {end.ip for end in ends}
    for member in it.members:
        wait_until(lambda member=member: member.netplug.json("dns", "ls") == [], what="the end of all names")  # type: ignore[misc]
