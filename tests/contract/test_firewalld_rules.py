"""What firewalld's rules say, as its versions write them. `test_firewalld_zone.py` has a real one."""

import os
from dataclasses import replace

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytest.register_assert_rewrite("linux_host")

from linux_host import LinuxHost, run  # noqa: E402

from netplug.drivers.api import Firewalld  # noqa: E402
from netplug.kernel.firewall import firewalld  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

_ZONES = """
 chain filter_IN_policy_allow-host-ipv6 { icmpv6 type nd-neighbor-solicit accept; }
 chain filter_IN_public_allow { udp dport 4789 accept; }
 chain filter_IN_public { jump filter_IN_public_allow; meta l4proto { icmp, ipv6-icmp } accept; }
"""
ONE = """
 chain filter_IN_netplug { accept; }
 chain filter_INPUT_ZONES {
  SOURCE iifname "br7" goto filter_IN_public; iifname "np-*" goto filter_IN_netplug; goto filter_IN_DEFAULT;
 }
"""
TWO = """
 chain filter_IN_netplug { }
 chain filter_INPUT_POLICIES {
  SOURCE
  iifname "br7" jump filter_IN_policy_allow-host-ipv6; iifname "br7" jump filter_IN_public; iifname "br7" reject;
  iifname "np-*" jump filter_IN_policy_allow-host-ipv6; iifname "np-*" jump filter_IN_netplug; iifname "np-*" accept;
  jump filter_IN_policy_allow-host-ipv6; jump filter_IN_DEFAULT; VERDICT;
 }
"""
THREE = """
 chain filter_IN_netplug { }
 chain filter_IN_public_to_HOST { jump filter_IN_policy_allow-host-ipv6; jump filter_IN_public; reject; }
 chain filter_IN_netplug_to_HOST { jump filter_IN_policy_allow-host-ipv6; jump filter_IN_netplug; accept; }
 chain filter_INPUT_dispatch {
  SOURCE iifname "br7" jump filter_IN_public_to_HOST; iifname "np-*" jump filter_IN_netplug_to_HOST;
  jump filter_IN_DEFAULT_to_HOST;
 }
"""
FOUND = Firewalld((("br7", "public"), ("np-+", "netplug")), frozenset({4789}), frozenset({"np-+"}))
SOURCES = {
    ONE: "ip saddr 198.51.100.0/24 goto filter_IN_netplug; ",
    TWO: "ip saddr 198.51.100.0/24 jump filter_IN_netplug; ip saddr 198.51.100.0/24 accept; ",
    THREE: "ip saddr 198.51.100.0/24 jump filter_IN_netplug_to_HOST; ",
}


@pytest.mark.parametrize("version", [ONE, TWO, THREE], ids=["1.3", "2.3", "2.5"])
class TestRules(LinuxHost):
    async def test_zones_of_links_are_seen(self, kernel: LinuxKernel, version: str) -> None:
        assert (await kernel.facts()).firewalld is None
        load(version)
        assert (await kernel.facts()).firewalld == FOUND
        found = firewalld.zones(kernel._looking)
        assert found
        assert found.zones == FOUND.zones

    async def test_addresses_in_a_zone_that_accepts_all_are_seen(self, kernel: LinuxKernel, version: str) -> None:
        load(version, source=SOURCES[version])
        assert (await kernel.facts()).firewalld == replace(FOUND, trusted=FOUND.trusted | {""})

    async def test_default_zone_that_accepts_all_drops_nothing(self, kernel: LinuxKernel, version: str) -> None:
        load(version, default="netplug", verdict="accept")
        assert (await kernel.facts()).firewalld is None
        assert firewalld.zones(kernel._looking) is None


def load(version: str, source: str = "", default: str = "public", verdict: str = "reject") -> None:
    rules = version.replace("SOURCE", source).replace("DEFAULT", default).replace("VERDICT", verdict)
    run("nft", "-f", "-", text=f"table inet firewalld {{ {_ZONES} {rules} }}\n")
