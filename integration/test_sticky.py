"""Sticky networks: whoever comes again under its name gets the addresses and the MAC that it had."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from harness import (
    CommandError,
    Container,
    Dockerd,
    Host,
    Netplug,
    attached,
    cli_network,
    container,
    docker_network,
    namespace,
    wait_until,
)

from netplug.lab.image import IMAGE

MAC = "02:42:0a:5b:00:77"

pytestmark = pytest.mark.usefixtures("netplug")


@pytest.fixture(scope="module", autouse=True)
def forwarding(netplug: Netplug) -> None:
    """Have IPv6 forwarding on: the first network that wants it leaves it so, as others may have come to need it."""
    with cli_network(netplug, "--ipv6"):
        pass


def of(result: dict[str, Any]) -> tuple[list[str], str]:
    return result["addresses"], result["mac"]


def kept(netplug: Netplug, network: str) -> dict[str, set[str]]:
    """Return the addresses that a network keeps, by name."""
    found: dict[str, set[str]] = {}
    for pool in netplug.json("ipam", "ls"):
        for lease in pool["leases"] if network in pool["networks"] else ():
            if lease["owner_kind"] == "kept":
                found.setdefault(lease["owner_name"], set()).add(lease["address"])
    return found


def sees(netplug: Netplug, name: str) -> bool:
    return any(row["name"] == name and row["container"] for row in netplug.json("ps"))


# With Docker


@contextmanager
def sticky_network(dockerd: Dockerd, *options: str, may_miscount: bool = False) -> Iterator[str]:
    given = ("--ipam-driver", "pynet", *(options or ("-o", "sticky=true")))
    with docker_network(dockerd, *given, may_miscount=may_miscount) as net:
        yield net


@contextmanager
def named(dockerd: Dockerd, netplug: Netplug, net: str, name: str, *options: str) -> Iterator[Container]:
    """A container that netplug knows by its name, which Docker's events tell in their time."""
    with container(dockerd, "--network", net, "--name", name, *options) as it:
        wait_until(lambda: sees(netplug, name), what=f"the name {name}")
        yield it


def here(one: Container) -> tuple[str, str, str]:
    (settings,) = one.inspect()["NetworkSettings"]["Networks"].values()
    return settings["IPAddress"], settings["GlobalIPv6Address"], settings["MacAddress"]


def shows_mounts(dockerd: Dockerd) -> None:
    """Skip where the storage driver does not show which container is being started."""
    driver = dockerd.docker("info", "--format", "{{.Driver}}")
    if driver not in {"overlay2", "fuse-overlayfs"}:
        pytest.skip(f"storage driver {driver} does not show which containers are mounted")


def test_container_has_its_address_and_mac_again_after_each_way_to_come_back(
    dockerd: Dockerd, netplug: Netplug
) -> None:
    """Others come in between and would have had the address; and the daemon is restarted in between."""
    subnets = ("--ipv6", "--subnet", "10.91.2.0/24", "--subnet", "fd00:91::/64")
    with sticky_network(dockerd, "-o", "sticky=true", *subnets) as net, named(dockerd, netplug, net, "watch") as watch:
        with named(dockerd, netplug, net, "web") as web:
            before = here(web)
            dockerd.docker("restart", "-t", "0", web.id)
            assert here(web) == before
            wait_until(lambda: sees(netplug, "web"))
            dockerd.docker("stop", "-t", "0", web.id)
            # Docker says that a container has stopped before it gives its addresses back.
            wait_until(lambda: kept(netplug, net) == {"web": set(before[:2])}, what="what is kept")
            with named(dockerd, netplug, net, "other") as other:
                assert not set(here(other)) & set(before)
                netplug.restart()
                wait_until(lambda: sees(netplug, "other"))
                dockerd.docker("start", web.id)
                assert here(web) == before
                assert all(watch.pings(address) for address in before[:2])
                wait_until(lambda: sees(netplug, "web"))
        assert kept(netplug, net).keys() == {"web", "other"}
        with named(dockerd, netplug, net, "web") as web:
            assert here(web) == before
        assert not netplug.drift()


def test_each_of_several_stopped_containers_comes_back_to_its_own(dockerd: Dockerd, netplug: Netplug) -> None:
    shows_mounts(dockerd)
    names = ("web", "db", "job")
    with sticky_network(dockerd) as net, ExitStack() as stack:
        those = {name: stack.enter_context(named(dockerd, netplug, net, name)) for name in names}
        before = {name: here(one) for name, one in those.items()}
        dockerd.docker("stop", "-t", "0", *names)
        wait_until(lambda: kept(netplug, net).keys() == set(names), what="what is kept")
        for name in reversed(names):
            dockerd.docker("start", name)
            assert here(those[name]) == before[name]
        dockerd.docker("restart", "-t", "0", *names)
        assert {name: here(one) for name, one in those.items()} == before
        wait_until(lambda: all(sees(netplug, name) for name in names))


