"""Networks of a cluster that change while they live: one host updates a definition, all follow."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, reaches, update
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cli import CliError
from netplug.drivers.steps import Bridge, Shape, Step, Veth
from netplug.drivers.tunnel import Vxlan

pytestmark = needs_etcd


def of(host: Living, kind: type[Step]) -> list[Any]:
    return [step for step in list(host.kernel._world.state.values()) if isinstance(step, kind)]


def inspected(host: Living, name: str = "blue") -> dict[str, Any]:
    """Return a network as `netplug network inspect` shows it, without what is the host's own."""
    found = host.client.get("networks", name)
    return {key: value for key, value in found.items() if key not in {"id", "front_end", "endpoints", "note"}}


def same(*hosts: Living) -> None:
    one, *others = hosts
    for other in others:
        until(lambda other=other: inspected(other) == inspected(one), f"as on {one.settings.host_name}")  # type: ignore[misc]


def behind(host: Living) -> dict[str, dict[str, str]]:
    return {one["name"]: one["behind"] for one in host.client.get("hosts")["hosts"]}


def followed(*hosts: Living) -> None:
    """Wait until all hosts have their networks as they are defined, and say so, and nothing is amiss."""
    for host in hosts:
        until(lambda host=host: not any(behind(host).values()), f"as {host.settings.host_name} sees it")  # type: ignore[misc]
        until(lambda host=host: host.client.get("diff")["differences"] == [], "no difference")  # type: ignore[misc]
    same(*hosts)


@pytest.fixture
def three(hosts: Hosts) -> Iterator[list[Living]]:
    living = [hosts.start(number) for number in (1, 2, 3)]
    create(living[0])
    for host in living:
        has(host)
    yield living
    followed(*hosts.living)


def test_all_hosts_follow_before_the_command_returns(three: list[Living]) -> None:
    one, two, _ = three
    here, there = attach(one), attach(two)
    was = inspected(one)["options"]
    answer = update(two, bum="true", rate="10mbit", icc="false", mtu="1300", labels={"team": "net"}, internal=True)
    assert answer["notes"] == []
    for host in three:
        found = inspected(host)
        assert {"bum": "true", "rate": "10mbit", "icc": "false", "mtu": "1300"}.items() <= found["options"].items()
        assert (found["labels"], found["internal"]) == ({"team": "net"}, True)
        assert {(step.flood, step.isolated, step.mtu) for step in of(host, Vxlan)} == {(True, True, 1300)}
    for host in (one, two):
        assert {step.mtu for kind in (Veth, Bridge) for step in of(host, kind)} == {1300}
        assert len(of(host, Shape)) == 1
    same(*three)
    # And back, by another host: what is as at the start is the default.
    update(one, bum="", rate="", icc="", mtu="", internal=False, remove_labels=["team"])
    for host in three:
        assert inspected(host)["options"] == was
    assert of(two, Shape) == []
    reaches(one, f"{address_of(there)} at 192.0.2.2")
    reaches(two, f"{address_of(here)} at 192.0.2.1")


def test_a_dry_run_and_a_refusal_change_nothing(three: list[Living], etcd: Member) -> None:
    one = three[0]
    before = etcd.records("cluster/networks/"), [inspected(host) for host in three]
    answer = update(one, dry_run=True, bum="true")
    assert answer["dry_run"]
    assert answer["changes"]
    for words, body in {
        "option mtu=9000: VXLAN over IPv4 adds 50 bytes": {"mtu": "9000"},
        "option vni='5000' cannot change": {"vni": "5000"},
        "option mode='bridge' cannot change": {"mode": "bridge"},
        "unknown option 'colour'": {"colour": "red"},
        "option ttl='soon'": {"ttl": "soon"},
        "network 'blue' has no subnet 10.1.2.0/24": {"remove_subnets": ["10.1.2.0/24"]},
        "would be left without a subnet": {"remove_subnets": [inspected(one)["subnets"][0]["subnet"]]},
        "overlaps": {"add_subnets": [{"subnet": inspected(one)["subnets"][0]["subnet"]}]},
    }.items():
        with pytest.raises(CliError, match=words):
            update(one, **body)
    assert (etcd.records("cluster/networks/"), [inspected(host) for host in three]) == before


