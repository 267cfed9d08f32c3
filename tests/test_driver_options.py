import re
from dataclasses import replace
from ipaddress import IPv4Address
from typing import cast

import pytest
from built_in_drivers import DRIVERS, parse, parse_endpoint
from hypothesis import given
from hypothesis import strategies as st

from netplug.drivers.codec import JsonObject, decode, encode
from netplug.drivers.errors import DriverError, Kind
from netplug.drivers.options import EndpointOptions, NetworkOptions, Option
from netplug.drivers.shaping import Sides, limit
from netplug.drivers.shared import SHARED


def test_no_option_means_the_defaults() -> None:
    assert parse({}) == NetworkOptions()


def test_docker_spellings_mean_the_same() -> None:
    assert parse(
        {
            "com.docker.network.driver.mtu": "1400",
            "com.docker.network.bridge.name": "br0",
            "com.docker.network.bridge.enable_ip_masquerade": "false",
            "com.docker.network.bridge.enable_icc": "0",
            "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
            "com.docker.network.container_iface_prefix": "lan",
        }
    ) == NetworkOptions(
        mtu=1400,
        bridge="br0",
        masquerade=False,
        icc=False,
        host_binding_ipv4=IPv4Address("127.0.0.1"),
        ifname="lan",
    )


def test_options_of_overlays_are_read() -> None:
    raw = {"mode": "overlay", "vni": "16777215", "vxlan_port": "8472", "bum": "true", "icc": "false", "rate": "1mbit"}
    options = parse(
        raw | {"bridge": "br0", "masquerade": "false", "spoofchk": "false", "host_binding_ipv4": "127.0.0.1"}
    )
    assert (options.vni, options.vxlan_port, options.bum) == (16777215, 8472, True)
    assert (parse({"mode": "overlay"}).vni, parse({"mode": "overlay"}).vxlan_port) == (0, 4789)


def test_upstreams_are_addresses_some_of_domains() -> None:
    options = parse({"dns_upstream": "10.0.0.1, fe80::1%eth0#5353,corp.example=10.0.0.53,10.0.0.1"})
    assert options.dns_upstream == ("10.0.0.1", "fe80::1%eth0#5353", "corp.example=10.0.0.53")


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1,", "resolver", "10.0.0.1#0", "10.0.0.1#x", "a..b=10.0.0.1", "é=10.0.0.1", "a b=10.0.0.1"]
)
def test_upstreams_out_of_order_are_refused_by_name(text: str) -> None:
    with pytest.raises(DriverError, match="dns_upstream") as refused:
        parse({"dns_upstream": text})
    assert refused.value.kind is Kind.INVALID


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("true", 86_400),
        ("1", 86_400),
        ("false", 0),
        ("0", 0),
        ("5s", 5),
        ("30m", 1_800),
        ("24h", 86_400),
        ("7d", 604_800),
    ],
)
def test_sticky_is_a_switch_or_a_time(text: str, seconds: int) -> None:
    assert parse({"sticky": text}).sticky == seconds


