"""Networks of a cluster as dockerd asks for them, on several hosts with one real etcd."""

import asyncio
import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from clustered import Hosts, attach, create, detach, has, networks, update
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cli import CliError
from netplug.cluster.records import Definition
from netplug.daemon.life import Daemon
from netplug.drivers.steps import Route
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError

pytestmark = needs_etcd


SOON_S = 10.0
"""Less than that for which a network is kept out of Docker's way."""


class RefusedError(Exception):
    pass


def call(host: Living, method: str, **body: Any) -> dict[str, Any]:
    """Call the plugin as dockerd does.

    Raises:
        RefusedError: with its words.
    """
    connection = http.client.HTTPConnection("plugin")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(20)
        connection.sock.connect(str(host.settings.plugin_socket))
        connection.request("POST", f"/{method}", json.dumps(body))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    if response.status >= 400:
        raise RefusedError(answer["Err"])
    return answer


def ask(host: Living, name: str = "blue", subnet: str = "") -> tuple[str, str, str]:
    """Ask for a pool and a gateway; return the pool's id, the subnet and the gateway."""
    space = {"AddressSpace": "netplug-local", "SubPool": "", "V6": False, "Options": {"name": name}}
    pool = call(host, "IpamDriver.RequestPool", Pool=subnet, **space)
    kind = {"RequestAddressType": "com.docker.network.gateway"}
    gateway = call(host, "IpamDriver.RequestAddress", PoolID=pool["PoolID"], Address="", Options=kind)
    return pool["PoolID"], pool["Pool"], gateway["Address"]


def make(host: Living, ident: str, name: str = "blue", subnet: str = "", **options: str) -> str:
    """Make a network as `docker network create` does, and return its subnet."""
    _, pool, gateway = ask(host, name, subnet)
    build(host, ident, name, pool, gateway, **options)
    return pool


def build(host: Living, ident: str, name: str, pool: str, gateway: str, **options: str) -> None:
    """Create a network whose pool was requested; dockerd repeats it if the answer was lost."""
    data = [{"AddressSpace": "netplug-local", "Pool": pool, "Gateway": gateway}]
    generic = {"mode": "overlay", "name": name, **options}
    wrapped = {"com.docker.network.generic": generic}
    call(host, "NetworkDriver.CreateNetwork", NetworkID=ident * 64, Options=wrapped, IPv4Data=data, IPv6Data=[])


def end(host: Living, ident: str, pool: str) -> None:
    """Remove it as `docker network rm` does."""
    call(host, "IpamDriver.ReleasePool", PoolID=f"global/{pool}")
    call(host, "NetworkDriver.DeleteNetwork", NetworkID=ident * 64)


def only(host: Living) -> dict[str, Any]:
    (net,) = host.client.get("networks")["networks"]
    return dict(net)


def nothing_left(host: Living) -> bool:
    return host.client.get("ipam")["pools"] == [] and not host.kernel._world.state


