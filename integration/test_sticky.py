"""Sticky networks: whoever comes again under its name gets the addresses and the MAC that it had."""

import json
from typing import Any

import pytest
from harness import (
    CommandError,
    Netplug,
    attached,
    cli_network,
    namespace,
    wait_until,
)

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
        with attached(netplug, net, "--name", "web") as (_, before):
            pass
        assert kept(netplug, net)
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
