"""Messages of traffic control: token buckets, and filters that redirect (tc-tbf(8), tc-mirred(8)).

They are encoded by pyroute2, which is imported for the first of them. The schema of a token bucket is ours: that of
pyroute2 0.9 lacks the 64-bit rate and the burst in bytes, and computes a rate table that the kernel no longer reads.
"""

import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

from netplug.kernel.netlink.pyroute2_messages import decoded, encode, load

ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
"""Parents of a qdisc: for egress and for ingress of a link (TC_H_ROOT, TC_H_INGRESS)."""
_BUCKET_HANDLE, _INGRESS_HANDLE = 0x00010000, 0xFFFF0000
_LINK, _HANDLE = struct.Struct("=4xi"), struct.Struct("=8xI")
"""Fields of struct tcmsg, to skip unwanted messages of a dump. Decoding one takes 50 µs."""
_INDEX = range(4, 8)
"""Bytes of struct tcmsg that are the index of the link."""
_NODE = 0xFFF
"""TC_U32_NODE: part of a u32 handle that is zero for a hash table."""
_ALL_PROTOCOLS = struct.unpack("=H", struct.pack(">H", 3))[0] | 1 << 16
"""ETH_P_ALL in network order, with priority 1."""
_ETHERNET = 1
"""TC_LINKLAYER_ETHERNET: the kernel needs no rate table."""
_STOLEN, _EGRESS_REDIRECT, _INGRESS_REDIRECT = 4, 1, 3
_MOST = 0xFFFFFFFF


def qdiscs() -> bytes:
    """Return the dump request for all qdiscs."""
    return encode(_qdisc())


def one_qdisc(link: int, parent: int) -> bytes:
    """Return the message that reads or removes a qdisc. `link`: index."""
    return _on(link, _one_qdisc(parent))


def bucket(link: int, rate: int, limit: int, burst: int) -> bytes:
    """Return a token bucket filter. `link`: index; `rate`: bytes per second; `limit`, `burst`: bytes."""
    return _on(link, _bucket(rate, limit, burst))


@lru_cache(maxsize=64)
def _bucket(rate: int, limit: int, burst: int) -> bytes:
    parms = {"rate": min(rate, _MOST), "rate___reserved": _ETHERNET, "limit": min(limit, _MOST)}
    options = [("TCA_TBF_PARMS", parms), ("TCA_TBF_BURST", burst)]
    if rate > _MOST:
        options.append(("TCA_TBF_RATE64", rate))
    attrs = [("TCA_KIND", "tbf"), ("TCA_OPTIONS", {"attrs": options})]
    return encode(_qdisc(), handle=_BUCKET_HANDLE, parent=ROOT, attrs=attrs)


def buckets(dump: Iterable[bytes], links: Collection[int]) -> Iterator[tuple[int, int, int]]:
    """Yield link, rate and limit of the token buckets in a dump of `qdiscs`. `links`: the indexes wanted."""
    for data in dump:
        if _LINK.unpack_from(data)[0] not in links:
            continue
        with decoded(_qdisc(), data) as found:
            if found["parent"] == ROOT and found.get_attr("TCA_KIND") == "tbf":
                options = found.get_attr("TCA_OPTIONS")
                parms = options.get_attr("TCA_TBF_PARMS")
                yield found["index"], options.get_attr("TCA_TBF_RATE64") or parms["rate"], parms["limit"]


def ingress(link: int) -> bytes:
    """Return the ingress qdisc, which filters of incoming packets need. `link`: index."""
    return _on(link, _ingress())


def redirect(link: int, target: int, *, ingress: bool = False) -> bytes:
    """Return the filter that redirects all packets arriving on a link to the egress of another, or to its ingress."""
    mirred = {"action": _STOLEN, "eaction": _INGRESS_REDIRECT if ingress else _EGRESS_REDIRECT, "ifindex": target}
    act = [("TCA_ACT_KIND", "mirred"), ("TCA_ACT_OPTIONS", {"attrs": [("TCA_MIRRED_PARMS", mirred)]})]
    # A key that matches all packets.
    selector = ("TCA_U32_SEL", {"keys": ["0/0+0"]})
    actions = ("TCA_U32_ACT", {"attrs": [("TCA_ACT_PRIO_1", {"attrs": act})]})
    attrs = [("TCA_KIND", "u32"), ("TCA_OPTIONS", {"attrs": [selector, actions]})]
    return encode(_filter(), index=link, parent=_INGRESS_HANDLE, info=_ALL_PROTOCOLS, attrs=attrs)


def filters(link: int) -> bytes:
    """Return the dump request for the ingress filters of a link."""
    return _on(link, _filters())


def redirected(dump: Iterable[bytes]) -> int:
    """Return the index of the link to which the first redirecting filter in a dump sends; 0 if there is none."""
    for data in dump:
        if not _HANDLE.unpack_from(data)[0] & _NODE:
            continue
        with decoded(_filter(), data) as found:
            actions = found.get_nested("TCA_OPTIONS", "TCA_U32_ACT")
            for _, action in actions["attrs"] if actions else ():
                parms = action.get_nested("TCA_ACT_OPTIONS", "TCA_MIRRED_PARMS")
                if parms:
                    return int(parms["ifindex"])
    return 0


def _on(link: int, message: bytes) -> bytes:
    """Return a message for a link. It is encoded once for all links, since encoding one takes 50 µs."""
    return message[: _INDEX.start] + link.to_bytes(4, sys.byteorder) + message[_INDEX.stop :]


@cache
def _one_qdisc(parent: int) -> bytes:
    return encode(_qdisc(), parent=parent)


@cache
def _ingress() -> bytes:
    return encode(_qdisc(), handle=_INGRESS_HANDLE, parent=INGRESS, attrs=[("TCA_KIND", "ingress")])


@cache
def _filters() -> bytes:
    return encode(_filter(), parent=_INGRESS_HANDLE)


@cache
def _filter() -> Any:
    return load("pyroute2.netlink.rtnl.tcmsg").tcmsg


@cache
def _qdisc() -> Any:
    netlink = load("pyroute2.netlink")
    tbf_parms = load("pyroute2.netlink.rtnl.tcmsg.sched_tbf").options.tbf_parms

    class Parms(netlink.nla):  # type: ignore[misc, name-defined]
        fields = tbf_parms.fields

    class Options(netlink.nla):  # type: ignore[misc, name-defined]
        parms = Parms
        nla_map = (
            ("TCA_TBF_UNSPEC", "none"),
            ("TCA_TBF_PARMS", "parms"),
            ("TCA_TBF_RTAB", "none"),
            ("TCA_TBF_PTAB", "none"),
            ("TCA_TBF_RATE64", "uint64"),
            ("TCA_TBF_PRATE64", "uint64"),
            ("TCA_TBF_BURST", "uint32"),
        )

    class Qdisc(netlink.nlmsg):  # type: ignore[misc, name-defined]
        fields = _filter().fields
        options = Options
        nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "options"))

    return Qdisc
