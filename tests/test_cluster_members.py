"""A member whose records say what is not so takes nothing from anybody, and it is shown."""

from typing import Any

from clustered import Hosts, address_of, apart, attach, claim, create, detach, has, reached, reaches
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.daemon.life import Daemon
from netplug.drivers.naming import short
from netplug.drivers.tunnel import Neighbour

pytestmark = needs_etcd

BAD = "192.0.2.66"


def pair(hosts: Hosts, etcd: Member) -> tuple[Living, Living, str]:
    """Two hosts and the key below which a bad third one tells of endpoints."""
    one, other = hosts.start(1), hosts.start(2)
    network = create(one, subnets=apart())["id"]
    has(other)
    etcd.write("cluster/hosts/bad", {"name": "bad", "vtep": BAD, "epoch": 1})
    return one, other, f"cluster/endpoints/{network}/bad/"


def whats(host: Living) -> list[str]:
    return sorted(it["what"].partition(": the endpoint is ignored")[0] for it in host.client.get("diff")["differences"])


def told(mac: str, *addresses: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"mac": mac, "addresses": [*addresses], "names": [*names]}


def test_neither_address_nor_mac_of_anybody_is_taken_over(hosts: Hosts, etcd: Member) -> None:
    one, other, key = pair(hosts, etcd)
    here, there = attach(one, name="web"), attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    claim(etcd, f"{key}free", "10.224.0.99")
    # The address of a local endpoint, of another host's, of nobody, of the network; the MAC of one and the other.
    etcd.write(f"{key}e1", told("02:00:00:00:00:01", address_of(here), names=("web",)))
    etcd.write(f"{key}e2", told("02:00:00:00:00:02", address_of(there)))
    etcd.write(f"{key}e3", told("02:00:00:00:00:03", "10.224.0.98"))
    etcd.write(f"{key}e4", told(here["mac"], "10.224.0.99"))
    refused = sorted(
        [
            f"address {address_of(here)} is leased to host host-1",
            f"address {address_of(there)} is leased to host host-2",
            "address 10.224.0.98 has no lease",
            f"MAC {here['mac']} belongs to an endpoint of this host",
        ]
    )
    until(lambda: whats(one) == refused, "all four are refused")
    assert reached(one) == {f"{address_of(there)} at 192.0.2.2"}
    until(lambda: f"MAC {here['mac']} belongs to an endpoint of host host-1" in whats(other), "and there")
    assert reached(other) == {f"{address_of(here)} at 192.0.2.1"}
    body = {"name": "web", "type": "A", "networks": ["blue"]}
    answers = other.client.post("dns", "query", body=body)["answers"]
    assert [one["data"] for one in answers] == [address_of(here)]
    owners = {(it["owner"], it["object"]) for it in one.client.get("diff")["differences"]}
    assert owners == {
        ("peers of network blue", f"endpoint {short(f'e{number}')} on host bad") for number in range(1, 5)
    }
    # What is honest counts, and what is no longer told is no longer wrong.
    etcd.write(f"{key}e4", told("02:00:00:00:00:04", "10.224.0.99"))
    reaches(one, f"{address_of(there)} at 192.0.2.2", f"10.224.0.99 at {BAD}")
    for number in range(1, 4):
        etcd.delete(f"{key}e{number}")
    for host in (one, other):
        until(lambda host=host: whats(host) == [], "no difference")  # type: ignore[misc]


def test_a_record_counts_when_its_claim_comes_late(hosts: Hosts, etcd: Member) -> None:
    one, _, key = pair(hosts, etcd)
    etcd.write(f"{key}e1", told("02:00:00:00:00:01", "10.224.0.99"))
    until(lambda: whats(one) == ["address 10.224.0.99 has no lease"], "it does not count")
    claim(etcd, f"{key}e1", "10.224.0.99")
    reaches(one, f"10.224.0.99 at {BAD}")
    # A claim that is missing for a moment ends no traffic, one of another host does.
    (lease,) = (it for it in etcd.records("ipam/leases/") if it.endswith(".99"))
    value = etcd.records("ipam/leases/")[lease]
    etcd.delete(lease)
    etcd.write(f"{key}e2", told("02:00:00:00:00:02", "10.224.0.98"))
    until(lambda: whats(one) == ["address 10.224.0.98 has no lease"], "it has looked")
    reaches(one, f"10.224.0.99 at {BAD}")
    etcd.write(lease, {**value, "host": "somebody"})
    reaches(one)


