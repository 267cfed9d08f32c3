"""Containers of two dockerds on one network of a cluster: the issue's main path."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import CommandError, Dockerd, container, resolve, wait_until
from harness.cluster import Cluster, Member, cluster, needs_etcd, refused
from harness.dockerd import SOCKET
from harness.traffic import Stream

pytestmark = needs_etcd

CREATE = ("network", "create", "-d", "pynet", "--ipam-driver", "pynet")


def named(name: str, *options: str) -> list[str]:
    """Return the arguments by which a host's docker makes, or joins, a network of the cluster."""
    return [*CREATE, "--ipam-opt", f"name={name}", "-o", "mode=overlay", "-o", f"name={name}", *options, name]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Cluster, list[Dockerd]]]:
    with cluster(2, "--docker-host", f"unix://{SOCKET}") as it:
        dockerds = [Dockerd(member.host) for member in it.members]
        for dockerd in dockerds:  # what dockerd makes once and keeps
            dockerd.docker("network", "create", "-d", "bridge", "warm-up")
            dockerd.docker("run", "--rm", "--network", "warm-up", "-p", "1", "bb:1", "true")
            dockerd.docker("network", "rm", "warm-up")
        yield it, dockerds


def gone(member: Member, name: str) -> None:
    wait_until(lambda: not member.has(name), what=f"end of {name} on {member.host.name}")


