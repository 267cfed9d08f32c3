"""The same netlink messages packed and read both ways, for `netlink`: by hand, and by the schemas of pyroute2."""

import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Protocol

from netplug.kernel.links import neighbours
from netplug.kernel.netlink import rtnl, watch
from netplug.kernel.netlink import traffic_control as tc
from netplug.kernel.netlink.connection import (
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    Netlink,
    attr,
    attrs,
    nest,
    select_attrs,
    text,
    u8,
    u32,
)
from netplug.kernel.netlink.pyroute2_messages import decoded, encode, load

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH, RTM_GETQDISC, RTM_GETTFILTER = 28, 29, 30, 38, 46
CT_GET = 1 << 8 | 1
NEIGHBOURS = bytes((2, *bytes(11)))
"""The query for those of IPv4."""
HOST, SANDBOX = "npaaaaaaaaaaaa", "eth0"
MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
RATE, LIMIT, BURST = 12_500_000, 376_500, 64_000
Heard = Sequence[tuple[int, bytes]]


class Way(Protocol):
    """What is measured. Indexes are those of links."""

    def links(self, nl: Netlink) -> None: ...
    def addresses(self, nl: Netlink) -> None: ...
    def routes(self, nl: Netlink) -> None: ...
    def entries(self, nl: Netlink, *queries: bytes) -> None: ...
    def flows(self, dump: Sequence[bytes]) -> None: ...
    def hear(self, heard: Heard) -> None: ...
    def attach(self) -> None: ...
    def limit(self) -> None: ...
    def limits(self, nl: Netlink, links: Sequence[int], blocks: Sequence[int]) -> None: ...


class ByHand:
    """As the daemon does it, or did: `limit` and `limits`."""

    def links(self, nl: Netlink) -> None:
        rtnl.links(nl)

    def addresses(self, nl: Netlink) -> None:
        rtnl.addresses(nl)

    def routes(self, nl: Netlink) -> None:
        rtnl.routes(nl)

    def entries(self, nl: Netlink, *queries: bytes) -> None:
        for data in dump_entries(nl, *queries):
            neighbours.entry(data)

    def flows(self, dump: Sequence[bytes]) -> None:
        for data in dump:
            found = attrs(data, 4)
            there, back = attrs(found[1]), attrs(attrs(found[2])[1])
            ip, proto = attrs(there[1]), attrs(there[2])
            struct.unpack(">H", proto[3]), struct.unpack(">I", found[3])
            ip_address(ip[1]), ip_address(ip[2]), ip_address(back[1])

    def hear(self, heard: Heard) -> None:
        for kind, body in heard:
            if kind in {watch.NEWLINK, watch.DELLINK}:
                select_attrs(body, 16, frozenset((rtnl.IFLA_IFNAME, rtnl.IFLA_MTU)))
            elif kind in {RTM_NEWNEIGH, RTM_DELNEIGH}:
                neighbours.entry(body)

    def attach(self) -> None:
        ends = [
            text(rtnl.IFLA_IFNAME, name) + attr(rtnl.IFLA_ADDRESS, rtnl.packed_mac(mac)) + u32(rtnl.IFLA_MTU, 1500)
            for name, mac in zip((HOST, SANDBOX), MACS, strict=True)
        ]
        pair = nest(rtnl.IFLA_INFO_DATA, attr(1, rtnl.IFINFO.pack(0, 0, 0, 0, 0) + ends[1]))
        info = nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, "veth") + pair)
        _ = rtnl.IFINFO.pack(0, 0, 0, 0, 0) + ends[0] + u32(rtnl.IFLA_MASTER, 7) + info
        for name in (HOST, SANDBOX):
            names = nest(rtnl.IFLA_PROP_LIST, text(rtnl.IFLA_ALT_IFNAME, f"netplug-{name}"))
            _ = rtnl.IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, name) + names
        port = nest(rtnl.IFLA_INFO_SLAVE_DATA, u8(rtnl.IFLA_BRPORT_LEARNING, 0))
        info = nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_SLAVE_KIND, "bridge") + port)
        _ = rtnl.IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, HOST) + info
        _ = rtnl.IFINFO.pack(0, 0, 0, 1, 1) + text(rtnl.IFLA_IFNAME, SANDBOX)
        _ = struct.pack("=BxxxiHBB", 7, 7, 0x40, 4, 0) + attr(2, rtnl.packed_mac(MACS[1]))
        address = socket.inet_aton("10.90.0.2")
        _ = rtnl.IFADDR.pack(2, 16, 0, 0, 7) + attr(1, address) + attr(2, address) + u8(11, 110)
        _ = rtnl.RTMSG.pack(2, 0, 0, 0, 254, 110, 0, 1, 0) + attr(5, socket.inet_aton("10.90.0.1")) + u32(4, 7)

    def limit(self) -> None:
        for link in (7, 8):
            rate = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, RATE)
            parms = attr(1, struct.pack("=12s12sIII", rate, bytes(12), LIMIT, 0, 0))
            head = struct.pack("=BxxxiIII", 0, link, 0x10000, tc.ROOT, 0)
            _ = head + text(1, "tbf") + nest(2, parms, u32(6, BURST))
        _ = struct.pack("=BxxxiIII", 0, 7, 0xFFFF0000, tc.INGRESS, 0) + text(1, "ingress")
        select = attr(5, struct.pack("=BBBxHHhhIIIii", 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))
        mirred = attr(2, struct.pack("=IIiiiiI", 0, 0, 4, 0, 0, 1, 8))
        action = nest(7, nest(1, text(1, "mirred"), nest(2, mirred)))
        _ = struct.pack("=BxxxiIII", 0, 7, 0, 0xFFFF0000, 0x10300) + text(1, "u32") + nest(2, select, action)

    def limits(self, nl: Netlink, links: Sequence[int], blocks: Sequence[int]) -> None:
        wanted = {*links, *blocks}
        for data in nl.dump(RTM_GETQDISC, bytes(20)):
            found = attrs(data, 20)
            if struct.unpack_from("=i", data, 4)[0] in wanted and found.get(1) == b"tbf\0":
                struct.unpack_from("=12s12sIII", attrs(found[2])[1])
        for link in links:
            for data in nl.dump(RTM_GETTFILTER, struct.pack("=BxxxiIII", 0, link, 0, 0xFFFF0000, 0)):
                for action in attrs(attrs(attrs(data, 20).get(2, b"")).get(7, b"")).values():
                    struct.unpack_from("=IIiiiiI", attrs(attrs(action)[2])[2])


