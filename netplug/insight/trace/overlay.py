"""The stretch between two hosts: its stations, and one report of what both hosts saw."""

from dataclasses import dataclass, replace

from netplug.drivers.steps import IPAddress
from netplug.insight.overlay.far_watch import FarWatch
from netplug.insight.overlay.messages import Seat, Tunnel, Watching
from netplug.insight.overlay.remote_ends import RemoteEnd
from netplug.insight.overlay.underlay import Underlay
from netplug.insight.trace.model import Place, Station, Stretch
from netplug.kernel.probes.api import HOST, Report, Sighting

TUNNEL_OUT, UPLINK_OUT = "tunnel-out", "uplink-out"
FAR_UPLINK, FAR_TUNNEL, FAR_PORT, FAR_END = "far-uplink", "far-tunnel", "far-port", "destination"
_NAMES = {"far-end": FAR_END}
"""Of seats that are called differently as stations."""


@dataclass(frozen=True, slots=True)
class Stretched:
    """What is known of the way to another host.

    `near`: the tunnel's end here. `far`: what the other host watches, or why it does not. `underlay`: looked at if the
    tunnel's packets are lost. `strayed`, `strayed_back`: a VTEP to which the packet, or its answer, was sent instead of
    the right one. `anycast`: the sender's address, if it is the gateway's, which each host has.
    """

    end: RemoteEnd
    near: Tunnel
    far: FarWatch
    underlay: Underlay | None = None
    strayed: IPAddress | None = None
    strayed_back: IPAddress | None = None
    anycast: IPAddress | None = None

    @property
    def host(self) -> str:
        return self.end.host_name

    @property
    def there(self) -> Watching:
        return self.far.watching


def near_stretch(it: Stretched, host: Place) -> Stretch:
    """Return where a packet leaves this host in the tunnel."""
    tunnel = it.near
    words = f"{tunnel.link} puts it into VXLAN {tunnel.vni} for VTEP {tunnel.other}"
    into = Station(TUNNEL_OUT, host, tunnel.link, False, words)
    words = f"{tunnel.uplink or 'no link'} sends it to {tunnel.other}, UDP port {tunnel.port}"
    return Stretch("tunnel", host, (into, Station(UPLINK_OUT, host, tunnel.uplink, False, words)))


def far_stretches(it: Stretched) -> tuple[Stretch, ...]:
    """Return the way of a packet on the other host; none if it does not watch."""
    host, inside = far_host(it), far_place(it)
    seats = it.there.seats if it.far.open else ()
    on_host = tuple(_station(seat, host) for seat in seats if not seat.sandbox)
    within = tuple(_station(seat, inside) for seat in seats if seat.sandbox)
    found = (Stretch("far-host", host, on_host), Stretch("destination", inside, within))
    return tuple(stretch for stretch in found if stretch.stations)


def far_host(it: Stretched) -> Place:
    return Place(f"host {it.host}", HOST, it.host)


def far_place(it: Stretched) -> Place:
    return Place(it.there.called or it.end.name, it.there.netns, it.host)


def _station(seat: Seat, place: Place) -> Station:
    words = {
        "far-uplink": f"{seat.link} receives it",
        "far-tunnel": f"{seat.link} takes it out of VXLAN",
        "far-port": f"{seat.link} sends",
        "far-end": f"{seat.link} of {place.name} receives",
    }.get(seat.name, f"{seat.link} passes it")
    return Station(_NAMES.get(seat.name, seat.name), place, seat.link, seat.incoming, words)


def merged(near: Report, far: Report, host: str) -> Report:
    """Return one report of both hosts. Namespaces of the other one are called "HOST:PATH".

    The clocks of hosts differ, and a watch begins before the packet is sent: so it is taken to come in there at the
    moment at which it left here.
    """
    left = max((it.ms for it in near.sightings if it.post == UPLINK_OUT and not it.back), default=0.0)
    first = min((it.ms for it in far.sightings if not it.back), default=0.0)
    sightings = tuple(_there(it, left - first) for it in far.sightings)

    def key(netns: str) -> str:
        return Place("", netns, host).key

    return replace(
        near,
        sightings=near.sightings + sightings,
        rules=near.rules + tuple(replace(it, netns=key(it.netns)) for it in far.rules),
        drops=near.drops + tuple(replace(it, netns=key(it.netns)) for it in far.drops),
        lacks=near.lacks + tuple(f"host {host}: {it}" for it in far.lacks),
    )


def without_strays(it: Stretched, report: Report) -> tuple[Stretched, Report]:
    """Take out packets that were sent to a wrong VTEP, and note to which."""
    kept, strayed, back = [], it.strayed, it.strayed_back
    for one in report.sightings:
        to = one.vtep_destination
        if one.post == UPLINK_OUT and not one.back and not one.incoming and to and to != it.near.other:
            strayed = to
        elif one.post == FAR_UPLINK and one.back and not one.incoming and to and to != it.near.vtep:
            back = to
        else:
            kept.append(one)
    return replace(it, strayed=strayed, strayed_back=back), replace(report, sightings=tuple(kept))


def _there(it: Sighting, offset_ms: float) -> Sighting:
    return replace(it, post=_NAMES.get(it.post, it.post), ms=it.ms + offset_ms)