def test_binding_to_the_unspecified_address_means_all_addresses() -> None:
    assert parse({"host_binding_ipv4": "0.0.0.0"}).host_binding_ipv4 is None


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"colour": "blue"}, r"unknown option 'colour' \(known options: mode, name, mtu"),
        ({"mode": ""}, r"option mode=..: must be 1 to 128 letters"),
        ({"mtu": "67"}, r"option mtu=.67.: must be a number of bytes from 68 to 65535"),
        ({"mtu": "many"}, r"option mtu=.many.: must be a number"),
        ({"mtu": "٣٣٣"}, r"must be a number"),
        ({"mtu": "9" * 10_000}, r"must be a number"),
        ({"com.docker.network.driver.mtu": "-1"}, r"option com\.docker\.network\.driver\.mtu=.-1."),
        ({"mtu": "1400", "com.docker.network.driver.mtu": "1500"}, r"contradicts another spelling of 'mtu'"),
        ({"icc": "maybe"}, r"option icc=.maybe.: must be true or false"),
        ({"icc": ""}, r"option icc=..: must be true or false"),
        ({"bridge": "a-much-too-long-name"}, r"at most 15 characters"),
        ({"bridge": "../etc"}, r"must be 1 to 128 letters"),
        ({"name": "n" * 10_000}, r"must be 1 to 128 letters"),
        ({"ifname": "0123456789abc"}, r"at most 12 characters"),
        ({"host_binding_ipv4": "::1"}, r"must be an IPv4 address"),
        ({"sticky": "12"}, r"option sticky=.12.: must be true, false, or a time such as 30m, 24h or 7d"),
        ({"sticky": "0h"}, r"must be true, false, or a time"),
        ({"sticky": "-1d"}, r"must be true, false, or a time"),
        ({"sticky": "٣d"}, r"must be true, false, or a time"),
        ({"sticky": "9" * 10_000 + "d"}, r"must be true, false, or a time"),
        ({"sticky": "for ever"}, r"must be true, false, or a time"),
        ({"spoofchk": "maybe"}, r"option spoofchk=.maybe.: must be true or false"),
        ({"mode": "host", "spoofchk": "true"}, r"option 'spoofchk' exists only in mode bridge"),
        ({"rate": "fast"}, r"option rate=.fast.: must be a number with a unit, of bit, kbit, mbit"),
        ({"rate": "10 mbit"}, r"option rate=.10 mbit.: must be a number with a unit"),
        ({"rate": "-1mbit"}, r"must be a number with a unit"),
        ({"rate": "1e9"}, r"must be a number with a unit"),
        ({"rate": "1" * 10_000 + "mbit"}, r"must be a number with a unit"),
        ({"rate": "0/0"}, r"option rate=.0/0.: limits neither direction"),
        ({"rate": "1mbit/"}, r"must be a number with a unit"),
        ({"rate": "1mbit/2mbit/3mbit"}, r"must be a number with a unit"),
        ({"rate": "0"}, r"option rate=.0.: must be from 8kbit to 1tbit"),
        ({"rate": "7999"}, r"option rate=.7999.: must be from 8kbit to 1tbit"),
        ({"rate": "1.1tbit"}, r"must be from 8kbit to 1tbit"),
        ({"rate": "1mbit", "burst": "1999"}, r"option burst=.1999.: must be from 2000 bytes to 1024mb"),
        ({"rate": "1mbit", "burst": "2gb"}, r"must be a number with a unit, of b, k, kb"),
        (
            {"mode": "macvlan", "rate": "1mbit"},
            r"option 'rate' exists only in mode bridge, host and overlay, the network has mode 'macvlan'",
        ),
        (
            {"mode": "none", "icc": "true"},
            r"option 'icc' exists only in mode bridge and overlay, the network has mode 'none'",
        ),
        ({"vni": "5"}, r"option 'vni' exists only in mode overlay, the network has mode 'bridge'"),
        (
            {"mode": "overlay", "parent": "eth1"},
            r"option 'parent' exists only in mode macvlan, the network has mode 'overlay'",
        ),
        ({"mode": "overlay", "vni": "0"}, r"option vni=.0.: must be a number from 1 to 16777215"),
        ({"mode": "overlay", "vni": "16777216"}, r"option vni=.16777216.: must be a number from 1 to 16777215"),
        ({"mode": "overlay", "vni": "0x10"}, r"option vni=.0x10.: must be a number"),
        ({"mode": "overlay", "vni": "-1"}, r"option vni=.-1.: must be a number"),
        ({"mode": "overlay", "vni": "٣"}, r"must be a number from 1 to 16777215"),
        ({"mode": "overlay", "vni": "0" * 9 + "1"}, r"must be a number from 1 to 16777215"),
        ({"mode": "overlay", "vni": "9" * 10_000}, r"must be a number from 1 to 16777215"),
        ({"mode": "overlay", "vxlan_port": "65536"}, r"option vxlan_port=.65536.: must be a number from 1 to 65535"),
        ({"mode": "overlay", "vxlan_port": "0"}, r"option vxlan_port=.0.: must be a number from 1 to 65535"),
        ({"mode": "overlay", "bum": "some"}, r"option bum=.some.: must be true or false"),
    ],
)
def test_bad_option_is_refused_by_name(raw: dict[str, str], words: str) -> None:
    with pytest.raises(DriverError, match=words) as caught:
        parse(raw)
    assert caught.value.kind is Kind.INVALID
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("8000", 8_000),
        ("100mbit", 100_000_000),
        ("1.5Gbit", 1_500_000_000),
        ("512kbit", 512_000),
        ("1mbps", 8_000_000),
        ("1Mibit", 1_048_576),
        ("1tbit", 10**12),
    ],
)
def test_rate_is_read_as_tc_reads_it(text: str, bits: int) -> None:
    assert parse({"rate": text}).rate == (bits, bits)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-5", -5), ("100", 100), ("2147483647", 2147483647)])