def test_what_the_first_has_stays_his_when_he_writes_it_again(hosts: Hosts, etcd: Member) -> None:
    """His record is the younger one then."""
    one, other, key = pair(hosts, etcd)
    there = attach(other)
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    claim(etcd, f"{key}e1", "10.224.0.99")
    etcd.write(f"{key}e1", told(there["mac"], "10.224.0.99"))
    until(lambda: len(whats(one)) == 1, "it does not count")
    (mine,) = (it for it in etcd.records("cluster/endpoints/") if "/bad/" not in it)
    etcd.write(mine, {**etcd.records("cluster/endpoints/")[mine], "healthy": False})
    late = attach(other, "lab2")
    reaches(one, f"{address_of(there)} at 192.0.2.2", f"{address_of(late)} at 192.0.2.2")
    detach(other)
    reaches(one, f"{address_of(late)} at 192.0.2.2", f"10.224.0.99 at {BAD}")


def test_one_network_that_fails_holds_up_who_told_of_it_alone(hosts: Hosts) -> None:
    """Who tells of a network that can be brought about is not made to wait, and all is confirmed in the end."""
    one, other, third = (hosts.start(number) for number in (1, 2, 3))
    create(one)
    create(one, "red", subnets=apart(1))
    for host in (other, third):
        has(host)
        has(host, "red")
    seen: list[dict[str, int]] = []

    def watch(daemon: Daemon) -> None:
        assert daemon.cluster
        before = daemon.cluster.barrier.applied
        daemon.cluster.barrier.applied = lambda it: (seen.append(dict(it)), before(it))[1]  # type: ignore[method-assign]

    third.do_and_get(watch)
    red = attach(one, "lab1", "red")
    until(lambda: f"{address_of(red)} at 192.0.2.1" in reached(third), "it is there")
    third.kernel.fail_at(f"neighbour/{red_bridge(third)}/10.224.1.77")
    seen.clear()
    attach(one, "lab2", "red", addresses=["10.224.1.77"])
    here = attach(other, "lab3")
    until(lambda: f"{address_of(here)} at 192.0.2.2" in reached(third), "the other network goes on")
    ids = {it["name"]: it["id"] for it in one.client.get("hosts")["hosts"]}
    until(lambda: any(ids["host-2"] in it for it in seen), "it is confirmed")
    assert not any(ids["host-1"] in it for it in seen)
    third.kernel.heal()
    until(lambda: any(ids["host-1"] in it for it in seen), "that too, in the end")


def red_bridge(host: Living) -> str:
    steps = list(host.kernel._world.state.values())
    return next(
        step.link for step in steps if isinstance(step, Neighbour) and str(step.address).startswith("10.224.1.")
    )


def test_a_record_that_cannot_be_read_is_shown(hosts: Hosts, etcd: Member) -> None:
    one, _, key = pair(hosts, etcd)
    etcd.write(f"{key}e1", {"mac": 7})
    until(lambda: [it["object"] for it in one.client.get("diff")["differences"]] == [f"{key}e1"], "it is shown")
    etcd.delete(f"{key}e1")
    until(lambda: whats(one) == [], "it is over")


def test_records_of_nonsense_keep_nobody_from_the_others(hosts: Hosts, etcd: Member) -> None:
    one, other, key = pair(hosts, etcd)
    etcd.write("cluster/hosts/nowhere", {"name": "nowhere", "vtep": None, "epoch": 1})
    etcd.write(f"{key}n1", {**told("02:00:00:00:00:01"), "addresses": [None]})
    claim(etcd, f"{key}n2", "10.224.0.99")
    etcd.write(f"{key}n2", {**told("02:00:00:00:00:02", "10.224.0.99"), "ports": [["tcp", 99999], ["u\0dp", 53]]})
    there = attach(other, name="web")
    until(lambda: f"{address_of(there)} at 192.0.2.2" in reached(one), "the honest one is reached")
    body = {"name": "web", "type": "A", "networks": ["blue"]}

    def found() -> bool:
        return [it["data"] for it in one.client.post("dns", "query", body=body)["answers"]] == [address_of(there)]

    until(found, "and called by its name")
    assert any("n1" in it["object"] or "n1" in it["what"] for it in one.client.get("diff")["differences"])
