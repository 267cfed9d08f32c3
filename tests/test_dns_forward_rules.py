"""Which upstreams are asked for what, as text and as rules; what is remembered of answers."""

import doctest
import importlib
from ipaddress import ip_address

import pytest
from dns_packets import query
from hypothesis import given
from hypothesis import strategies as st

from netplug.dns import cache, wire
from netplug.dns.forward_rules import Rule, Rules, Server, resolv_conf


@pytest.mark.parametrize("module", ["forward_rules", "cache", "sockets", "special_use", "upstream"])
def test_examples_in_docstrings_hold(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"netplug.dns.{module}")).failed == 0


def test_cache_is_bounded() -> None:
    made = cache.Cache(50)
    for number in range(1000):
        made.put(b"%d" % number, cache.Answer(0, b"\0\0\0\0", b"", (), 60, 0))
    assert len(made) <= 50
    assert b"999" in made
    made.put(b"large", cache.Answer(0, b"\0\0\0\0", b"x" * 5000, (), 60, 0))
    assert b"large" not in made


def test_resolv_conf_as_people_have_it() -> None:
    text = (
        "# x\nsearch a.example\nnameserver 10.0.0.1 # comment\n nameserver\t::1\nnameserver 10.0.0.1\noptions ndots:5\n"
    )
    text += "nameserver\nnameserver 10.0.0.300\nnameserver fe80::1%eth0\nNameserver 1.1.1.1\n"
    assert [str(it) for it in resolv_conf(text)] == ["10.0.0.1", "::1", "fe80::1%eth0"]


@given(st.text())
def test_resolv_conf_of_anything(text: str) -> None:
    resolv_conf(text)


def test_our_own_addresses_are_not_asked() -> None:
    ours = ip_address("10.1.0.1")
    rules = Rules.of([], [Server(ours), Server(ours, 5353), Server(ip_address("10.0.0.1"))], avoid={ours})
    assert [str(it) for it in rules.servers(wire.to_wire("x"))] == ["10.1.0.1#5353", "10.0.0.1"]


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.1#", "10.0.0.1#x", "10.0.0.1#70000", "10.0.0", "a..b=10.0.0.1", "x=", "="]
)
def test_rules_that_are_none(text: str) -> None:
    if text == "10.0.0.1#":
        assert Rule.parse(text).servers == (Server(ip_address("10.0.0.1")),)
        return
    with pytest.raises(ValueError, match=r"is not|has no"):
        Rule.parse(text)


@given(st.binary(max_size=200))
def test_messages_of_anything(data: bytes) -> None:
    name = wire.to_wire("example.com")
    message = query("example.com")[:2] + b"\x81\x80" + b"\0\1\0\3\0\1\0\0" + name + b"\0\1\0\1" + data
    assert cache.matches(message, name, b"\0\1\0\1")
    try:
        found = cache.read(message, name, 0)
    except ValueError:
        return
    assert found.body in message