class ByPyroute2:
    """The same by its schemas, over the same sockets."""

    def __init__(self) -> None:
        self._link = load("pyroute2.netlink.rtnl.ifinfmsg").ifinfmsg
        self._address = load("pyroute2.netlink.rtnl.ifaddrmsg").ifaddrmsg
        self._route = load("pyroute2.netlink.rtnl.rtmsg").rtmsg
        self._neighbour = load("pyroute2.netlink.rtnl.ndmsg").ndmsg
        self._flow = load("pyroute2.netlink.nfnetlink.nfctsocket").nfct_msg

    def links(self, nl: Netlink) -> None:
        query = rtnl.IFINFO.pack(0, 0, 0, 0, 0) + u32(rtnl.IFLA_EXT_MASK, 1 << 3)
        read(nl.dump(RTM_GETLINK, query), self._link, link_of)

    def addresses(self, nl: Netlink) -> None:
        dump = nl.dump(RTM_GETADDR, rtnl.IFADDR.pack(0, 0, 0, 0, 0))
        read(dump, self._address, lambda it: ip_interface((it.get_attr("IFA_ADDRESS"), it["prefixlen"])))

    def routes(self, nl: Netlink) -> None:
        for family in (2, 10):
            query = rtnl.RTMSG.pack(family, 0, 0, 0, 254, 0, 0, 0, 0) + u32(rtnl.RTA_TABLE, 254)
            read(nl.dump(RTM_GETROUTE, query), self._route, route_of)

    def entries(self, nl: Netlink, *queries: bytes) -> None:
        read(dump_entries(nl, *queries), self._neighbour, entry_of)

    def flows(self, dump: Sequence[bytes]) -> None:
        read(dump, self._flow, flow_of)

    def hear(self, heard: Heard) -> None:
        for kind, body in heard:
            if kind in {watch.NEWLINK, watch.DELLINK}:
                read([body], self._link, lambda it: (it["flags"], it.get_attr("IFLA_IFNAME"), it.get_attr("IFLA_MTU")))
            elif kind in {RTM_NEWNEIGH, RTM_DELNEIGH}:
                read([body], self._neighbour, entry_of)

    def attach(self) -> None:
        ends = [
            [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MTU", 1500)]
            for name, mac in zip((HOST, SANDBOX), MACS, strict=True)
        ]
        peer = {"attrs": [("VETH_INFO_PEER", {"attrs": ends[1]})]}
        info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", peer)]}
        encode(self._link, attrs=[*ends[0], ("IFLA_MASTER", 7), ("IFLA_LINKINFO", info)])
        for name in (HOST, SANDBOX):
            names = {"attrs": [("IFLA_ALT_IFNAME", f"netplug-{name}")]}
            encode(self._link, attrs=[("IFLA_IFNAME", name), ("IFLA_PROP_LIST", names)])
        port = {"attrs": [("IFLA_BRPORT_LEARNING", 0)]}
        info = {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]}
        encode(self._link, attrs=[("IFLA_IFNAME", HOST), ("IFLA_LINKINFO", info)])
        encode(self._link, flags=1, change=1, attrs=[("IFLA_IFNAME", SANDBOX)])
        encode(self._neighbour, family=7, ifindex=7, state=0x40, flags=4, attrs=[("NDA_LLADDR", MACS[1])])
        local = [("IFA_LOCAL", "10.90.0.2"), ("IFA_ADDRESS", "10.90.0.2"), ("IFA_PROTO", 110)]
        encode(self._address, family=2, prefixlen=16, index=7, attrs=local)
        encode(
            self._route, family=2, table=254, proto=110, type=1, attrs=[("RTA_GATEWAY", "10.90.0.1"), ("RTA_OIF", 7)]
        )

    def limit(self) -> None:
        tc.bucket(7, RATE, LIMIT, BURST)
        tc.bucket(8, RATE, LIMIT, BURST)
        tc.ingress(7)
        tc.redirect(7, 8)

    def limits(self, nl: Netlink, links: Sequence[int], blocks: Sequence[int]) -> None:
        list(tc.buckets(nl.dump(RTM_GETQDISC, tc.qdiscs()), frozenset((*links, *blocks))))
        for link in links:
            tc.redirected(nl.dump(RTM_GETTFILTER, tc.filters(link)))


