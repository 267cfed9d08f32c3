"""Several daemons on one real etcd: what one does, the others bring about."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clustered import Hosts, address_of, apart, attach, claim, create, detach, has, kernel_of, networks, reaches
from etcd_server import Member, needs_etcd
from living import Living, settings_in, until

from netplug.cli import NO, CliError
from netplug.cluster.records import Definition
from netplug.daemon.life import Daemon
from netplug.store.api import Event

pytestmark = needs_etcd


def test_a_network_of_one_host_is_on_all_and_its_endpoints_are_reached(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    made = create(one)
    has(two)
    assert two.client.get("networks", "blue")["id"] == made["id"]
    assert two.client.get("networks", "blue")["options"] == made["options"]
    here, there = attach(one), attach(two)
    assert address_of(here) != address_of(there)
    reaches(two, f"{address_of(here)} at 192.0.2.1")
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    late = hosts.start(3)
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
        # What all networks share goes after the last of them is off the list.
        until(lambda host=host: not host.kernel._world.state, "nothing is left")  # type: ignore[misc]


def test_a_network_that_was_just_deleted_can_be_created_again(hosts: Hosts) -> None:
    """The events of its deletion come late, so it still seems to be defined."""
    one = hosts.start(1)
    made = create(one)
    until(lambda: one.do_and_get(lambda daemon: made["id"] in daemon.cluster.view.networks()), "the event has come")
    late: list[Event] = []
    one.do_and_get(lambda daemon: setattr(daemon.cluster.view, "_on_event", late.append))
    one.client.delete("networks", "blue")
    one.wait_for(lambda daemon: daemon.cluster.mirroring.mirror())
    assert create(one)["id"] != made["id"]
    assert networks(one) == ["blue"]


def test_a_network_that_another_host_has_just_deleted_can_be_created(hosts: Hosts) -> None:
    """The events come while it is created."""
    one, two = hosts.start(1), hosts.start(2)
    made = create(one)
    has(two)
    late: list[Event] = []

    def hold(daemon: Daemon) -> None:
        view, catalogue = daemon.cluster.view, daemon.cluster.mirroring.catalogue
        apply, look = view._on_event, catalogue.all

        async def looked() -> dict[str, Definition]:
            found = await look()
            while late:
                apply(late.pop(0))
            return found

        view._on_event, catalogue.all = late.append, looked  # type: ignore[method-assign]

    two.do_and_get(hold)
    one.client.delete("networks", "blue")
    until(lambda: any(it.key.endswith(made["id"]) and it.record is None for it in late), "the event has come")
    assert create(two)["id"] != made["id"]
    has(one)


def test_a_deletion_that_ends_late_keeps_the_addresses_of_the_next_network(hosts: Hosts, etcd: Member) -> None:
    """Two hosts delete a network at once; after the first, its subnet is that of a new network."""
    one, two = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(two)
    (before,) = etcd.records("cluster/networks/")
    go_on = threading.Event()

    def pause(daemon: Daemon) -> None:
        catalogue = daemon.cluster.mirroring.catalogue
        remove = catalogue.remove

        async def later(*args: Any) -> None:
            await asyncio.to_thread(go_on.wait, 20)
            await remove(*args)

        catalogue.remove = later  # type: ignore[method-assign]

    one.do_and_get(pause)
    with ThreadPoolExecutor() as pool:
        try:
            deleting = pool.submit(one.client.delete, "networks", "blue")
            until(lambda: etcd.records(before)[before]["deleting"], "it is being deleted")
            for key in [*etcd.records("ipam/leases/"), before]:  # the other host ends it
                etcd.delete(key)
            until(lambda: networks(two) == [], "it is gone")
            create(two, "red", subnets=apart())
            attach(two, network="red")
            leases = etcd.records("ipam/leases/")
        finally:
            go_on.set()
        deleting.result()
    assert etcd.records("ipam/leases/") == leases
    assert len(leases) == 2


def test_labels_and_the_time_of_creation_are_the_same_on_all_hosts(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    made = create(one, labels={"team": "net"})
    has(two)
    found = two.client.get("networks", "blue")
    assert (found["labels"], found["created"]) == ({"team": "net"}, made["created"])


def test_pruning_keeps_what_another_host_is_in_and_removes_the_rest_from_all(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    create(one, "red")
    has(two, "red")
    attach(two)
    for dry_run in (True, False):
        found = one.client.post("networks", "prune", body={"dry_run": dry_run})
        assert [row["name"] for row in found["removed"]] == ["red"]
        assert [row["reason"] for row in found["kept"]] == ["network 'blue' has endpoints: 1 on host-2"]
    until(lambda: networks(two) == ["blue"], "it is gone there too")


@pytest.mark.own_etcd
def test_pruning_removes_a_hosts_own_networks_while_the_store_is_away(hosts: Hosts, etcd: Member) -> None:
    one = hosts.start(1)
    create(one)
    one.client.post("networks", body={"name": "own"})
    etcd.stop()
    found = one.client.post("networks", "prune")
    assert [row["name"] for row in found["removed"]] == ["own"]
    assert [(row["name"], row["reason"][:6]) for row in found["kept"]] == [("blue", "store:")]


def test_networks_get_vnis_and_subnets_of_their_own(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    made = [create(host, f"net{n}", ipv6=True) for n, host in enumerate((one, two, one, two))]
    assert len({net["options"]["vni"] for net in made}) == 4
    assert len({subnet["subnet"] for net in made for subnet in net["subnets"]}) == 8
    # IPv6 subnets are of a prefix that all hosts have in common.
    assert len({net["subnets"][1]["subnet"][:14] for net in made}) == 1
    for host in (one, two):
        for net in made:
            has(host, net["name"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "blue"}, "network 'blue' exists already in the cluster"),
        ({"options": {"vni": "5000"}}, "option vni=5000: network 'blue' of the cluster uses it on UDP port 4789"),
        (
            {"subnets": [{"subnet": "10.9.0.0/16"}]},
            "subnet 10.9.0.0/16 overlaps 10.9.8.0/24 of network 'blue' of the cluster",
        ),
    ],
    ids=["name", "vni", "subnet"],
)
def test_what_another_network_has_is_refused_with_its_name(hosts: Hosts, body: dict[str, object], message: str) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one, options={"vni": "5000"}, subnets=[{"subnet": "10.9.8.0/24"}])
    with pytest.raises(CliError) as caught:
        create(two, **{"name": "red", **body})
    assert message in str(caught.value)
    has(two)
    assert networks(one) == networks(two) == ["blue"]


def test_of_two_hosts_that_define_the_same_at_once_one_does(hosts: Hosts) -> None:
    living = [hosts.start(number) for number in (1, 2, 3)]

    def define(n: int) -> str:
        try:
            return str(create(living[n % 3], "blue", subnets=[{"subnet": "10.9.8.0/24"}])["id"])
        except CliError as exc:
            return str(exc)

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(define, range(6)))
    made = [answer for answer in answers if len(answer) == 64]
    assert len(made) == 1
    assert all("'blue' exists already" in answer for answer in answers if answer not in made)
    for host in living:
        has(host)
        assert [net["id"] for net in host.client.get("networks")["networks"]] == made


def test_without_a_cluster_a_network_over_hosts_is_refused(hosts: Hosts) -> None:
    alone = hosts.start(1, store="sqlite", vtep="")
    for body in ({"cluster": True}, {"options": {"mode": "overlay"}}):
        with pytest.raises(CliError, match="this daemon is not part of a cluster") as caught:
            alone.client.post("networks", body={"name": "blue", **body})
        assert caught.value.code == NO


def test_a_network_of_one_host_alone_is_refused_for_the_cluster(hosts: Hosts) -> None:
    with pytest.raises(CliError, match="a network of mode 'bridge' cannot span several hosts"):
        create(hosts.start(1), options={"mode": "bridge"})


def test_what_a_host_cannot_build_it_says_to_who_asks_for_it(hosts: Hosts) -> None:
    """Hard case 11: a stranger on one host has the VNI; the others go on."""
    one, two = hosts.start(1), hosts.start(2)
    with pytest.raises(CliError, match=r"subnet 192\.0\.2\.0/24"):
        create(one, subnets=[{"subnet": "192.0.2.0/24"}])
    assert networks(one) == networks(two) == []
    two.client.post("networks", body={"name": "red", "subnets": [{"subnet": "10.9.8.0/24"}]})
    create(one, subnets=[{"subnet": "10.9.8.0/24"}])
    until(lambda: "cannot be built on this host" in refusal_of(two), "the refusal")
    assert "subnet 10.9.8.0/24 overlaps 10.9.8.0/24 of network 'red'" in refusal_of(two)
    attach(one)
    # And when the obstacle goes, it is built.
    two.client.delete("networks", "red")
    two.stop()
    two = hosts.start(2)
    has(two)
    attach(two, "lab2")


def refusal_of(host: Living) -> str:
    try:
        attach(host, "lab2")
    except CliError as exc:
        return str(exc)
    return ""


def test_what_names_the_vtep_is_found_on_this_host(hosts: Hosts) -> None:
    one = hosts.start(1, vtep="eth0")
    create(one)
    attach(one)
    two = hosts.start(2)
    reaches(two, f"{one.client.get('endpoints')['endpoints'][0]['addresses'][0].partition('/')[0]} at 192.0.2.1")


def test_a_vtep_that_this_host_has_not_is_refused(tmp_path: Path, etcd: Member) -> None:
    daemon = Living(settings_in(tmp_path, store=f"etcd://{etcd.host}", vtep="192.0.2.77"), kernel=kernel_of(1))
    daemon.launch()
    daemon.join()
    assert "setting vtep is '192.0.2.77': this host has no such address" in str(daemon.error)


def test_names_of_a_host_are_known_on_the_others(hosts: Hosts) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    here = attach(one, name="web", aliases=["www"], ports=[{"port": 80}])
    there = attach(two, name="db", aliases=["www"])
    answers(two, "web", address_of(here))
    answers(one, "db.blue.netplug.internal", address_of(there))
    answers(two, "www", *sorted((address_of(here), address_of(there))))
    answers(two, address_of(here), "web.blue.netplug.internal")
    answers(two, "_http._tcp.web", "0 0 80 web", kind="SRV")
    late = hosts.start(3)
    has(late)
    answers(late, "web", address_of(here))
    detach(one)
    answers(two, "web")
    answers(two, "www", address_of(there))
    # Who comes again, or to a network that is made again, is called the same.
    two.stop()
    again = attach(one, name="web")
    two = hosts.start(2)
    has(two)
    answers(two, "web", address_of(again))


def test_who_says_what_he_may_not_has_no_name(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one, subnets=apart())
    has(two)
    here = attach(one, name="web")
    answers(two, "web", address_of(here))
    (key,) = etcd.records("cluster/endpoints/")
    forged = {"mac": "02:6e:0a:00:00:09", "addresses": ["192.0.2.99"]}
    for number in range(2, 6):
        claim(etcd, f"{key}{number}", f"10.224.0.{7 + number}")
    etcd.write(f"{key}1", {**forged, "names": ["web"]})
    odd = {**forged, "names": ["a" * 300, "", ".", "b..c"], "mac": "02:6e:0a:00:00:08"}
    etcd.write(f"{key}2", {**odd, "addresses": ["10.224.0.9"]})
    etcd.write(f"{key}3", {**forged, "names": ["last"], "addresses": ["10.224.0.10"]})
    ill = {**forged, "addresses": ["10.224.0.11"], "mac": "02:6e:0a:00:00:0b", "healthy": False}
    etcd.write(f"{key}4", {**ill, "names": ["last"]})
    etcd.write(f"{key}5", {**ill, "names": ["ill"], "addresses": ["10.224.0.12"], "mac": "02:6e:0a:00:00:0c"})
    answers(two, "ill", "10.224.0.12")
    answers(two, "last", "10.224.0.10")
    answers(two, "web", address_of(here))


def answers(host: Living, name: str, *wanted: str, kind: str = "A") -> None:
    def asked() -> list[str]:
        body = {"name": name, "type": kind, "networks": ["blue"]}
        found = host.client.post("dns", "query", body=body)["answers"]
        return sorted(one["data"].rstrip(".") for one in found)

    until(lambda: asked() == list(wanted), f"{name} is {wanted} on {host.settings.host_name}, not {asked()}")
