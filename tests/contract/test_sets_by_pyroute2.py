"""Sets as pyroute2 reads them: a second opinion on the messages that we pack and take apart ourselves.

The daemon packs these by hand, see `netplug.kernel.firewall.ipset`.
"""

import asyncio
import os
import socket
from ipaddress import ip_network
from typing import Any

import pytest

pytest.register_assert_rewrite("linux_host")

from linux_host import LinuxHost  # noqa: E402
from pyroute2.ipset import AsyncIPSet  # noqa: E402

from netplug.drivers.steps import IpSet, Member  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

SETS = (
    IpSet("netplug-a4", "hash:net", 4),
    IpSet("netplug-b4", "hash:net,iface", 4),
    IpSet("netplug-c6", "hash:net", 6),
)
MEMBERS = (
    Member("netplug-a4", ip_network("10.1.0.0/24")),
    Member("netplug-a4", ip_network("10.1.1.7/32")),
    Member("netplug-b4", ip_network("10.2.0.0/16"), "np-test"),
    Member("netplug-b4", ip_network("0.0.0.0/0"), "br0"),
    Member("netplug-c6", ip_network("fd00:1::/64")),
    Member("netplug-c6", ip_network("fd00:2::7/128")),
)
DEADLINE_S = 10


async def read() -> tuple[set[tuple[str, str, int]], set[Member]]:
    """Return name, type and family of all sets, and all their members."""
    sets: Any = AsyncIPSet()
    await sets.setup_endpoint()
    found, members = set(), set()
    async with asyncio.timeout(DEADLINE_S):
        async for message in await sets.list():
            name, version = message.get_attr("IPSET_ATTR_SETNAME"), 6
            if message.get_attr("IPSET_ATTR_FAMILY") == socket.AF_INET:
                version = 4
            found.add((name, message.get_attr("IPSET_ATTR_TYPENAME"), version))
            entries = message.get_attr("IPSET_ATTR_ADT")
            for entry in entries.get_attrs("IPSET_ATTR_DATA") if entries else []:
                members.add(_member(name, entry, version))
    sets.close()
    return found, members


def _member(name: str, entry: Any, version: int) -> Member:
    value = entry.get_attr("IPSET_ATTR_IP") or entry.get_attr("IPSET_ATTR_IP_FROM")
    address = value.get_attr(f"IPSET_ATTR_IPADDR_IPV{version}")
    prefix = entry.get_attr("IPSET_ATTR_CIDR")
    net = ip_network(f"{address}/{prefix}" if prefix is not None else address)
    return Member(name, net, entry.get_attr("IPSET_ATTR_IFACE"))


class TestSets(LinuxHost):
    async def test_sets_and_members_are_what_another_library_reads(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((*SETS, *MEMBERS))
        assert await read() == ({(it.name, it.type, it.family) for it in SETS}, set(MEMBERS))
        await kernel.remove((*MEMBERS[::2],))
        assert (await read())[1] == set(MEMBERS[1::2])
        await kernel.remove((*MEMBERS[1::2], *SETS))
        assert await read() == (set(), set())
