"""Packets that the kernel dropped without a rule: its reasons (skb_drop_reason) in words."""

from netplug.insight.trace import mends, neighbours
from netplug.insight.trace.case import Case
from netplug.insight.trace.model import Cause, Place
from netplug.kernel.probes.api import Drop

_WORDS = {
    "ip_rpfilter": "the reverse path filter drops it: the route back to the sender leaves by another link",
    "ip_noproto": "nobody takes this protocol",
    "ip_innoroutes": "there is no route for it",
    "ip_outnoroutes": "there is no route for it",
    "neigh_failed": "the next hop does not answer for its address",
    "neigh_queuefull": "the next hop does not answer for its address",
    "neigh_createfail": "the neighbour table is full",
    "otherhost": "it is addressed to another MAC",
    "unicast_in_l2_multicast": "it is for one address, but in a group frame",
    "no_socket": "no socket has the port",
    "pkt_too_big": "it is larger than the MTU of the next link",
    "full_ring": "the receiving queue is full",
    "qdisc_drop": "the queue of the link is full, or its rate limit drops it",
    "tc_ingress": "a filter of tc drops what comes in",
    "tc_egress": "a filter of tc drops what goes out",
    "xdp": "an XDP program drops it",
    "socket_filter": "a filter of the socket drops it",
    "dev_ready": "the link is not up",
    "netfilter_drop": "netfilter drops it, but no rule that is traced does",
    "ip_localnet": "it has a loopback address on a link",
    "ip_invalid_source": "the sender's address is not allowed on the link",
    "ip_local_source": "the sender's address is one of the receiver's own",
    "bridge_ingress_stp_state": "the port of the bridge is blocked (STP)",
    "vlan_filter": "the VLAN filter of the bridge drops it",
    "tcp_listen_overflow": "the listener's queue is full",
    "socket_backlog": "the socket's queue is full",
    "ip_inaddrerrors": "it is for an address that is not the receiver's, and the receiver does not forward",
    "no_tx_target": "no port of the bridge, and no VTEP, leads to its MAC",
    "vxlan_vni_not_found": "no VXLAN link of the receiver has its VNI",
    "vxlan_no_remote": "no FDB entry names the VTEP that has its MAC",
}
_WORDS_BY_FUNCTION = {
    "ip_error": "no route leads to its address, or the receiver does not forward",
    "ip6_pkt_drop": "no route leads to its address",
}
"""Where the kernel gives no reason."""
_NO_REASON = frozenset({"", "not_specified"})


def dropping(case: Case, *, back: bool) -> Drop | None:
    """Return where the kernel dropped the packet, or its answer."""
    found = [it for it in case.report.drops if it.back is back]
    known = [it for it in found if it.reason not in _NO_REASON]
    return next(iter(known), None) or next((it for it in found if it.function in _WORDS_BY_FUNCTION), None)


def cause(case: Case, drop: Drop) -> Cause:
    """Say why the kernel dropped it."""
    if drop.reason == "otherhost" and (wrong := neighbours.wrong(case)):
        return wrong
    place = case.place(drop.netns) if drop.netns != "?" else None
    where = f"on {place.name}" if place else "the kernel drops it"
    if drop.reason == "neigh_failed" and place and (none := neighbours.none(case, place, back=drop.back)):
        # A request of a packet before this one, which the kernel repeats no more (neigh_invalidate).
        return none
    by = f" by {drop.link}" if drop.link else ""
    text = f"{where}{by}: {_words(drop, known=place is not None)} ({drop.function or drop.reason})"
    if drop.reason == "ip_rpfilter":
        return Cause("rp_filter", text, _rp_filter(case, drop, place))
    return Cause(f"kernel.{drop.reason}", text)


def _words(drop: Drop, *, known: bool) -> str:
    words = _WORDS_BY_FUNCTION.get(drop.function, "") if drop.reason in _NO_REASON else _WORDS.get(drop.reason, "")
    return words or ("the kernel drops it: " if known else "") + (drop.reason or "no reason is given")


def _rp_filter(case: Case, drop: Drop, place: Place | None) -> str:
    if place is None:
        return ""
    facts = case.scene.of(place)
    every = facts.sysctl("net/ipv4/conf/all/rp_filter")
    link = drop.link or next((it.link for it in case.path.stations if it.place == place and it.incoming), "all")
    names = [f"net.ipv4.conf.{link.replace('.', '/')}.rp_filter=2"]
    return mends.inside(place, "sysctl -w " + " ".join(names)) if every in {"", "0", "1"} else ""
