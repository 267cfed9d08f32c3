"""Links, addresses, routes, neighbours and flows as pyroute2 reads them: a second opinion on what we read by hand."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any

import pytest

pytest.register_assert_rewrite("linux_host", "kernel_suite", "tunnel_suite")

from kernel_suite import BRIDGE, GATEWAY, VETH  # noqa: E402
from linux_host import LinuxHost, run  # noqa: E402
from tunnel_suite import FDB, NEIGHBOUR, NEIGHBOUR6, VXLAN  # noqa: E402

from netplug.drivers.steps import Address, Flows, Hairpin, IPInterface, IPNetwork, Proto, Route  # noqa: E402
from netplug.kernel.firewall.conntrack import Conntrack  # noqa: E402
from netplug.kernel.links import neighbours  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.netlink import rtnl  # noqa: E402
from netplug.kernel.netlink.connection import (  # noqa: E402
    NETLINK_NETFILTER,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    Netlink,
)
from netplug.kernel.netlink.pyroute2_messages import decoded, load  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

STEPS = (
    BRIDGE,
    GATEWAY,
    Address(BRIDGE.name, ip_interface("fd00:9::1/64")),
    replace(VETH, pinned=True, isolated=True),
    Hairpin(VETH.name),
    Route(ip_network("10.8.0.0/16"), BRIDGE.name, ip_address("10.9.0.7")),
    Route(ip_network("fd00:7::/64"), BRIDGE.name),
    VXLAN,
    FDB,
    NEIGHBOUR,
    NEIGHBOUR6,
)
GETNEIGH, CT_GET = 30, 1 << 8 | 1
UNICAST = 1
PORT, CLIENTS = 5353, 3


def read(nl: Netlink, kind: int, query: bytes, schema: Any, look: Callable[[Any], Any]) -> list[Any]:
    found = []
    for data in nl.dump(kind, query):
        with decoded(schema, data) as message:
            found.append(look(message))
    return found


def link(it: Any) -> tuple[object, ...]:
    info = it.get_attr("IFLA_LINKINFO")
    names = it.get_attr("IFLA_PROP_LIST")
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge" else None
    flags = [port.get_attr(f"IFLA_BRPORT_{name}") for name in ("ISOLATED", "MODE", "LEARNING")] if port else [0, 0, 1]
    return (
        it["index"],
        it.get_attr("IFLA_IFNAME"),
        (info and info.get_attr("IFLA_INFO_KIND")) or "",
        it.get_attr("IFLA_ADDRESS"),
        it.get_attr("IFLA_MTU"),
        bool(it["flags"] & 1),
        it.get_attr("IFLA_MASTER") or 0,
        it.get_attr("IFLA_LINK") or 0,
        tuple(names.get_attrs("IFLA_ALT_IFNAME")) if names else (),
        *map(bool, flags),
    )


def entry(it: Any) -> neighbours.Entry:
    dst = it.get_attr("NDA_DST")
    return neighbours.Entry(
        it["ifindex"],
        it.get_attr("NDA_LLADDR") or "",
        ip_address(dst) if dst else None,
        it["state"],
        it["flags"],
        it.get_attr("NDA_PROTOCOL") or 0,
        it.get_attr("NDA_MASTER") is not None,
    )


def address(it: Any) -> tuple[int, IPInterface]:
    return it["index"], ip_interface((it.get_attr("IFA_ADDRESS"), it["prefixlen"]))


def lasting(it: IPInterface | IPNetwork) -> bool:
    """Tell what the kernel does not make by itself some time after a link is up."""
    return not (it.is_link_local or it.is_multicast)


def route(it: Any) -> rtnl.LinkRoute | None:
    if it["type"] != UNICAST:
        return None
    gateway = it.get_attr("RTA_GATEWAY")
    version = IPv4Address if it["family"] == socket.AF_INET else IPv6Address
    return rtnl.LinkRoute(
        ip_network((it.get_attr("RTA_DST") or version(0), it["dst_len"])),
        it.get_attr("RTA_OIF"),
        ip_address(gateway) if gateway else None,
        it["proto"],
        it.get_attr("RTA_PRIORITY") or 0,
        it.get_attr("RTA_TABLE"),
    )


def flow(it: Any) -> tuple[object, ...]:
    there, back, status = (it.get_attr(f"CTA_{name}") for name in ("TUPLE_ORIG", "TUPLE_REPLY", "STATUS"))
    ip, answer = there.get_attr("CTA_TUPLE_IP"), back.get_attr("CTA_TUPLE_IP")
    return (
        there.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_DST_PORT"),
        *(ip_address(ip.get_attr(f"CTA_IP_V4_{name}")) for name in ("SRC", "DST")),
        ip_address(answer.get_attr("CTA_IP_V4_SRC")),
        *(bool(status & bit) for bit in (1 << 5, 1 << 1)),  # IPS_DST_NAT, IPS_SEEN_REPLY
    )


class TestMessages(LinuxHost):
    async def test_links_are_what_another_library_reads(self, kernel: LinuxKernel) -> None:
        await kernel.ensure(STEPS)
        schema = load("pyroute2.netlink.rtnl.ifinfmsg").ifinfmsg
        with Netlink.open() as nl:
            theirs = set(read(nl, RTM_GETLINK, rtnl.IFINFO.pack(0, 0, 0, 0, 0), schema, link))
            ours = {
                (
                    *(it.index, it.name, it.kind, it.mac, it.mtu, it.up, it.master, it.peer, it.altnames),
                    *(it.isolated, it.hairpin, it.learning),
                )
                for it in rtnl.links(nl)
            }
        assert ours == theirs
        assert len(ours) == 5

    async def test_addresses_are_what_another_library_reads(self, kernel: LinuxKernel) -> None:
        await kernel.ensure(STEPS)
        schema = load("pyroute2.netlink.rtnl.ifaddrmsg").ifaddrmsg
        with Netlink.open() as nl:
            found = read(nl, RTM_GETADDR, rtnl.IFADDR.pack(0, 0, 0, 0, 0), schema, address)
            ours = {(it.index, it.address) for it in rtnl.addresses(nl) if lasting(it.address)}
        assert ours == {it for it in found if lasting(it[1])}
        assert {it.address for it in STEPS if isinstance(it, Address)} <= {address for _, address in ours}

    async def test_routes_are_what_another_library_reads(self, kernel: LinuxKernel) -> None:
        await kernel.ensure(STEPS)
        schema, found = load("pyroute2.netlink.rtnl.rtmsg").rtmsg, []
        with Netlink.open() as nl:
            for family in (socket.AF_INET, socket.AF_INET6):
                found += read(nl, RTM_GETROUTE, rtnl.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), schema, route)
            ours = {it for it in rtnl.routes(nl, table=0) if lasting(it.destination)}
        assert ours == {it for it in found if it and lasting(it.destination)}
        assert {it.destination for it in STEPS if isinstance(it, Route)} <= {it.destination for it in ours}

    @pytest.mark.parametrize("family", [7, socket.AF_INET, socket.AF_INET6], ids=["FDB", "IPv4", "IPv6"])
    async def test_neighbours_are_what_another_library_reads(self, kernel: LinuxKernel, family: int) -> None:
        await kernel.ensure(STEPS)
        schema, query = load("pyroute2.netlink.rtnl.ndmsg").ndmsg, bytes((family,)) + bytes(11)
        with Netlink.open() as nl:
            # What the kernel finds out by itself comes and goes.
            theirs = {it for it in read(nl, GETNEIGH, query, schema, entry) if it.protocol or it.state == 0x40}
            ours = {it for it in map(neighbours.entry, nl.dump(GETNEIGH, query)) if it.protocol or it.state == 0x40}
        assert ours == theirs
        assert ours

    @pytest.mark.usefixtures("around")
    def test_flows_are_what_another_library_reads(self) -> None:
        run("nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }")
        run("nft", "add", "rule", "ip", "t", "o", "ct", "state", "new", "accept")
        for _ in range(CLIENTS):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"", ("127.0.0.1", PORT))
        tracked = Conntrack()
        found = tracked._find(Flows(Proto.UDP, PORT, ip_address("10.9.0.2")), {PORT})
        ours = [(it.port, it.source, it.destination, it.reply_source, it.translated, it.replied) for it in found]
        tracked.close()
        schema = load("pyroute2.netlink.nfnetlink.nfctsocket").nfct_msg
        with Netlink.open(NETLINK_NETFILTER) as nl:
            theirs = read(nl, CT_GET, bytes((socket.AF_INET, 0, 0, 0)), schema, flow)
        assert sorted(ours) == sorted(it for it in theirs if it[0] == PORT)
        assert len(ours) == CLIENTS
