"""Why a packet in a tunnel, or its answer, does not arrive at the other host, or is not watched there."""

from dataclasses import replace

from netplug.cluster.questions import Reason
from netplug.insight.overlay.messages import Fault, Tunnel
from netplug.insight.overlay.tunnel import DOWN, in_words
from netplug.insight.overlay.underlay import OVERHEAD
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.insight.trace.overlay import (
    FAR_END,
    FAR_PORT,
    FAR_TUNNEL,
    FAR_UPLINK,
    TUNNEL_OUT,
    UPLINK_OUT,
    Stretched,
    far_host,
    far_place,
)
from netplug.insight.trace.trail import Trail

_OWN_KINDS = ("anycast", "underlay.", "far.", "host.", "endpoint.", "tunnel.", "peer.", "vtep.")
_TO_SEND = frozenset({"unknown", "fdb", "tunnel", "table"})
_TO_ASK = frozenset({"unknown", "neighbour"})
_UNDERLAY = frozenset({"underlay"})
_TO_RECEIVE = frozenset({"filter", "tunnel", "table", "link"})


def why(it: Stretched, trail: Trail, *, back: bool) -> Cause | None:
    """Return why a packet did not come to the first station where it is missing, if the tunnel is the reason."""
    missing = trail.first_missing
    if missing is None:
        return None
    answering = _BACK if back else _THERE
    find = answering.get(missing.name)
    return find(it, trail) if find else None


def _near_sends(it: Stretched, _: Trail) -> Cause | None:
    """Nothing here puts it into the tunnel, or not to the right host."""
    if it.strayed:
        words = f"this host sends frames for {it.end.name} to VTEP {it.strayed}, and host {it.host} has {it.near.other}"
        return Cause("tunnel.wrong_vtep", words, "netplug repair")
    if fault := _fault(it.near, _TO_SEND):
        return _of_fault(fault, "this host", f"{it.end.name} on host {it.host}")
    return None


def _near_asks(it: Stretched, _: Trail) -> Cause | None:
    """Nobody answers for the address: the bridge does, for endpoints that are known here."""
    if fault := _fault(it.near, _TO_ASK):
        return _of_fault(fault, "this host", f"{it.end.name} on host {it.host}")
    return None


def _near_leaves(it: Stretched, trail: Trail) -> Cause | None:
    if cause := _near_sends(it, trail):
        return cause
    if fault := _fault(it.near, _UNDERLAY):
        mend = f"ip link set {fault.where} up" if fault.words == DOWN else f"give this host address {it.near.vtep}"
        return Cause("underlay.link", f"this host sends no VXLAN: {in_words(fault)}", mend)
    route = it.near.route
    if route and route.error:
        words = f"this host has no route to VTEP {it.near.other} of host {it.host}: {route.error}"
        return Cause("underlay.no_route", words, f"ip route add {it.near.other} via ROUTER")
    return _unreachable(it) if it.underlay and not it.underlay.answers else None


def _far_receives(it: Stretched, _: Trail) -> Cause | None:
    """It left this host, and did not come to the other one."""
    there = it.there.tunnel
    if there and there.vtep != it.near.other:
        words = f"this host sends to VTEP {it.near.other}, and host {it.host} has {there.vtep} now"
        return Cause("vtep.changed", words, "netplug host ls")
    if it.underlay and it.underlay.answers:
        return _blocked(it, "this host", f"host {it.host}")
    return _unreachable(it)


def _blocked(it: Stretched, sender: str, receiver: str) -> Cause:
    port = it.near.port
    words = (
        f"it leaves {sender} and does not come to {receiver}, though VTEP {it.near.other} answers an echo request: "
        f"something between the hosts drops UDP port {port}"
    )
    return Cause("underlay.blocked", words, f"let UDP port {port} pass between {it.near.vtep} and {it.near.other}")


def _unreachable(it: Stretched) -> Cause:
    said = f" ({it.underlay.said})" if it.underlay and it.underlay.said else ""
    words = f"VTEP {it.near.other} of host {it.host} does not answer{said}"
    if it.far.silence and it.far.silence.reason is Reason.STORE:
        words = f"neither VTEP {it.near.other} of host {it.host} nor the shared store answers{said}"
        return Cause("host.cut_off", f"{words}: this host is cut off from the others", "netplug doctor")
    if it.far.silence:
        words += f", and neither does its netplug ({it.far.silence.message})"
        mend = f"start host {it.host}, or mend its network; if it is gone for ever: netplug host forget {it.host}"
        return Cause("host.unreachable", f"{words}: the host is down, or cut off, or has another address now", mend)
    words += ", though its netplug does: the way between the hosts is cut"
    return Cause("underlay.unreachable", words, f"ip route get {it.near.other} from {it.near.vtep}")


def _far_decapsulates(it: Stretched, _: Trail) -> Cause | None:
    """It came to the other host, whose VXLAN link does not take it."""
    if fault := it.there.tunnel and _fault(it.there.tunnel, _TO_RECEIVE | {"unknown"}):
        words = f"host {it.host} takes no VXLAN from VTEP {it.near.vtep}: {in_words(fault)}"
        return Cause("far.filter", words, f"on host {it.host}: netplug repair")
    return None


def _far_delivers(it: Stretched, _: Trail) -> Cause | None:
    if fault := it.there.tunnel and _fault(it.there.tunnel, _TO_RECEIVE):
        return _of_fault(fault, f"host {it.host}", it.end.name, repair_on=it.host)
    return None