def test_what_the_kernel_refuses_where_it_is_asked_for_is_taken_back_everywhere(three: list[Living]) -> None:
    one, two, _ = three
    before = inspected(one)["options"]
    attach(two)
    (link,) = of(one, Vxlan)
    one.do_and_get(lambda _: one.kernel.fail_at(link.key))
    with pytest.raises(CliError, match="fails because a test wants it to"):
        update(one, bum="true", labels={"a": "b"})
    one.do_and_get(lambda _: one.kernel.heal())
    followed(*three)
    assert [inspected(host)["options"] for host in three] == [before] * 3
    assert {step.flood for host in three for step in of(host, Vxlan)} == {False}


def test_a_host_whose_kernel_refuses_follows_when_it_does_not(hosts: Hosts, three: list[Living]) -> None:
    one, two, _ = three
    (link,) = of(two, Vxlan)
    two.do_and_get(lambda _: two.kernel.fail_at(link.key))
    (note,) = update(one, bum="true")["notes"]
    assert note.startswith("host-2 not yet: ")
    assert inspected(two)["options"].get("bum") is None
    two.do_and_get(lambda _: two.kernel.heal())
    hosts.look_again(two)
    followed(*three)


def test_a_host_that_cannot_follow_keeps_what_it_has_and_says_why(three: list[Living]) -> None:
    one, two, three_ = three
    update(one, mtu="1300")
    two.kernel.foreign.mtus["eth0"] = 1400
    attach(two)
    answer = update(one, mtu="1400")
    words = "option mtu=1400: VXLAN over IPv4 adds 50 bytes, and the link of VTEP 192.0.2.2 has mtu 1400"
    assert answer["notes"] == [f"host-2 not yet: {words}"]
    assert behind(three_) == {"host-1": {}, "host-2": {"blue": words}, "host-3": {}}
    (note,) = next(it["notes"] for it in one.client.get("hosts")["hosts"] if it["name"] == "host-2")
    assert note == f"network blue is not as defined: {words}"
    (found,) = two.client.get("diff")["differences"]
    assert (found["owner"], found["object"]) == ("network blue", "update")
    assert inspected(two)["options"]["mtu"] == "1300"
    assert {step.mtu for step in of(two, Veth)} == {1300}
    # Other updates do not pass it by; asking again tells again.
    assert update(one, ttl="60")["notes"] == [f"host-2 not yet: {words}"]
    assert update(one, ttl="60")["notes"] == [f"host-2 not yet: {words}"]
    # When it can, it does, without being asked.
    two.kernel.foreign.mtus["eth0"] = 1500
    two.do(lambda _: two.kernel.moved.set())
    followed(*three)
    assert (inspected(two)["options"]["mtu"], inspected(two)["options"]["ttl"]) == ("1400", "60")


def test_who_follows_late_reaches_what_came_into_a_new_subnet_meanwhile(three: list[Living]) -> None:
    one, two, _ = three
    update(one, mtu="1300")
    two.kernel.foreign.mtus["eth0"] = 1380
    update(one, mtu="1400", add_subnets=[{"subnet": "10.77.0.0/24"}])
    found = attach(one, addresses=["10.77.0.9"])
    until(lambda: len(two.client.get("diff")["differences"]) == 2, "the peer is refused, and it is said")
    reaches(two)
    two.kernel.foreign.mtus["eth0"] = 1500
    two.do(lambda _: two.kernel.moved.set())
    reaches(two, f"{address_of(found)} at 192.0.2.1")
    detach(one)
    update(one, remove_subnets=["10.77.0.0/24"])