def test_each_docker_has_the_network_under_its_own_id(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    pool = make(one, "a")
    has(two)
    assert make(two, "b") == pool
    assert (only(one)["id"], only(two)["id"]) == ("a" * 64, "b" * 64)
    assert only(one)["options"] == only(two)["options"]
    end(one, "a", pool)
    until(lambda: networks(one) == ["blue"] and only(one)["front_end"] == "cli", "it is of the cluster alone")
    end(two, "b", pool)
    for host in (one, two):
        until(lambda host=host: networks(host) == [], "it is gone")  # type: ignore[misc]
        until(lambda host=host: nothing_left(host), "its pool and all in the kernel are gone")  # type: ignore[misc]


@pytest.mark.own_etcd
def test_docker_that_starts_without_the_store_gets_the_pools_of_its_networks(hosts: Hosts, etcd: Member) -> None:
    """It asks for them once, and has none until it starts again if that is refused."""
    one = hosts.start(1)
    pool = make(one, "a")
    etcd.stop()
    again = ask(one, subnet=pool)
    assert again[0] == f"global/{pool}"
    with pytest.raises(RefusedError, match=r"does not answer|cannot be reached"):
        call(one, "IpamDriver.RequestAddress", PoolID=again[0], Address="", Options={})
    with pytest.raises(RefusedError, match=r"does not answer|cannot be reached"):
        ask(one, subnet="10.99.0.0/24")
    etcd.start()
    assert ask(one, subnet=pool) == again
    for _ in range(2):
        call(one, "IpamDriver.ReleasePool", PoolID=again[0])
    end(one, "a", pool)
    until(lambda: nothing_left(one), "all is gone")


def test_a_network_that_docker_began_to_make_is_gone_after_a_crash(hosts: Hosts, etcd: Member) -> None:
    """Docker repeats the request without its body, and then forgets it."""
    one, two = hosts.start(1), hosts.start(2)
    _, pool, gateway = ask(one)

    async def dies(*_: object) -> None:
        raise RuntimeError

    one.do(lambda daemon: setattr(daemon.cluster.networks, "_build_defined", dies))
    one.do(lambda daemon: setattr(daemon.cluster.networks, "_release", dies))
    with pytest.raises(RefusedError):
        build(one, "a", "blue", pool, gateway)
    assert len(etcd.records("cluster/networks/")) == 1
    one.stop()
    has(two)
    one = hosts.start(1)
    until(lambda: not etcd.records("cluster/networks/") and not etcd.records("cluster/members/"), "nobody uses it")
    for host in (one, two):
        until(lambda host=host: networks(host) == [], "it is gone")  # type: ignore[misc]


def test_a_network_that_only_a_forgotten_host_had_is_gone_after_a_crash(hosts: Hosts, etcd: Member) -> None:
    """Nobody can ask for it again: the host is not known any more."""
    one, two = hosts.start(1), hosts.start(2)
    make(two, "b")
    has(one)
    two.stop()
    hosts.past_the_grace(etcd)

    async def dies(*_: object) -> None:
        raise RuntimeError

    one.do(lambda daemon: setattr(daemon.cluster.networks, "delete_if_unused", dies))
    with pytest.raises(CliError):
        one.client.delete("hosts", "host-2")
    assert [it["name"] for it in one.client.get("hosts")["hosts"]] == ["host-1"]
    one.stop()
    assert len(etcd.records("cluster/networks/")) == 1
    one = hosts.start(1)
    until(lambda: networks(one) == [] and not etcd.records("cluster/networks/"), "it is gone")


def test_a_network_that_another_host_is_deleting_is_made_after_that(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    pool = make(one, "a")
    has(two)
    (before,) = etcd.records("cluster/networks/")
    go_on, looks = threading.Event(), list[None]()

    def pause(daemon: Daemon) -> None:
        catalogue = daemon.cluster.mirroring.catalogue
        remove = catalogue.remove

        async def later(ident: str, definition: Definition, revision: int) -> None:
            await asyncio.to_thread(go_on.wait, 20)
            await remove(ident, definition, revision)

        catalogue.remove = later  # type: ignore[method-assign]

    def count(daemon: Daemon) -> None:
        catalogue = daemon.cluster.mirroring.catalogue
        look = catalogue.all

        async def looked() -> dict[str, Definition]:
            looks.append(None)
            return await look()

        catalogue.all = looked  # type: ignore[method-assign]

    one.do_and_get(pause)
    with ThreadPoolExecutor(2) as pool_of:
        try:
            ending = pool_of.submit(end, one, "a", pool)
            until(lambda: etcd.records(before)[before]["deleting"], "it is being deleted")
            _, pool, gateway = ask(two)
            two.do_and_get(count)
            making = pool_of.submit(build, two, "b", "blue", pool, gateway)
            until(lambda: making.done() or len(looks) > 3, "it waits")
            if making.done():
                attach(two)
        finally:
            go_on.set()
        ending.result()
        making.result()
    attach(two)
    (after,) = etcd.records("cluster/networks/")
    assert after != before
    detach(two)
    end(two, "b", pool)
    until(lambda: not etcd.records("cluster/networks/"), "it is gone")


def test_networks_that_docker_makes_at_once_have_subnets_of_their_own(hosts: Hosts) -> None:
    """It asks for a pool first; a user may create a network before Docker does."""
    one = hosts.start(1)
    with ThreadPoolExecutor(4) as at_once:
        asked = list(at_once.map(lambda name: ask(one, name), ("red", "green", "blue")))
    create(one, "grey")
    for (_, pool, gateway), name, ident in zip(asked, ("red", "green", "blue"), "abc", strict=True):
        build(one, ident, name, pool, gateway)
    subnets = [net["subnets"][0]["subnet"] for net in one.client.get("networks")["networks"]]
    assert len(set(subnets)) == len(subnets) == 4
    for (_, pool, _), ident in zip(asked, "abc", strict=True):
        end(one, ident, pool)
    assert networks(one) == ["grey"]


def test_docker_does_not_join_a_network_whose_deletion_has_just_begun(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    make(one, "a")
    has(two)
    (key,) = etcd.records("cluster/networks/")
    _, pool, gateway = ask(two)

    def delete(daemon: Daemon) -> None:
        catalogue = daemon.cluster.mirroring.catalogue
        begin = catalogue.begin_release

        async def deleted_first(ident: str) -> None:
            mark = {"deleting": True, "deleter": one.do_and_get(lambda it: it.cluster.me)}
            etcd.write(key, {**etcd.records(key)[key], **mark})
            await begin(ident)

        catalogue.begin_release = deleted_first  # type: ignore[method-assign]

    one.wait_for(lambda daemon: daemon.cluster.mirroring.lock.acquire())  # as who deletes it
    two.do_and_get(delete)
    with pytest.raises(RefusedError, match="network 'blue' is being deleted by host host-1"):
        build(two, "b", "blue", pool, gateway)
    one.do_and_get(lambda daemon: daemon.cluster.mirroring.lock.release())
    assert len(etcd.records("cluster/members/")) == 1


def test_the_last_docker_removes_a_network_that_is_changed_meanwhile(hosts: Hosts, etcd: Member) -> None:
    one = hosts.start(1)
    pool = make(one, "a")
    (key,) = etcd.records("cluster/networks/")

    def change(daemon: Daemon) -> None:
        catalogue = daemon.cluster.mirroring.catalogue
        refuse = catalogue.refuse_used

        async def changed_after(ident: str, name: str) -> None:
            await refuse(ident, name)
            if "labels" not in etcd.records(key)[key]:
                etcd.write(key, {**etcd.records(key)[key], "labels": {"team": "net"}, "version": 1})

        catalogue.refuse_used = changed_after  # type: ignore[method-assign]

    one.do_and_get(change)
    end(one, "a", pool)
    until(lambda: not etcd.records("cluster/networks/"), "it is gone")


@pytest.mark.parametrize("alive", [False, True])
def test_the_docker_of_a_forgotten_host_that_comes_back_has_its_networks(
    hosts: Hosts, etcd: Member, *, alive: bool
) -> None:
    """Or, somebody deletes all that a host has told, while its daemon lives."""
    one, two = hosts.start(1), hosts.start(2)
    pool = make(one, "a")
    has(two)
    make(two, "b")
    members = etcd.records("cluster/members/")
    me = two.do_and_get(lambda daemon: daemon.cluster.me)
    if alive:
        for key in (*members, f"cluster/hosts/{me}"):
            if me in key:
                etcd.delete(key)
        hosts.look_again(two)
    else:
        two.stop()
        hosts.past_the_grace(etcd)
        one.client.delete("hosts", "host-2")
        assert len(etcd.records("cluster/members/")) == 1
        two = hosts.start(2)
    until(lambda: etcd.records("cluster/members/") == members, "both have it")
    (before,) = etcd.records("cluster/networks/")
    end(one, "a", pool)
    has(one)
    with pytest.raises(CliError, match="docker has network 'blue' on host-2"):
        one.client.delete("networks", "blue")
    assert [*etcd.records("cluster/networks/")] == [before]


def test_runtimes_make_a_network_that_was_defined_a_moment_ago(hosts: Hosts) -> None:
    """By another host whose runtime has the same configuration, or by the daemon that died before it had answered."""
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    subnet = only(one)["subnets"][0]["subnet"]
    has(two)
    two.wait_for(_take_down)
    spec = NetworkSpec(
        name="blue", options={"mode": "overlay"}, subnets=(SubnetSpec(ip_network(subnet)),), front_end=FrontEnd.NETAVARK
    )
    other = replace(spec, subnets=(SubnetSpec(ip_network("10.9.9.0/24")),))
    with pytest.raises(NetplugError, match="exists and differs: subnet is"):
        two.wait_for(lambda daemon: daemon.cluster.networks.create(other))
    two.wait_for(_take_down)
    made = two.wait_for(lambda daemon: daemon.cluster.networks.create(spec))
    assert made.network.id == only(one)["id"]
    with pytest.raises(CliError, match="exists already in the cluster"):
        create(two)


def test_runtimes_and_dockers_make_a_network_on_several_hosts_at_once(hosts: Hosts, etcd: Member) -> None:
    """All look, and find none; the second to define it finds that of the first."""
    one, two = hosts.start(1), hosts.start(2)
    spec = NetworkSpec(name="red", options={"mode": "overlay"}, front_end=FrontEnd.NETAVARK)
    others: list[Callable[[], object]] = []

    def look_first(daemon: Daemon) -> None:
        networks, define = daemon.cluster.networks, daemon.cluster.networks._define

        async def another_is_faster(ident: str, spec: NetworkSpec) -> Definition:
            await asyncio.to_thread(others.pop())
            return await define(ident, spec)

        networks._define = another_is_faster  # type: ignore[method-assign]

    two.do_and_get(look_first)
    others.append(lambda: one.wait_for(lambda daemon: daemon.cluster.networks.create(spec)))
    made = two.wait_for(lambda daemon: daemon.cluster.networks.create(spec))
    assert [made.network.id] == [net["id"] for net in one.client.get("networks")["networks"]]
    asked = [ask(host, subnet="10.9.9.0/24") for host in (one, two)]
    others.append(lambda: build(one, "a", "blue", *asked[0][1:]))
    build(two, "b", "blue", *asked[1][1:])
    assert len(etcd.records("cluster/networks/")) == 2
    assert len(etcd.records("cluster/members/")) == 2


async def _take_down(daemon: Any) -> None:
    """Have a network as if it had not come here yet."""
    async with daemon.cluster.mirroring.lock:
        (record,) = daemon.cluster.mirroring.shared().values()
        daemon.cluster.mirroring.expected_from_docker[record.network.id] = math.inf
        await daemon.cluster.networks._engine.networks.take_down(record.network.id, by=FrontEnd.CLI)


@pytest.mark.parametrize("made", ["by Docker", "by the command"])
def test_a_network_whose_answer_was_lost_is_made_again_once(hosts: Hosts, etcd: Member, made: str) -> None:
    one = hosts.start(1)
    if made == "by the command":
        create(one)
    _, pool, gateway = ask(one)
    build(one, "a", "blue", pool, gateway)
    one.stop()
    etcd.delete("cluster/members/")  # it died before it had written that
    one = hosts.start(1)
    until(lambda: one.do_and_get(lambda daemon: daemon.cluster.mirroring.catalogue.identity), "it is in the cluster")
    with pytest.raises(RefusedError, match="has option icc True, not False"):
        build(one, "a", "blue", pool, gateway, icc="false")
    build(one, "a", "blue", pool, gateway)
    assert [it["network"] for it in etcd.records("cluster/members/").values()] == ["a" * 64]
    for ident in "ab":
        with pytest.raises(RefusedError, match="exists on this host as Docker network 'aaaaaaaaaaaa'"):
            build(one, ident, "blue", pool, gateway)
    end(one, "a", pool)
    until(lambda: networks(one) == ([] if made == "by Docker" else ["blue"]), "it is as before")
    assert etcd.records("cluster/members/") == {}


def test_what_docker_removed_while_the_store_did_not_answer_is_gone_later(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    make(one, "a")
    has(two)
    etcd.pause()
    call(one, "NetworkDriver.DeleteNetwork", NetworkID="a" * 64)
    etcd.resume()
    for host in (one, two):
        until(lambda host=host: networks(host) == [], "it is gone")  # type: ignore[misc]
    assert etcd.records("cluster/members/") == {}


def test_the_network_of_the_command_outlives_docker(hosts: Hosts) -> None:
    one = hosts.start(1)
    create(one)
    pool = make(one, "a")
    assert only(one)["front_end"] == "docker"
    end(one, "a", pool)
    until(lambda: networks(one) == ["blue"] and only(one)["front_end"] == "cli", "it is there still")


def test_what_docker_left_to_others_goes_by_the_command(hosts: Hosts) -> None:
    one = hosts.start(1)
    pool = make(one, "a")
    attach(one)
    end(one, "a", pool)
    until(lambda: networks(one) == ["blue"] and only(one)["front_end"] == "cli", "it stays for the namespace")
    detach(one)
    one.client.delete("networks", "blue")
    until(lambda: networks(one) == [] and nothing_left(one), "it is gone")


def test_two_dockers_ask_at_once_and_have_the_same_or_are_told(hosts: Hosts) -> None:
    """Between the pool and the network another host may have defined it."""
    one, two = hosts.start(1), hosts.start(2)
    ask(two, subnet="10.9.8.0/24")
    make(one, "a", subnet="10.9.9.0/24")
    with pytest.raises(
        RefusedError, match=r"network 'blue' of the cluster has subnets 10\.9\.9\.0/24, not 10\.9\.8\.0"
    ):
        make(two, "b", subnet="10.9.8.0/24")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"vni": "77"}, r"has option vni \d+, not 77"), ({"icc": "false"}, "has option icc True, not False")],
)
def test_what_is_otherwise_on_the_other_hosts_is_named(hosts: Hosts, options: dict[str, str], words: str) -> None:
    one, two = hosts.start(1), hosts.start(2)
    make(one, "a")
    has(two)
    with pytest.raises(RefusedError, match=words):
        make(two, "b", **options)