def test_gateway_priority_is_a_whole_number(text: str, number: int) -> None:
    for mode in ("bridge", "host", "macvlan", "overlay"):
        assert parse({"mode": mode, "gw_priority": text}).gw_priority == number
        assert parse_endpoint({"gw_priority": text}, mode).gw_priority == number
    assert (parse({}).gw_priority, parse_endpoint({}, "bridge").gw_priority) == (0, None)


@pytest.mark.parametrize("text", ["", "high", "+1", "1.5", "0x10", "2147483648", "-2147483648", "5 "])
def test_gateway_priority_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(DriverError, match=r"option gw_priority=.*: must be a whole number from -2147483647 to"):
        parse({"gw_priority": text})


def test_gateway_priority_of_a_network_without_gateways_is_refused() -> None:
    with pytest.raises(DriverError, match="'gw_priority' exists only in mode bridge, host, macvlan and overlay"):
        parse({"mode": "none", "gw_priority": "1"})


def test_records_without_a_priority_are_as_older_versions_wrote_them() -> None:
    for options in (NetworkOptions(), EndpointOptions()):
        assert "gw_priority" not in cast("JsonObject", encode(options))
    assert decode(NetworkOptions, encode(NetworkOptions(gw_priority=-3))).gw_priority == -3
    assert decode(EndpointOptions, encode(EndpointOptions(gw_priority=0))).gw_priority == 0


@pytest.mark.parametrize(("text", "size"), [("3000", 3_000), ("32kb", 32_768), ("32K", 32_768), ("1m", 1_048_576)])
def test_burst_is_read_as_tc_reads_it(text: str, size: int) -> None:
    assert parse({"rate": "1mbit", "burst": text}).burst == (size, size)


@pytest.mark.parametrize(
    ("raw", "mode", "words"),
    [
        ({"colour": "blue"}, "bridge", r"unknown option 'colour' \(known options: gw_priority, rate, burst\)"),
        (
            {"mtu": "1400"},
            "bridge",
            r"option 'mtu' applies to networks, not to endpoints \(known options: gw_priority, rate, burst\)",
        ),
        (
            {"rate": "1mbit"},
            "none",
            r"option 'rate' exists only in mode bridge, host and overlay, the network has mode 'none'",
        ),
        ({"rate": "much"}, "bridge", r"option rate=.much.: must be a number with a unit"),
    ],
)
def test_bad_option_of_an_endpoint_is_refused_by_name(raw: dict[str, str], mode: str, words: str) -> None:
    with pytest.raises(DriverError, match=words):
        parse_endpoint(raw, mode)


@pytest.mark.parametrize(
    ("of_network", "of_endpoint", "expected"),
    [
        ({}, {}, ((0, 0), (0, 0))),
        ({"rate": "8mbit"}, {}, ((8_000_000,) * 2, (81_920,) * 2)),
        ({"rate": "1gbit"}, {}, ((1_000_000_000,) * 2, (1_250_000,) * 2)),
        ({"rate": "8mbit", "burst": "32kb"}, {}, ((8_000_000,) * 2, (32_768,) * 2)),
        ({"rate": "8mbit", "burst": "32kb"}, {"rate": "1mbit"}, ((1_000_000,) * 2, (81_920,) * 2)),
        ({"rate": "8mbit"}, {"burst": "4kb"}, ((8_000_000,) * 2, (4_096,) * 2)),
        ({"rate": "8mbit/0"}, {}, ((8_000_000, 0), (81_920, 0))),
        ({"rate": "8mbit"}, {"rate": "0/1mbit", "burst": "0/4kb"}, ((0, 1_000_000), (0, 4_096))),
        ({}, {"rate": "1mbit", "burst": "4kb"}, ((1_000_000,) * 2, (4_096,) * 2)),
    ],
)
def test_own_limit_comes_before_that_of_the_network(
    of_network: dict[str, str], of_endpoint: dict[str, str], expected: tuple[Sides, Sides]
) -> None:
    assert limit(parse(of_network), parse_endpoint(of_endpoint, "bridge")) == expected