def test_running_container_that_is_connected_is_not_taken_for_the_stopped_one(
    dockerd: Dockerd, netplug: Netplug
) -> None:
    shows_mounts(dockerd)
    with sticky_network(dockerd) as net, named(dockerd, netplug, net, "web") as web:
        before = here(web)
        dockerd.docker("stop", "-t", "0", web.id)
        with docker_network(dockerd) as other, container(dockerd, "--network", other, "--name", "db") as db:
            dockerd.docker("network", "connect", net, db.id)
            assert db.ip(net) != before[0]
            dockerd.docker("start", web.id)
            assert here(web) == before
            wait_until(lambda: sees(netplug, "web"))


def test_stopped_container_that_is_connected_is_not_taken_for_the_other_one(dockerd: Dockerd, netplug: Netplug) -> None:
    """Docker tells of this neither us nor those who listen to its events."""
    with (
        sticky_network(dockerd) as net,
        docker_network(dockerd) as other,
        named(dockerd, netplug, net, "web") as web,
        container(dockerd, "--network", other, "--name", "db") as db,
    ):
        before = here(web)
        dockerd.docker("stop", "-t", "0", web.id, db.id)
        dockerd.docker("network", "connect", net, db.id)
        dockerd.docker("start", db.id)
        assert db.ip(net) != before[0]
        wait_until(lambda: before[0] in kept(netplug, net).get("web", ()), what="what is kept")


def test_parallel_restarts_give_nobody_the_address_of_another(dockerd: Dockerd, netplug: Netplug) -> None:
    names = [f"p{number}" for number in range(5)]
    with sticky_network(dockerd, may_miscount=True) as net, ExitStack() as stack:
        those = [stack.enter_context(named(dockerd, netplug, net, name)) for name in names]
        before = [here(one)[0] for one in those]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: dockerd.docker("restart", "-t", "0", one.id), those))
        after = [here(one)[0] for one in those]
        assert len(set(after)) == len(after)
        for number, address in enumerate(after):
            assert address == before[number] or address not in before
        wait_until(lambda: all(sees(netplug, name) for name in names))
        assert not netplug.drift()


def test_container_that_docker_restarts_at_its_own_start_comes_back_where_it_was(
    dockerd: Dockerd, netplug: Netplug
) -> None:
    with sticky_network(dockerd) as net, named(dockerd, netplug, net, "web", "--restart", "always") as web:
        before = here(web)
        dockerd.restart()
        wait_until(lambda: web.running, what="the restart of web")
        assert here(web) == before
        wait_until(lambda: sees(netplug, "web"))


def test_mac_of_the_user_comes_again_and_a_kept_address_goes_to_who_asks(dockerd: Dockerd, netplug: Netplug) -> None:
    with sticky_network(dockerd, "-o", "sticky=1h", "--subnet", "10.91.3.0/24") as net:
        with named(dockerd, netplug, net, "web", "--mac-address", MAC) as web:
            before = here(web)
            assert before[2] == MAC
        with named(dockerd, netplug, net, "web") as web:
            assert here(web) == before
        with named(dockerd, netplug, net, "db", "--ip", before[0]) as db:
            assert here(db)[0] == before[0]
            assert here(db)[2] != MAC
            with named(dockerd, netplug, net, "web") as web:
                assert here(web)[0] != before[0]


def test_promise_that_docker_would_break_is_refused_with_the_command_to_use(dockerd: Dockerd) -> None:
    with pytest.raises(CommandError, match="docker network create -d pynet --ipam-driver pynet -o sticky=2h NAME"):
        dockerd.docker("network", "create", "-d", "pynet", "-o", "sticky=2h", "bad")


def test_storage_driver_that_shows_no_mounts_leaves_the_plain_case(new_host: Callable[..., Host]) -> None:
    """One container of the network stopped: who asks must be that one. Two: nobody gets the other's address."""
    dockerd = Dockerd(new_host(), "--storage-driver", "vfs")
    netplug = Netplug(dockerd.host)
    with sticky_network(dockerd) as net, named(dockerd, netplug, net, "db") as db:
        with named(dockerd, netplug, net, "web") as web:
            before = here(web), here(db)
            dockerd.docker("restart", "-t", "0", web.id)
            assert here(web) == before[0]
            wait_until(lambda: sees(netplug, "web"))
            dockerd.docker("stop", "-t", "0", web.id)
            dockerd.docker("start", web.id)
            assert here(web) == before[0]
            wait_until(lambda: sees(netplug, "web"))
        with named(dockerd, netplug, net, "web") as web:
            assert here(web) == before[0]
            dockerd.docker("stop", "-t", "0", web.id, db.id)
            dockerd.docker("start", web.id)
            assert here(web)[0] not in {before[0][0], before[1][0]}
            wait_until(lambda: sees(netplug, "web"))