def test_without_a_name_or_with_dockers_addresses_it_is_refused_with_the_command(hosts: Hosts) -> None:
    one = hosts.start(1)
    data = [{"AddressSpace": "", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16"}]
    wrapped = {"com.docker.network.generic": {"mode": "overlay", "name": "blue"}}
    with pytest.raises(RefusedError, match="--ipam-driver pynet --ipam-opt name=blue -o mode=overlay"):
        call(one, "NetworkDriver.CreateNetwork", NetworkID="a" * 64, Options=wrapped, IPv4Data=data, IPv6Data=[])


def test_docker_does_not_take_a_network_from_under_others(hosts: Hosts) -> None:
    one = hosts.start(1)
    create(one)
    attach(one)
    with pytest.raises(RefusedError, match="network 'blue' has endpoints on this host that are not docker's"):
        make(one, "a")
    detach(one)
    make(one, "a")
    # And afterwards they are in it together.
    attach(one)


def test_a_second_name_of_one_docker_is_refused(hosts: Hosts) -> None:
    """Docker would ask for a pool that overlaps nothing, for ever."""
    one = hosts.start(1)
    pool = make(one, "a")
    words = f"network 'blue' of the cluster exists on this host as Docker network '{'a' * 12}'"
    words += " (use that one, or remove it first)"
    for refused in (lambda: ask(one), lambda: make(one, "b", subnet=pool)):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert str(caught.value) == words
    one.do_and_get(lambda daemon: setattr(daemon.cluster.networks, "docker_name", {"a" * 64: "mine"}.get))
    with pytest.raises(RefusedError, match="exists on this host as Docker network 'mine'"):
        ask(one)
    assert only(one)["id"] == "a" * 64


def test_a_subnet_that_docker_would_not_take_is_refused(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    two.kernel.foreign.routes.append(Route(ip_network("10.224.0.0/16"), "tun0"))
    with pytest.raises(RefusedError, match=r"overlaps 10\.224\.0\.0/16, which this host uses .* add --subnet"):
        ask(two)
    make(two, "b", subnet="10.224.0.0/24")


@pytest.mark.parametrize("options", [{"vni": "77"}, {"icc": "false"}])
def test_a_refused_network_stays_as_it_was(hosts: Hosts, options: dict[str, str]) -> None:
    one = hosts.start(1)
    create(one)
    started = time.monotonic()
    with pytest.raises(RefusedError, match="of the cluster has option"):
        make(one, "a", **options)
    has(one)
    assert only(one)["front_end"] == "cli"
    assert time.monotonic() - started < SOON_S


def test_who_has_a_network_is_said_as_it_is(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    make(two, "b")
    with pytest.raises(CliError) as caught:
        two.client.delete("networks", "blue")
    assert str(caught.value) == "docker has network 'blue' here (docker network rm blue)"
    with pytest.raises(CliError, match=rf"network 'blue' exists already in the cluster \({'b' * 12}\)"):
        create(two)
    with pytest.raises(CliError) as caught:
        one.client.delete("networks", "blue")
    hint = "there: docker network rm blue, or if not found netplug network rm blue"
    assert str(caught.value) == f"docker has network 'blue' on host-2 ({hint})"


def test_a_network_that_docker_asked_for_and_did_not_make_is_built_again(hosts: Hosts) -> None:
    one = hosts.start(1)
    create(one)
    pool, _, _ = ask(one)
    assert networks(one) == []
    call(one, "IpamDriver.ReleasePool", PoolID=pool)
    hosts.way_is_clear(one)
    has(one)
    attach(one)


def test_a_host_that_is_forgotten_keeps_no_network(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    pool = make(two, "b")
    has(one)
    two.stop()
    assert networks(one) == ["blue"]
    hosts.past_the_grace(etcd)
    one.client.delete("hosts", "host-2")
    until(lambda: networks(one) == [], "it is gone with its last docker")
    until(lambda: nothing_left(one), "its pool and all in the kernel are gone")
    # Back again, its docker has it still, and so has the cluster.
    two = hosts.start(2)
    has(one)
    assert make(one, "a") == pool
    for host, ident in ((one, "a"), (two, "b")):
        end(host, ident, pool)
    for host in (one, two):
        until(lambda host=host: networks(host) == [], "it is gone")  # type: ignore[misc]


def test_networks_of_docker_follow_updates_on_all_hosts(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    pool = make(one, "a", rate="10mbit")
    has(two)
    make(two, "b", rate="10mbit")
    assert update(two, rate="20mbit", icc="false")["notes"] == []
    for host in (one, two):
        assert only(host)["front_end"] == "docker"
        assert {"rate": "20mbit", "icc": "false"}.items() <= only(host)["options"].items()
    # Docker takes no other subnets, wherever it has the network.
    create(one, "red")
    has(two, "red")
    make(two, "d", "red")
    for name, where in (("blue", "host-1, host-2"), ("red", "host-2")):
        with pytest.raises(CliError, match=f"docker on {where} has network '{name}', and takes no other subnets"):
            update(one, name, add_subnets=[{"subnet": "10.99.0.0/24"}])
    # A host whose daemon is down, with the options in its record that Docker gave.
    two.stop()
    update(one, rate="30mbit")
    two = hosts.start(2)
    until(lambda: by_name(two)["blue"]["options"]["rate"] == "30mbit", "it follows")
    assert by_name(two)["blue"]["front_end"] == "docker"
    # The docker of a further host makes the network as the first ones did, or as it is now; else it is told.
    three = hosts.start(3)
    has(three)
    with pytest.raises(RefusedError, match="has option rate"):
        make(three, "c", rate="11mbit")
    for rate in ("10mbit", "30mbit"):
        make(three, "c", rate=rate)
        assert by_name(three)["blue"]["options"]["rate"] == "30mbit"
        end(three, "c", pool)
        has(three)


def by_name(host: Living) -> dict[str, dict[str, Any]]:
    return {net["name"]: net for net in host.client.get("networks")["networks"]}