@pytest.mark.parametrize(
    ("of_network", "of_endpoint", "words"),
    [
        ({"burst": "32kb"}, {}, "option burst needs option rate"),
        ({}, {"burst": "32kb"}, "option burst needs option rate"),
        (
            {"rate": "1mbit", "burst": "4kb", "mtu": "9000"},
            {},
            "option burst=4096: a packet of full size needs",
        ),
        ({"rate": "1mbit", "mtu": "9000"}, {"burst": "4kb"}, "option burst=4096: a packet of full size needs"),
    ],
)
def test_limit_that_cannot_work_is_refused(of_network: dict[str, str], of_endpoint: dict[str, str], words: str) -> None:
    with pytest.raises(DriverError, match=words):
        limit(parse(of_network), parse_endpoint(of_endpoint, "bridge"))


@given(st.dictionaries(st.sampled_from([option.key for option in SHARED]) | st.text(), st.text()))
def test_any_text_is_read_or_refused_in_one_line(raw: dict[str, str]) -> None:
    answer = _answer(raw)
    assert "\n" not in answer
    given = " ".join((*raw, *raw.values()))
    assert not any(word in answer and word not in given for word in ("Error", "Traceback", "<class"))


def _answer(raw: dict[str, str]) -> str:
    try:
        return repr(parse(raw))
    except DriverError as exc:
        return str(exc)


CHANGEABLE = {
    "mtu", "masquerade", "icc", "spoofchk", "host_binding_ipv4", "rate", "burst", "bum", "sticky", "dns",
    "dns_upstream", "ttl", "gw_priority",
}  # fmt: skip


def test_options_are_fixed_with_a_reason_or_can_change() -> None:
    assert {option.key for option in SHARED if not option.fixed} >= CHANGEABLE
    assert {option.key for option in SHARED if option.fixed} == {
        "mode", "name", "bridge", "slaac", "ifname", "parent", "macvlan_mode", "host_access", "vni", "vxlan_port",
    }  # fmt: skip


def test_options_that_are_given_change_and_others_stay() -> None:
    options = replace(parse({"rate": "1mbit", "icc": "false"}), mtu=1500)
    changed = DRIVERS.changed(options, {"rate": "2mbit", "com.docker.network.bridge.enable_icc": "", "mode": "bridge"})
    assert changed == replace(options, rate=(2_000_000, 2_000_000), icc=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "overlay"}, "option mode='overlay' cannot change: another driver makes other links"),
        ({"mode": "nonsense"}, "option mode='nonsense' cannot change"),
        ({"bridge": "br0"}, "option bridge='br0' cannot change: the links of containers are its ports"),
        ({"com.docker.network.container_iface_prefix": "lan"}, "container_iface_prefix='lan' cannot change"),
        ({"name": "blue"}, "(create another network; this one was created without name)"),
        ({"ifname": "lan"}, "(create another network; this one has ifname=eth)"),
        ({"vni": "7"}, "option 'vni' exists only in mode overlay, the network has mode 'bridge'"),
        ({"rates": "1mbit"}, "unknown option 'rates' (did you mean 'rate'?)"),
        ({"rate": "fast"}, "option rate='fast': must be a number with a unit"),
        ({"mtu": "1400", "com.docker.network.driver.mtu": "1300"}, "contradicts another spelling of 'mtu'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_changes_that_cannot_be_are_refused_with_the_reason(given: dict[str, str], words: str) -> None:
    with pytest.raises(DriverError, match=re.escape(words)) as refused:
        DRIVERS.changed(parse({}), given)
    assert refused.value.kind is Kind.INVALID


def test_option_of_another_package_is_fixed_unless_it_is_declared() -> None:
    assert Option("hops", int, "1", "how far").fixed
    assert not Option("hops", int, "1", "how far", fixed="").fixed