def _far_answers(it: Stretched, _: Trail) -> Cause | None:
    """The other host does not put the answer into the tunnel."""
    tunnel = it.there.tunnel
    if it.anycast:
        words = f"this host sends from {it.anycast}, which is the gateway of each host: host {it.host} takes the answer"
        port = f"on host {it.host}: netplug publish {it.end.name} PORT"
        return Cause("anycast", words, f"ask from a container, or {port}, and ask for {it.near.other}")
    if it.strayed_back:
        words = f"host {it.host} sends the answer to VTEP {it.strayed_back}, and this host has {it.near.vtep}"
        return Cause("tunnel.wrong_vtep", words, f"on host {it.host}: netplug repair")
    if tunnel is None:
        return None
    if fault := _fault(tunnel, _TO_SEND | {"neighbour"}):
        return _of_fault(fault, f"host {it.host}", "the sender", repair_on=it.host)
    if tunnel.route and tunnel.route.error:
        words = f"host {it.host} has no route to VTEP {it.near.vtep} of this host: {tunnel.route.error}"
        return Cause("underlay.no_route", words, f"on host {it.host}: ip route add {it.near.vtep} via ROUTER")
    return None


def _near_hears(it: Stretched, _: Trail) -> Cause | None:
    """The answer left the other host, and did not come to this one."""
    return _blocked(it, f"host {it.host}", "this host")


def _near_takes(it: Stretched, _: Trail) -> Cause | None:
    if fault := _fault(it.near, _TO_RECEIVE):
        words = f"this host takes no VXLAN from VTEP {it.near.other}: {in_words(fault)}"
        return Cause("tunnel.filter", words, "netplug repair")
    return None


_THERE = {
    "source": _near_asks,
    "bridge-out": _near_asks,
    TUNNEL_OUT: _near_sends,
    UPLINK_OUT: _near_leaves,
    FAR_UPLINK: _far_receives,
    FAR_TUNNEL: _far_decapsulates,
    FAR_PORT: _far_delivers,
    FAR_END: _far_delivers,
}
_BACK = {
    FAR_END: _far_answers,
    FAR_PORT: _far_answers,
    FAR_TUNNEL: _far_answers,
    FAR_UPLINK: _far_answers,
    UPLINK_OUT: _near_hears,
    TUNNEL_OUT: _near_takes,
}


def _fault(tunnel: Tunnel, kinds: frozenset[str]) -> Fault | None:
    return next((fault for fault in tunnel.faults if fault.kind in kinds), None)


def _of_fault(fault: Fault, where: str, who: str, *, repair_on: str = "") -> Cause:
    mend = f"on host {repair_on}: netplug repair" if repair_on else "netplug repair"
    if fault.kind == "unknown":
        mend = mend.replace("repair", "diff")
        return Cause("peer.unknown", f"{where} does not know where {who} is: {in_words(fault)}", mend)
    return Cause(f"tunnel.{fault.kind}", f"{where} is not as its records say: {in_words(fault)}", mend)


# A host that does not watch


def unwatched(it: Stretched, *, answered: bool) -> Hop:
    """Return the hop of a host that does not watch: a note if something was answered, else the break."""
    where, what = f"host {it.host}", "watches what comes in"
    if it.there.absent:
        words = f"{it.there.absent}, though the records of the cluster say so"
        return Hop("far-host", where, what, Verdict.BROKEN, cause=Cause("endpoint.gone", words, "netplug host ls"))
    cause = _why_unwatched(it)
    if answered:
        return Hop("far-host", where, f"{what}: {cause.words}", Verdict.NOTED, cause=cause)
    if it.underlay and it.underlay.answers:
        words = f"{cause.words}. VTEP {it.near.other} answers an echo request: the host lives, and is reached"
        cause = Cause(cause.kind, words, cause.mend)
    else:
        cause = _unreachable(it)
    return Hop("far-host", where, what, Verdict.BROKEN, cause=cause)


def refused(it: Stretched, port: int) -> Hop:
    """Return the hop of a connection that a host refused which does not watch."""
    name = far_place(it).name
    words = f"{name} refuses port {port}/tcp: nobody listens on it"
    mend = f"on host {it.host}: start the server in {name}"
    return Hop("listener", name, f"port {port}/tcp", Verdict.BROKEN, cause=Cause("listener.none", words, mend))


def located(it: Stretched, hop: Hop) -> Hop:
    """Return a hop whose mend says that it is to be done on the other host, if it is."""
    there = {far_host(it).name, far_place(it).name}
    prefix = f"on host {it.host}: "
    if hop.cause is None or not hop.cause.mend or hop.where not in there or hop.cause.mend.startswith(prefix):
        return hop
    if hop.cause.kind.startswith(_OWN_KINDS):  # they say themselves where
        return hop
    return replace(hop, cause=replace(hop.cause, mend=prefix + hop.cause.mend))


def _why_unwatched(it: Stretched) -> Cause:
    silence = it.far.silence
    if silence is None:
        words = "; ".join(it.there.lacks) or f"host {it.host} does not watch"
        return Cause("far.unwatched", words)
    return Cause(f"far.{silence.reason.name.lower()}", silence.message, silence.hint)


def too_large(it: Stretched, size: int) -> Cause | None:
    """Return why packets of a size are lost between the hosts, if the underlay was found to carry less."""
    below = it.underlay
    needed = size + OVERHEAD[it.near.other.version]
    if below is None or not below.largest or below.largest >= needed:
        return None
    fits = below.largest - OVERHEAD[it.near.other.version]
    told = f", as {below.told} says" if below.told else ", and nobody says so"
    words = (
        f"packets of {size} bytes are lost between the hosts: they are {needed} bytes in VXLAN, and the way from "
        f"{it.near.vtep} to {it.near.other} carries about {below.largest}{told}"
    )
    mend = f"raise the MTU of the underlay, or: netplug network update {it.end.record.network.name} -o mtu={fits}"
    return Cause("underlay.mtu", words, mend)