def test_a_host_that_was_down_follows_at_its_start(hosts: Hosts, three: list[Living]) -> None:
    one, two, _ = three
    attach(two)
    two.stop()
    assert update(one, icc="false", labels={"a": "b"})["notes"] in (
        ["host-2 not yet: its daemon does not run"],
        ["host-2 not yet: its daemon has not answered yet"],
    )
    update(one, mtu="1300")
    assert behind(one)["host-2"] != {}
    two = hosts.start(2)
    followed(one, two)
    assert {step.mtu for step in of(two, Veth)} == {1300}
    # One that comes later, too, tells how it was created.
    late = hosts.start(4)
    has(late)
    same(one, two, late)


def test_two_hosts_update_at_once_and_both_updates_hold(three: list[Living]) -> None:
    with ThreadPoolExecutor() as pool:
        turns = [
            (three[n % 3], {"labels": {f"k{n}": "v"}} if n % 2 else {"options": {}, "ttl": str(10 + n)})
            for n in range(9)
        ]
        turns = [(host, {key: value for key, value in body.items() if key != "options"}) for host, body in turns]
        list(pool.map(lambda turn: update(turn[0], **turn[1]), turns))
    followed(*three)
    assert inspected(three[0])["labels"] == {f"k{n}": "v" for n in (1, 3, 5, 7)}


def test_subnets_are_added_and_removed_on_all_hosts(three: list[Living], etcd: Member) -> None:
    one, two, _ = three
    (first,) = [it["subnet"] for it in inspected(one)["subnets"]]
    update(one, add_subnets=[{"subnet": "10.77.0.0/24"}, {"subnet": "fd00:77::/64"}])
    same(*three)
    found = attach(two, addresses=["10.77.0.9"])
    assert min(found["addresses"]) == "10.77.0.9/24"
    reaches(one, f"{address_of(found)} at 192.0.2.2")
    with pytest.raises(CliError, match=r"subnet 10\.77\.0\.0/24 of network 'blue' has addresses: 1 on host-2"):
        update(one, remove_subnets=["10.77.0.0/24"])
    assert all("closing" not in value for value in etcd.records("cluster/networks/").values())
    with pytest.raises(CliError, match=r"subnet 10\.77\.0\.0/25 overlaps 10\.77\.0\.0/24 of network 'blue'"):
        create(two, "red", subnets=[{"subnet": "10.77.0.0/25"}])
    detach(two)
    update(two, remove_subnets=["10.77.0.0/24", "fd00:77::/64"])
    same(*three)
    assert [it["subnet"] for it in inspected(one)["subnets"]] == [first]
    with pytest.raises(CliError):
        attach(one, addresses=["10.77.0.9"])
    gateways = [it["address"] for it in etcd.records("ipam/leases/").values() if it["owner"]["kind"] == "gateway"]
    assert len(gateways) == 1
    create(two, "red", subnets=[{"subnet": "10.77.0.0/25"}])
    two.client.delete("networks", "red")


def test_an_attach_that_races_with_the_removal_of_its_subnet_ends_one_way(three: list[Living]) -> None:
    """Either the endpoint is there, with its subnet; or neither is."""
    one, two, _ = three
    for _ in range(5):
        update(one, add_subnets=[{"subnet": "10.77.0.0/24"}])
        with ThreadPoolExecutor() as pool:
            removal = pool.submit(update, one, remove_subnets=["10.77.0.0/24"])
            joining = pool.submit(attach, two, addresses=["10.77.0.9"])
            removed, joined = removal.exception() is None, joining.exception() is None
        assert removed != joined, (removal.exception(), joining.exception())
        if joined:
            detach(two)
            update(one, remove_subnets=["10.77.0.0/24"])
        followed(*three)