def dump_entries(nl: Netlink, *queries: bytes) -> list[bytes]:
    return [data for query in queries for data in nl.dump(RTM_GETNEIGH, query)]


def of_bridge(index: int) -> bytes:
    """Return the query for the FDB of a bridge."""
    return struct.pack("=BxxxiHBB", 7, 0, 0, 0, 0) + u32(9, index)


def of_port(index: int) -> bytes:
    """Return the query for what leads to a port, in its own FDB and in its bridge's."""
    return struct.pack("=BxxxiHBB", 7, 0, 0, 0, 0) + u32(8, index)


def dump_flows(nl: Netlink, port: int) -> list[bytes]:
    """Return the UDP flows to a port."""
    tuple_ = nest(1, nest(2, u8(1, socket.IPPROTO_UDP) + attr(3, struct.pack(">H", port))))
    return nl.dump(CT_GET, b"\x02\0\0\0" + tuple_ + nest(25, u32(1, 1 << 3 | 1 << 5), u32(2, 0)))


def read(dump: Sequence[bytes], schema: Any, look: Callable[[Any], object]) -> None:
    for data in dump:
        with decoded(schema, data) as message:
            look(message)


def link_of(it: Any) -> object:
    info, names = it.get_attr("IFLA_LINKINFO"), it.get_attr("IFLA_PROP_LIST")
    wanted = ("ADDRESS", "IFNAME", "MTU", "LINK", "MASTER", "GROUP", "LINK_NETNSID", "AF_SPEC")
    port = info and info.get_attr("IFLA_INFO_SLAVE_DATA")
    return (
        [it.get_attr(f"IFLA_{name}") for name in wanted],
        info and info.get_attr("IFLA_INFO_KIND"),
        port and [port.get_attr(f"IFLA_BRPORT_{name}") for name in ("ISOLATED", "MODE", "LEARNING")],
        names and names.get_attrs("IFLA_ALT_IFNAME"),
    )


def route_of(it: Any) -> object:
    destination = it.get_attr("RTA_DST")
    wanted = [it.get_attr(f"RTA_{name}") for name in ("OIF", "GATEWAY", "PRIORITY", "TABLE", "MULTIPATH")]
    return destination and ip_network((destination, it["dst_len"])), wanted


def entry_of(it: Any) -> object:
    dst = it.get_attr("NDA_DST")
    wanted = [it.get_attr(f"NDA_{name}") for name in ("LLADDR", "PROTOCOL", "MASTER")]
    return it["ifindex"], it["state"], it["flags"], dst and ip_address(dst), wanted


def flow_of(it: Any) -> object:
    there, back = it.get_attr("CTA_TUPLE_ORIG"), it.get_attr("CTA_TUPLE_REPLY").get_attr("CTA_TUPLE_IP")
    ip, proto = there.get_attr("CTA_TUPLE_IP"), there.get_attr("CTA_TUPLE_PROTO")
    addresses = ip.get_attr("CTA_IP_V4_SRC"), ip.get_attr("CTA_IP_V4_DST"), back.get_attr("CTA_IP_V4_SRC")
    return proto.get_attr("CTA_PROTO_DST_PORT"), it.get_attr("CTA_STATUS"), [ip_address(it) for it in addresses]
