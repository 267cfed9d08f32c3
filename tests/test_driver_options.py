import re
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplug.drivers.errors import DriverError, Kind
from netplug.drivers.options import OPTIONS, NetworkOptions, parse


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
        ({"bridge": "a-much-too-long-name"}, r"at most 15 signs"),
        ({"bridge": "../etc"}, r"must be 1 to 128 letters"),
        ({"name": "n" * 10_000}, r"must be 1 to 128 letters"),
        ({"ifname": "0123456789abc"}, r"at most 12 signs"),
        ({"host_binding_ipv4": "::1"}, r"must be an IPv4 address"),
        ({"sticky": "12"}, r"option sticky=.12.: must be true, false, or a time such as 30m, 24h or 7d"),
        ({"sticky": "0h"}, r"must be true, false, or a time"),
        ({"sticky": "-1d"}, r"must be true, false, or a time"),
        ({"sticky": "٣d"}, r"must be true, false, or a time"),
        ({"sticky": "9" * 10_000 + "d"}, r"must be true, false, or a time"),
        ({"sticky": "for ever"}, r"must be true, false, or a time"),
        ({"mode": "none", "icc": "true"}, r"option 'icc' is of mode bridge, the network's is 'none'"),
    ],
)
def test_bad_option_is_refused_by_name(raw: dict[str, str], words: str) -> None:
    with pytest.raises(DriverError, match=words) as caught:
        parse(raw)
    assert caught.value.kind is Kind.INVALID
    assert len(str(caught.value)) < 400


@given(st.dictionaries(st.sampled_from([option.key for option in OPTIONS]) | st.text(), st.text()))
def test_any_text_is_read_or_refused_in_one_line(raw: dict[str, str]) -> None:
    assert "\n" not in _answer(raw)
    assert not re.search(r"Error|Traceback|<class", _answer(raw))


def _answer(raw: dict[str, str]) -> str:
    try:
        return repr(parse(raw))
    except DriverError as exc:
        return str(exc)