def test_hosts_of_the_former_version_are_told_of_and_do_not_lose_subnets(three: list[Living], etcd: Member) -> None:
    one = three[0]
    update(one, add_subnets=[{"subnet": "10.77.0.0/24"}])
    etcd.write("cluster/hosts/old", {"name": "old", "vtep": "192.0.2.9", "epoch": 1, "since": 0, "notes": []})
    until(lambda: "old" in behind(one), "it is seen")
    assert update(one, ttl="9")["notes"] == ["old not yet: its netplug is older, and follows no updates"]
    assert behind(one)["old"] == {"blue": "its netplug is older, and follows no updates"}
    with pytest.raises(CliError, match=r"subnet 10\.77\.0\.0/24: old would go on to give out addresses of it"):
        update(one, remove_subnets=["10.77.0.0/24"])
    one.client.delete("hosts", "old")
    update(one, remove_subnets=["10.77.0.0/24"])


def test_an_older_definition_that_comes_back_is_updated_again(three: list[Living], etcd: Member) -> None:
    """A host of the former version wrote it, or a backup had it."""
    ((key, older),) = etcd.records("cluster/networks/").items()
    update(three[0], ttl="60", labels={"a": "b"})
    etcd.write(key, older)
    until(lambda: etcd.records("cluster/networks/")[key].get("version") == 1, "it is restored")
    assert inspected(three[1])["options"]["ttl"] == "60"


@pytest.mark.own_etcd
def test_a_store_that_lost_its_data_gets_the_latest_version_whoever_is_behind(hosts: Hosts, etcd: Member) -> None:
    """Also from a host that has not followed, and whose daemon starts after the loss."""
    one, two = hosts.start(1), hosts.start(2)
    create(one, options={"mtu": "1300"})
    has(two)
    two.kernel.foreign.mtus["eth0"] = 1380
    assert update(one, mtu="1400", labels={"a": "b"})["notes"] != []
    two.stop()
    etcd.wipe()
    etcd.start()
    two = hosts.start(2)
    until(
        lambda: [it.get("version") for it in etcd.records("cluster/networks/").values()] == [1], "it is defined again"
    )
    two.kernel.foreign.mtus["eth0"] = 1500
    two.do(lambda _: two.kernel.moved.set())
    followed(one, two)
    assert (inspected(two)["options"]["mtu"], inspected(two)["labels"]) == ("1400", {"a": "b"})


def test_a_network_that_an_older_version_built_gets_what_its_definition_says(three: list[Living], etcd: Member) -> None:
    """It kept no labels, and not when the network was created."""
    ((key, value),) = etcd.records("cluster/networks/").items()
    etcd.write(key, {**value, "labels": {"a": "b"}, "created": 1_800_000_000.0})
    for host in three:
        until(lambda host=host: inspected(host)["labels"] == {"a": "b"}, "its labels")  # type: ignore[misc]
        # The network is updated first, then takes from the definition what is no change of it.
        until(lambda host=host: inspected(host)["created"].startswith("2027-01-15T"), "its time")  # type: ignore[misc]


def test_a_removal_that_was_begun_and_not_ended_is_taken_back(three: list[Living], etcd: Member) -> None:
    one, two, _ = three
    update(one, add_subnets=[{"subnet": "10.77.0.0/24"}])
    ((key, value),) = etcd.records("cluster/networks/").items()
    etcd.write(key, {**value, "closing": ["10.77.0.0/24"], "closer": "f" * 32})
    until(lambda: "closing" not in etcd.records("cluster/networks/")[key], "it is open again")
    attach(two, addresses=["10.77.0.9"])
    detach(two)


@pytest.mark.own_etcd
def test_without_the_store_an_update_is_refused_and_changes_nothing(hosts: Hosts, etcd: Member) -> None:
    one, two = hosts.start(1), hosts.start(2)
    create(one)
    has(two)
    before = inspected(one)
    etcd.stop()
    with pytest.raises(CliError, match="store"):
        update(one, ttl="60")
    assert inspected(one) == inspected(two) == before
    assert one.client.get("networks", "blue")["options"].get("ttl") is None
