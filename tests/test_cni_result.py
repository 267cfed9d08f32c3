"""CNI results in the shapes of each version, without a kernel."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from netplug.frontends.cni.result import Dns, Interface, Ip, Result, RouteOf, parse, read_resolv_conf, render
from netplug.frontends.cni.shim import SPEC_VERSIONS
from netplug.frontends.cni.wire import CniError

FULL = Result(
    (Interface("br", "02:00:00:00:00:01", mtu=1500), Interface("eth0", "02:00:00:00:00:02", "/run/netns/x", 1500)),
    (
        Ip(ip_interface("10.1.0.2/24"), ip_address("10.1.0.1"), 1),
        Ip(ip_interface("fd00::2/64"), ip_address("fd00::1"), 1),
    ),
    (RouteOf(ip_network("0.0.0.0/0"), ip_address("10.1.0.1")), RouteOf(ip_network("fd01::/64"))),
    Dns(("10.1.0.1",), "d", ("s",), ("o",)),
)
DNS = {"nameservers": ["10.1.0.1"], "domain": "d", "search": ["s"], "options": ["o"]}
OLD: dict[str, Any] = {
    "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
    "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "fd01::/64"}]},
    "dns": DNS,
}
BASE: dict[str, Any] = {
    "interfaces": [
        {"name": "br", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ],
    "ips": [
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
        {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 1},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "fd01::/64"}],
    "dns": DNS,
}
VERSIONED = BASE | {"ips": [{"version": family} | ip for family, ip in zip("46", BASE["ips"], strict=True)]}
NEWEST = BASE | {"interfaces": [link | {"mtu": 1500} for link in BASE["interfaces"]]}
SHAPES = {"0.1.0": OLD, "0.2.0": OLD, "0.3.0": VERSIONED, "0.3.1": VERSIONED, "0.4.0": VERSIONED, "1.0.0": BASE}
SHAPES["1.1.0"] = NEWEST


@pytest.mark.parametrize("version", SPEC_VERSIONS)
def test_result_has_the_shape_of_its_version(version: str) -> None:
    assert render(FULL, version) == {"cniVersion": version} | SHAPES[version]


@pytest.mark.parametrize("version", SPEC_VERSIONS)
def test_reading_is_the_inverse_of_writing(version: str) -> None:
    written = render(FULL, version)
    assert render(parse(written, "0.1.0"), version) == written
    without = {key: value for key, value in written.items() if key != "cniVersion"}
    assert parse(without, version) == parse(written, version)


@pytest.mark.parametrize("version", SPEC_VERSIONS)
def test_empty_dns_is_left_out_from_one_on(version: str) -> None:
    bare = Result(ips=(Ip(ip_interface("10.1.0.2/24")),))
    assert ("dns" in render(bare, version)) == (version < "1.0.0")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@pytest.mark.parametrize("addresses", [(), ("10.1.0.2/24", "10.2.0.2/24")])
def test_first_versions_cannot_say_none_nor_two_of_a_family(version: str, addresses: tuple[str, ...]) -> None:
    with pytest.raises(CniError):
        render(Result(ips=tuple(Ip(ip_interface(text)) for text in addresses)), version)


def test_result_after_another_keeps_that_and_counts_on() -> None:
    before = Result((Interface("lo", sandbox="/run/netns/x"),), (Ip(ip_interface("127.0.0.1/8"), None, 0),))
    both = FULL.after(before)
    assert [link.name for link in both.interfaces] == ["lo", "br", "eth0"]
    assert [ip.interface for ip in both.ips] == [0, 2, 2]
    assert Result().after(FULL) == FULL


def test_what_newer_versions_know_is_handed_on() -> None:
    data = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "v", "mac": "", "socketPath": "/s", "pciID": "p", "mtu": 9000}],
        "routes": [{"dst": "10.0.0.0/8", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 7, "scope": 253}],
    }
    again = render(parse(data, "1.1.0"), "1.1.0")
    assert again["interfaces"] == [{"name": "v", "socketPath": "/s", "pciID": "p", "mtu": 9000}]
    assert again["routes"] == data["routes"]
    assert render(parse(data, "1.1.0"), "1.0.0")["routes"] == [{"dst": "10.0.0.0/8"}]


@pytest.mark.parametrize("data", [{"ips": [{"address": "x"}]}, {"ips": [{}]}, {"interfaces": [7]}, {"ips": 3}])
def test_previous_result_that_is_none_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(CniError) as caught:
        parse(data, "1.0.0")
    assert caught.value.code == 6


def test_resolver_file_is_read_as_resolvers_do() -> None:
    text = (
        "# c\nnameserver 10.0.0.1\nnameserver fd00::1\ndomain d\nsearch a b\nsearch c\noptions ndots:1\noptions edns0\n"
    )
    assert read_resolv_conf(text) == Dns(("10.0.0.1", "fd00::1"), "d", ("c",), ("ndots:1", "edns0"))