def test_containers_of_two_dockerds_reach_each_other(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    it, (here, there) = hosts
    here.docker(*named("blue"))
    wait_until(lambda: it.members[1].has("blue"), what="blue on the other host")
    there.docker(*named("blue"))
    config = [dockerd.inspect("blue")["IPAM"]["Config"][0] for dockerd in (here, there)]
    assert config[0] == config[1]
    with (
        container(here, "--network", "blue", "--name", "web") as one,
        container(there, "--network", "blue", "--name", "db") as other,
        it.station(it.members[1], "blue") as bare,
    ):
        assert one.ip() != other.ip()
        wait_until(lambda: one.pings(other.ip()), what="the other is reached")
        assert other.pings(one.ip())
        assert one.pings(bare.addresses[0])
        assert bare.pings(one.ip())
        for member in it.members:
            (pool,) = (pool for pool in member.netplug.json("ipam", "ls") if pool["networks"] == ["blue"])
            held = {lease["address"]: lease["host"] for lease in pool["leases"]}
            assert held[one.ip()] == it.members[0].host.name
            assert held[other.ip()] == it.members[1].host.name
            wait_until(lambda member=member: not member.netplug.drift(), what="no drift")  # type: ignore[misc]
    here.docker("network", "rm", "blue")
    # The other host's Docker has it, and so it is on this one too.
    wait_until(lambda: it.members[0].has("blue"), what="blue is of the cluster still")
    there.docker("network", "rm", "blue")
    for member in it.members:
        gone(member, "blue")
        wait_until(lambda member=member: member.netplug.json("ipam", "ls") == [], what="the end of its pool")  # type: ignore[misc]


def test_containers_that_docker_starts_before_etcd_answers_come_back(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    """After a power failure: docker starts a container once when it starts, and no more if its network is refused."""
    it, (here, _) = hosts
    member = it.members[0]
    here.docker(*named("blue"))
    with (
        container(here, "--network", "blue", "--name", "web", "--restart", "always") as web,
        it.station(it.members[1], "blue") as bare,
        ThreadPoolExecutor(1) as pool,
    ):
        here.stop()
        it.etcd.kill()
        member.netplug.kill()
        member.netplug.start()
        started = pool.submit(here.start)
        wait_until(lambda: "claim.waits" in member.netplug.log.read_text(), what="docker has asked")
        it.etcd.start()
        started.result()
        wait_until(lambda: web.running and web.pings(bare.addresses[0]), what="it is back")
        wait_until(lambda: not member.netplug.drift(), what="no drift")
    here.docker("network", "rm", "blue")
    for there in it.members:
        gone(there, "blue")


def test_a_docker_that_starts_while_etcd_is_away_has_its_networks_later(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    """When it starts it asks for the pools of its networks, and for those that are refused it would not ask again."""
    it, (here, _) = hosts
    here.docker(*named("blue"))
    with container(here, "--network", "blue", "--name", "web") as web, it.station(it.members[1], "blue") as bare:
        here.stop()
        it.etcd.kill()
        here.start()
        with pytest.raises(CommandError, match=r"cannot be reached|does not answer"):
            here.docker("start", "web")
        it.etcd.start()
        wait_until(lambda: here.docker("start", "web"), what="it starts", ignoring=(CommandError,))
        wait_until(lambda: web.pings(bare.addresses[0]), what="it is back")
        wait_until(lambda: not it.members[0].netplug.drift(), what="no drift")
    here.docker("network", "rm", "blue")
    for member in it.members:
        gone(member, "blue")


def test_a_network_of_two_dockerds_is_updated_under_its_containers(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    it, dockerds = hosts
    here, there = it.members
    for dockerd, member in zip(dockerds, it.members, strict=True):
        dockerd.docker(*named("blue", "-o", "rate=100mbit"))
        wait_until(lambda member=member: member.has("blue"), what="blue")  # type: ignore[misc]
    with (
        container(dockerds[0], "--network", "blue") as one,
        container(dockerds[1], "--network", "blue") as other,
        Stream(one, other, other.ip()) as stream,
    ):
        it.update(there, "blue", "-o", "mtu=1300", "-o", "rate=50mbit")
        for place in (one, other):
            assert "mtu 1300" in place.exec("ip", "link", "show", "eth0")
        code, text = refused(here, "network", "update", "blue", "--subnet-add", "10.91.1.0/24")
        assert (code, "takes no other subnets while it lives" in text) == (1, True), text
    assert stream.lost == []
    for dockerd in dockerds:
        dockerd.docker("network", "rm", "blue")
    for member in it.members:
        gone(member, "blue")
        wait_until(lambda member=member: not member.netplug.drift(), what="no drift")  # type: ignore[misc]


def test_a_network_of_the_cluster_is_taken_up_by_docker_as_it_is(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    it, (here, _) = hosts
    with it.network("green", "--subnet", "10.90.7.0/24", "--gateway", "10.90.7.254") as net:
        for options, words in (
            (("-o", "vni=77"), "has option vni"),
            (("--internal",), "has internal False, not True"),
            (("--subnet", "10.90.8.0/24"), "has subnets 10.90.7.0/24, not 10.90.8.0/24"),
        ):
            with pytest.raises(CommandError, match=words):
                here.docker(*named(net, *options))
        here.docker(*named(net))
        assert here.inspect(net)["IPAM"]["Config"][0] == {"Subnet": "10.90.7.0/24", "Gateway": "10.90.7.254"}
        with container(here, "--network", net) as one, it.station(it.members[1], net) as other:
            assert one.pings(other.addresses[0])
        here.docker("network", "rm", net)
        wait_until(lambda: it.members[0].has(net), what="it is of the cluster still")


def test_the_unhealthy_are_left_out_on_other_hosts_too(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    it, (here, _) = hosts
    check = ("--health-cmd", "test -e /well", "--health-interval", "0.2s", "--health-retries", "1")
    with it.network("green", "--subnet", "10.90.7.0/24") as net:
        here.docker(*named(net))
        with (
            container(here, "--network", net, "--network-alias", "app") as well,
            container(here, "--network", net, "--network-alias", "app", *check) as ill,
            it.station(it.members[1], net) as bare,
        ):
            both = tuple(sorted((well.ip(), ill.ip())))

            def app() -> tuple[str, ...]:
                return resolve(bare, "10.90.7.1", f"app.{net}").data

            wait_until(lambda: app() == (well.ip(),), what="the unhealthy left out")
            ill.exec("touch", "/well")
            wait_until(lambda: app() == both, what="the healthy taken in")
        here.docker("network", "rm", net)
        wait_until(lambda: it.members[0].has(net), what="it is of the cluster still")


def test_docker_cannot_have_it_with_addresses_of_its_own(hosts: tuple[Cluster, list[Dockerd]]) -> None:
    _, (here, _) = hosts
    with pytest.raises(CommandError, match="docker network create -d pynet --ipam-driver pynet --ipam-opt name=blue"):
        here.docker("network", "create", "-d", "pynet", "-o", "mode=overlay", "-o", "name=red", "red")
