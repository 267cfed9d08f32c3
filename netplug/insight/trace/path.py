"""The path of a packet: which links it has to pass, as the routes and the wiring of its places say.

A sandbox is wired by a veth, whose other end is on the host and may be a port of a bridge, or by a macvlan. The host
forwards in between, by the bridge alone (`Crossing.bridged`) or by its routes.
"""

from dataclasses import dataclass

from netplug.drivers.naming import host_side, point_to_point
from netplug.engine.records import EndpointRecord
from netplug.insight.links import link_of, owner
from netplug.insight.trace import overlay
from netplug.insight.trace.ends import End, Kind
from netplug.insight.trace.model import HOST_PLACE, Path, Station, Stretch
from netplug.insight.trace.overlay import Stretched
from netplug.kernel.probes.api import Facts, LinkState


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a link of a sandbox reaches the host. `port`: the host side; `bridge`: that it is a port of; `parent`: of a
    macvlan. `record`: the endpoint that it belongs to, None for a link of another engine.
    """

    link: str
    kind: str = ""
    port: str = ""
    bridge: str = ""
    parent: str = ""
    record: EndpointRecord | None = None

    @property
    def shared(self) -> bool:
        """Whether it is on the segment of a link of the host, past the host's firewall."""
        return self.kind in {"macvlan", "ipvlan"}


def wiring(name: str, end: End, inside: Facts, host: Facts) -> Wiring:
    """Return how a link of a sandbox is wired; what the kernel does not tell is taken from the record."""
    link = inside.link(name)
    record = owner(link, end.records) if link else None
    if link and link.kind in {"macvlan", "ipvlan"}:
        parent = next((it.name for it in host.links if it.index == link.peer), "")
        return Wiring(name, link.kind, parent=parent, record=record)
    port = _host_side(link, record, host)
    there = host.link(port)
    bridge = there.master if there and there.master else expected_bridge(record, port)
    return Wiring(name, link.kind if link else "", port, bridge, record=record)


def expected_bridge(record: EndpointRecord | None, port: str) -> str:
    """Return the bridge that a port belongs to by the record; empty for a point-to-point link."""
    veth = next((it for it in (record.plan if record else ()) if getattr(it, "name", "") == port), None)
    return getattr(veth, "master", "") or ""


def host_link(way: Wiring | None) -> str:
    """Return the link by which the host reaches a sandbox; empty if it is not by one of its own."""
    return "" if way is None or way.shared else way.bridge or way.port


def wrong_mac(record: EndpointRecord, inside: Facts) -> str:
    """Return that the link of an endpoint has another MAC than the record, in words; empty if it has not."""
    link, wanted = link_of(record, inside), record.attachment.mac or record.endpoint.chosen_mac()
    return f"from MAC {link.mac}, and its own is {wanted}" if link and wanted and link.mac != wanted else ""


def _host_side(link: LinkState | None, record: EndpointRecord | None, host: Facts) -> str:
    if link and link.peer and not link.peer_here:
        found = next((it for it in host.links if it.index == link.peer and it.kind == "veth"), None)
        if found and found.peer == link.index:
            return found.name
    if record and record.host_link:
        return record.host_link.name
    if record:
        names = {host_side(record.endpoint.id), point_to_point(record.endpoint.id)}
        return next((it.name for it in host.links if it.name in names), "")
    return ""


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a path is computed from.

    `way_in`, `way_out`: how source and destination are wired, None where they are no sandboxes. `uplink`: by which the
    host sends to, or receives from, outside.
    """

    source: End
    destination: End
    way_in: Wiring | None = None
    way_out: Wiring | None = None
    uplink: str = ""
    routed: bool = True
    direct: bool = False

    @property
    def bridged(self) -> bool:
        """Whether the bridge forwards the packet, and no router."""
        one, other = self.way_in, self.way_out
        if self.routed or one is None or other is None:
            return False
        return bool(one.bridge) and one.bridge == other.bridge

    @property
    def beside(self) -> bool:
        """Whether both are on the segment of one link of the host, which then sees nothing."""
        one, other = self.way_in, self.way_out
        return bool(one and other and one.shared and other.shared and one.parent == other.parent and not self.routed)


def path(it: Crossing, stretched: Stretched | None = None) -> Path:
    """Return the stations of a packet, in order; `stretched`: those between hosts, if the destination is on another."""
    if it.direct:
        return Path((Stretch("itself", it.source.place),))
    if stretched:
        here = (_departure(it), _middle(it), overlay.near_stretch(stretched, HOST_PLACE))
        return Path(tuple(stretch for stretch in (*here, *overlay.far_stretches(stretched)) if stretch))
    return Path(tuple(stretch for stretch in (_departure(it), _middle(it), _arrival(it)) if stretch))


def _departure(it: Crossing) -> Stretch | None:
    if it.way_in is None:
        return None
    place, link = it.source.place, it.way_in.link
    return Stretch("source", place, (Station("source", place, link, False, f"{link} of {place.name} sends"),))


def _middle(it: Crossing) -> Stretch | None:
    stations: list[Station] = []

    def at(name: str, link: str, words: str, *, incoming: bool) -> None:
        if link:
            stations.append(Station(name, HOST_PLACE, link, incoming, words))

    one, other = it.way_in, it.way_out
    if it.source.kind is Kind.OUTSIDE:
        at("uplink-in", it.uplink, f"{it.uplink} receives", incoming=True)
    if one and not one.shared:
        words = f"{one.port}, port of {one.bridge}, receives" if one.bridge else f"{one.port} receives"
        at("port-in", one.port, words, incoming=True)
        if not it.bridged:
            at("bridge-in", one.bridge, f"bridge {one.bridge} hands it to the host", incoming=True)
    if it.destination.kind is Kind.OUTSIDE and not (other and other.shared):
        at("uplink-out", it.uplink, f"{it.uplink} sends", incoming=False)
    if one and one.shared and it.destination.kind is Kind.SANDBOX and other and not other.shared:
        at("parent", one.parent, f"{one.parent} sends", incoming=False)
    if other and not other.shared:
        if not it.bridged:
            at("bridge-out", other.bridge, f"the host sends by bridge {other.bridge}", incoming=False)
        words = f"{other.port}, port of {other.bridge}, sends" if other.bridge else f"the host sends by {other.port}"
        at("port-out", other.port, words, incoming=False)
    return Stretch("host", HOST_PLACE, tuple(stations)) if stations else None


def _arrival(it: Crossing) -> Stretch | None:
    if it.way_out is None:
        return None
    place, link = it.destination.place, it.way_out.link
    words = f"{link} of {place.name} receives"
    return Stretch("destination", place, (Station("destination", place, link, True, words),))