def test_address_that_a_container_was_created_with_is_given_out_last(dockerd: Dockerd, netplug: Netplug) -> None:
    """In a network that is not sticky: whether it never ran or was stopped, and after our restart."""
    both = {"web": {"10.91.4.2"}, "db": {"10.91.4.3"}}
    with docker_network(dockerd, "--ipam-driver", "pynet", "--subnet", "10.91.4.0/29") as net, ExitStack() as stack:
        for name, (address,) in both.items():
            dockerd.docker("create", "--name", name, "--network", net, "--ip", address, IMAGE, "sleep", "3600")
        wait_until(lambda: kept(netplug, net) == both, what="what was created")
        assert here(stack.enter_context(named(dockerd, netplug, net, "one")))[0] == "10.91.4.4"
        dockerd.docker("start", "web")
        dockerd.docker("stop", "-t", "0", "web")
        netplug.restart()
        wait_until(lambda: kept(netplug, net) == both, what="what Docker has")
        others = [stack.enter_context(named(dockerd, netplug, net, name)) for name in ("two", "three")]
        assert {here(it)[0] for it in others} == {"10.91.4.5", "10.91.4.6"}
        dockerd.docker("start", "web")
        dockerd.docker("rm", "-f", "web")
        wait_until(lambda: kept(netplug, net).keys() == {"db"}, what="the end of web")
        assert here(stack.enter_context(named(dockerd, netplug, net, "four")))[0] == "10.91.4.2"
        with named(dockerd, netplug, net, "last") as last:
            assert here(last)[0] == "10.91.4.3"
            refusal = r"address 10\.91\.4\.3 .*is leased to container 'last' \(stop or detach it"
            with pytest.raises(CommandError, match=refusal):
                dockerd.docker("start", "db")
        dockerd.docker("start", "db")
        dockerd.docker("rm", "-f", "db")


# Without a runtime


def test_namespace_of_the_same_name_is_reached_where_it_was(netplug: Netplug) -> None:
    """Its neighbour goes on with the ARP and ND entries that it has."""
    options = ("--ipv6", "-o", "sticky=true")
    with cli_network(netplug, *options) as net, attached(netplug, net, "--name", "watch") as (watch, _):
        with attached(netplug, net, "--name", "web") as (_, before):
            addresses = [text.partition("/")[0] for text in before["addresses"]]
            assert all(watch.pings(address) for address in addresses)
        assert kept(netplug, net) == {"web": set(addresses)}
        with attached(netplug, net, "--name", "db") as (_, other):
            assert not set(other["addresses"]) & set(before["addresses"])
            netplug.restart()
            with attached(netplug, net, "--name", "web") as (web, after):
                assert of(after) == of(before)
                (link,) = json.loads(web.exec("ip", "-j", "addr", "show", "eth0"))
                assert link["address"] == before["mac"]
                assert all(watch.pings(address) for address in addresses)
                assert kept(netplug, net) == {}
                assert not netplug.drift()


def test_mac_that_the_user_gave_comes_again(netplug: Netplug) -> None:
    with cli_network(netplug, "-o", "sticky=7d") as net:
        with attached(netplug, net, "--name", "web", "--mac", MAC) as (_, before):
            assert before["mac"] == MAC
        with attached(netplug, net, "--name", "web") as (web, after):
            assert of(after) == of(before)
            assert json.loads(web.exec("ip", "-j", "link", "show", "eth0"))[0]["address"] == MAC


def test_address_is_kept_for_its_time_and_no_longer(netplug: Netplug) -> None:
    with cli_network(netplug, "-o", "sticky=2s") as net:
        with namespace(netplug.host) as place:
            before = place.attach(netplug, net, "--name", "web")
            # By the API: a command may take longer than that.
            netplug.client.post("detach", body={"network": net, "netns": place.name})
            assert '"kept"' in json.dumps(netplug.client.get("ipam"))
        wait_until(lambda: not kept(netplug, net), what="the end of its time")
        with attached(netplug, net, "--name", "web") as (_, after):
            assert after["addresses"] != before["addresses"]


def test_kept_addresses_go_longest_first_when_nothing_is_free_and_to_who_asks(netplug: Netplug) -> None:
    with cli_network(netplug, "--subnet", "10.91.1.0/29", "-o", "sticky=1h") as net:
        had = {}
        with namespace(netplug.host) as lab:
            for name in ("a", "b", "c", "d", "e"):
                had[name] = lab.attach(netplug, net, "--name", name)["addresses"]
                lab.detach(netplug, net)
        assert len({str(each) for each in had.values()}) == 5
        with attached(netplug, net, "--name", "x") as (_, x):
            assert x["addresses"] == had["a"]
            asked = had["c"][0].partition("/")[0]
            with attached(netplug, net, "--name", "y", "--ip", asked) as (_, y):
                assert y["addresses"] == had["c"]
                assert kept(netplug, net).keys() == {"b", "d", "e"}
                with attached(netplug, net, "--name", "c") as (_, c):
                    assert c["addresses"] == had["b"]
                    with attached(netplug, net, "--name", "e") as (_, e):
                        assert e["addresses"] == had["e"]
        with pytest.raises(CommandError, match="must be true, false, or a time such as 30m"):
            netplug.cli("network", "create", "bad", "-o", "sticky=for-ever")
