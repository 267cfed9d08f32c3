"""The other host's part of a trace: it is asked to watch before the packet is sent, and for its report after that."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from netplug.cluster.cluster import Cluster
from netplug.cluster.questions import Unanswered
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.insight.overlay.far_watch import FarWatch, FarWatches
from netplug.insight.overlay.messages import Request
from netplug.insight.overlay.tunnel import Tunnels
from netplug.insight.overlay.underlay import OVERHEAD, examine
from netplug.insight.trace import answers, mtu, overlay, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import End
from netplug.insight.trace.model import Scene
from netplug.insight.trace.overlay import Stretched
from netplug.insight.trace.path import path
from netplug.kernel.probes.api import HOST, Flow, Kind, Prober, Report, Sighting

WATCH_S = 12.0
"""How long the other host watches at most: longer than all that is sent takes."""


class Stretching:
    """Looks at the way to another host."""

    def __init__(self, engine: Engine, cluster: Cluster) -> None:
        self._tunnels = Tunnels(engine, cluster)
        self._watches = FarWatches(cluster)
        self._cluster = cluster

    async def begin(self, prober: Prober, case: Case, mark: int, sender: IPAddress | None) -> Case:
        """Have the other host watch; return the case with the path there, and with what there is."""
        end = case.destination.far
        assert end is not None  # noqa: S101 - the caller has looked
        request = self._request(case.source, case.destination, case.flow, mark, sender)
        endpoint = case.source.holder(sender)
        (_, near), faults, far = await asyncio.gather(
            self._tunnels.look(prober, end.record, end.peer.vtep),
            self._tunnels.faults(end.record, endpoint, end.host_name, end.peer),
            self._watches.begin(end.host, end.host_name, request),
        )
        gateways = {it.gateway.ip for it in end.record.network.subnets if it.gateway}
        anycast = sender if sender in gateways else None
        stretched = Stretched(end, replace(near, faults=near.faults + faults), far, anycast=anycast)
        place, there = overlay.far_place(stretched), far.watching
        facts = {**case.scene.facts, place.key: there.inside, overlay.far_host(stretched).key: there.host}
        way_out = case.crossing.way_out
        if way_out and (link := next((it.link for it in there.seats if it.sandbox), "")):
            way_out = replace(way_out, link=link)
        crossing = replace(case.crossing, destination=replace(case.destination, place=place), way_out=way_out)
        return replace(case, crossing=crossing, path=path(crossing, stretched), scene=Scene(facts), stretched=stretched)

    def _request(self, source: End, destination: End, flow: Flow, mark: int, sender: IPAddress | None) -> Request:
        end, record = destination.far, source.holder(sender)
        assert end is not None  # noqa: S101 - the caller has looked
        ident, mac = (record.endpoint.id, record.endpoint.chosen_mac()) if record else ("", "")
        vtep = self._cluster.membership.vtep
        address = sender or flow.destination
        large = Flow(flow.destination, flow.kind if flow.kind is Kind.UDP else Kind.ICMP, flow.port)
        return Request(end.ident, end.peer.endpoint, ident, mac, address, vtep, flow, mark, WATCH_S, large)

    async def finish(self, prober: Prober, case: Case) -> Case:
        """Fetch what the other host saw, and look at the way between the hosts if packets are lost there."""
        stretched = case.stretched
        assert stretched is not None  # noqa: S101 - the caller has looked
        far = await self._report(stretched)
        if isinstance(far, Unanswered):  # its daemon ended meanwhile
            watching = replace(stretched.there, watch="")
            stretched = replace(stretched, far=FarWatch(stretched.host, watching, far))
            case, far = replace(case, path=path(case.crossing, stretched)), Report()
        size = case.large[0].size if case.large else 0
        small = _part(far, lambda it: not size or it.size != size, others=not size)
        stretched, report = overlay.without_strays(stretched, overlay.merged(case.report, small, stretched.host))
        case = replace(case, report=report, stretched=stretched)
        if case.large:
            large = _part(far, lambda it: it.size == size, others=True)
            case = replace(case, large=(case.large[0], overlay.merged(case.large[1], large, stretched.host)))
        return replace(case, stretched=await self._examined(prober, case, stretched, size))

    async def _report(self, stretched: Stretched) -> Report | Unanswered:
        try:
            return await self._watches.report(stretched.end.host, stretched.far)
        except Unanswered as error:
            return error

    async def _examined(self, prober: Prober, case: Case, stretched: Stretched, size: int) -> Stretched:
        stations = case.path.stations
        if not answers.answer(case):
            lost = not trail.way_there(stations, case.report).whole or not stretched.far.open
            back = trail.way_back(stations, case.report)
            if lost or not back.whole:
                return replace(stretched, underlay=await examine(prober, stretched.near))
        if case.large and not mtu.arrived(case, case.large[1]):
            needed = size + OVERHEAD[stretched.near.other.version]
            return replace(stretched, underlay=await examine(prober, stretched.near, needed))
        return stretched


def local(case: Case) -> tuple[str, ...]:
    """Return the namespaces of a path that are on this host."""
    places = (case.source.place, case.destination.place)
    return tuple(dict.fromkeys([*(it.netns for it in places if not it.host), HOST]))


def _part(report: Report, mine: Callable[[Sighting], bool], *, others: bool) -> Report:
    """Return a report of some packets; `others`: with what is not told by packet, such as rules."""
    sightings = tuple(it for it in report.sightings if mine(it))
    return replace(report, sightings=sightings) if others else Report(sightings=sightings)
