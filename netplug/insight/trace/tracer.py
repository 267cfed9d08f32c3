"""Traces: resolve both ends, compute the path, prove it by one probe, judge it."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from netplug.cluster.cluster import Cluster
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.errors import NetplugError
from netplug.insight.overlay.remote_ends import RemoteEnds
from netplug.insight.trace import answers, departing, diagnosis, host_routes, mtu, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import End, Ends, Kind, is_reference
from netplug.insight.trace.from_outside import entrance
from netplug.insight.trace.model import HOST_PLACE, Cause, Hop, Outcome, Scene, Verdict
from netplug.insight.trace.path import path
from netplug.insight.trace.preparing import Prepared, Preparing
from netplug.insight.trace.resolving import Resolving
from netplug.insight.trace.strangers import AskDocker, Strangers
from netplug.insight.trace.stretching import Stretching, local
from netplug.insight.trace.target import ICMP, Target, parse_both, written
from netplug.kernel.probes.api import (
    Flow,
    Job,
    Look,
    Neighbours,
    Origin,
    Post,
    Prober,
    Probes,
    Report,
    new_mark,
)
from netplug.kernel.probes.api import Kind as Probe
from netplug.reconcile import Reconciler

WAIT_MS = 1200
"""For an answer. On one host it takes microseconds; a first one over a tunnel waits for ARP."""
ASK_MS = 250
_DIFF_S = 3.0
_REPEAT = 2


@dataclass(frozen=True, slots=True)
class _Begun:
    """A trace up to where a packet can be sent. `hops`: so far. `others`: what the name has of the other IP version.

    `misled`: that the name may stand for another address than is meant.
    """

    source: End
    target: Target
    hops: tuple[Hop, ...]
    prepared: Prepared | None = None
    others: tuple[IPAddress, ...] = ()
    misled: Cause | None = None

    @property
    def broken(self) -> bool:
        return any(it.verdict is Verdict.BROKEN for it in self.hops)


class Tracer:
    """Traces packets between ends of this host."""

    def __init__(
        self,
        engine: Engine,
        reconciler: Reconciler,
        probes: Probes,
        cluster: Cluster | None = None,
        ask_docker: AskDocker | None = None,
    ) -> None:
        self._reconciler = reconciler
        self._probes = probes
        self._ends = Ends(engine, RemoteEnds(cluster) if cluster else None)
        self._stretching = Stretching(engine, cluster) if cluster else None
        self._resolving = Resolving(engine)
        self._strangers = Strangers(self._ends, ask_docker)

    async def trace(self, source: str, destination: str) -> Outcome:
        """Return what became of a packet from one to the other.

        Raises:
            NetplugError: an end is not known, or nothing can be probed here.
        """
        began = time.monotonic()
        sender, target = parse_both(source, destination)
        await asyncio.gather(self._strangers.named(sender), self._strangers.named(target))
        end = await self._strangers.source(sender, destination)
        notes: Sequence[str] = ()
        async with self._probes.start() as prober:
            begun = await self._begin(prober, end, target)
            hops, flow = begun.hops, f"to {destination}"
            if begun.prepared and not begun.broken:
                case = await self._probe(prober, begun)
                hops, notes, flow = (*begun.hops, *diagnosis.judge(case)), case.report.lacks, _words(case)
                if all(it.verdict is not Verdict.BROKEN for it in hops):
                    notes = (*notes, *await self._silent(prober, begun))
        if any(it.verdict is Verdict.BROKEN for it in hops):
            hops = _misled(hops, begun.misled)
            hops = self._with_drift(hops, await self._drift(end, begun))
        took = (time.monotonic() - began) * 1000
        return Outcome(end.place.name, destination, flow, hops, tuple(notes), took)

    async def _begin(self, prober: Prober, source: End, target: Target) -> _Begun:
        preparing = Preparing(self._ends, prober)
        named = target.address is None and not target.outside and not target.is_host
        asks = named and not is_reference(target.name) and self._asks(source, target)
        facts = await preparing.source_facts(source, target.name if asks else "")
        hops = list(departing.standing(self._ends, source, facts))
        if any(it.verdict is Verdict.BROKEN for it in hops):
            return _Begun(source, target, tuple(hops))
        end = None
        others: tuple[IPAddress, ...] = ()
        misled = None
        if asks:
            resolved = await self._resolving.resolve(prober, source, facts, target.name)
            if not resolved.addresses:
                hops.append(replace(resolved.hop, cause=await self._strangers.cause(source, target, resolved.hop)))
                return _Begun(source, target, tuple(hops))
            hops.append(resolved.hop)
            address, misled = resolved.addresses[0], resolved.misled
            others = tuple(it for it in resolved.addresses if it.version != address.version)
        else:
            address, end = await self._address(preparing, source, target)
        port = target.port
        if source.kind is Kind.OUTSIDE and end and end.kind is Kind.SANDBOX and target.port:
            address, port, hop = await entrance(self._ends, preparing, source, end, target)
            hops.append(hop)
            if hop.verdict is Verdict.BROKEN:
                return _Begun(source, target, tuple(hops))
            end = None
        prepared = await preparing.prepare(source, address, port, target.proto, end, source_facts=facts)
        hops += departing.leaving(self._ends, prepared)
        return _Begun(source, target, tuple(hops), prepared, others, misled)

    async def _address(self, preparing: Preparing, source: End, target: Target) -> tuple[IPAddress, End | None]:
        try:
            return await preparing.address(source, target)
        except NetplugError as exc:
            raise await self._strangers.better(exc, source, target) from None

    @staticmethod
    async def _silent(prober: Prober, begun: _Begun) -> Sequence[str]:
        """Say that the other IP version gets no answer: programs may try that first, and wait (RFC 6724)."""
        source, target = begun.source, begun.target
        if not begun.others or target.proto not in {"tcp", ICMP}:
            return ()
        address = begun.others[0]
        flow = Flow(address, Probe(target.proto), target.port)
        report = await prober.run(Job(flow, new_mark(), Origin(source.place.netns), wait_ms=WAIT_MS, drops=False))
        if report.refused or report.reply:
            return ()
        words = f"no answer comes by IPv{address.version} from {address}, which programs may try first"
        return (f"{words}: netplug trace {source.place.name} {written(address, target.port)}",)

    def _asks(self, source: End, target: Target) -> bool:
        """Whether the source would ask for the name; from outside, and from the host, a container is meant first."""
        if source.kind is not Kind.HOST:
            return source.kind is Kind.SANDBOX
        return self._ends.called(target.name) is None and self._ends.elsewhere(target.name, source) is None

    async def _probe(self, prober: Prober, begun: _Begun) -> Case:
        prepared = begun.prepared
        assert prepared is not None  # noqa: S101 - the caller has looked
        crossing = prepared.crossing
        way = path(crossing)
        target = begun.target
        sent_from = prepared.source if crossing.source.kind is Kind.OUTSIDE else None
        flow = Flow(prepared.destination, Probe(target.proto), prepared.port, sent_from)
        case = Case(
            self._ends,
            crossing,
            way,
            Scene(prepared.facts),
            flow,
            Report(),
            target.proto,
            crossing.destination.port or prepared.port,
            prepared.route,
        )
        mark = new_mark()
        if crossing.destination.far and self._stretching:
            case = await self._stretching.begin(prober, case, mark, prepared.source)
        report, asked = await asyncio.gather(
            prober.run(self._job(case, flow, mark, wait_ms=WAIT_MS)), self._who_has(prober, case)
        )
        case = await self._looked_again(prober, replace(case, report=report, asked=asked))
        case = replace(case, large=await self._large(prober, case, mark))
        return await self._stretching.finish(prober, case) if case.stretched and self._stretching else case

    def _job(self, case: Case, flow: Flow, mark: int, *, wait_ms: int, repeat: int = 1) -> Job:
        crossing = case.crossing
        uplink = crossing.uplink if crossing.source.kind is Kind.OUTSIDE else ""
        places = local(case)
        also = [case.route.gateway] if case.route and case.route.gateway else []
        also += [it.gateway for it in case.host.lookups if it.gateway and it.destination == flow.source]
        also += [it for it in (crossing.destination.address,) if it and it != flow.destination]
        also += [case.stretched.near.other] if case.stretched else []
        return Job(
            flow,
            mark,
            Origin(crossing.source.place.netns, uplink),
            tuple(Post(it.name, it.place.netns, it.link) for it in case.path.stations if it.link and not it.place.host),
            traces=places,
            legacy=places,
            repeat=repeat,
            wait_ms=wait_ms,
            also=tuple(also),
            vxlan_ports=(case.stretched.near.port,) if case.stretched else (),
        )

    @staticmethod
    async def _who_has(prober: Prober, case: Case) -> Neighbours | None:
        """Ask who has the next hop: it may be used twice.

        The host asks on its bridge: from a container, anti-spoofing drops the question (RFC 5227 has no sender).
        """
        route, way = case.route, case.crossing.way_in
        if route is None or route.error or not route.link or case.crossing.direct or route.link == "lo":
            return None
        netns, link = ("", way.bridge) if way and way.bridge else (case.source.place.netns, route.link)
        with suppress(NetplugError):
            return await prober.who_has(netns, link, route.gateway or route.destination, ASK_MS)
        return None

    async def _large(self, prober: Prober, case: Case, mark: int) -> tuple[Flow, Report] | None:
        """Send a packet as large as the source's link lets out, if a small one comes through."""
        there = trail.way_there(case.path.stations, case.report)
        if (
            (not there.whole and not case.stretched)
            or not there.stations
            or not answers.left(case)
            or case.destination.via
            or case.destination.port
        ):
            return None
        link = case.scene.link(there.stations[0])
        if link is None or case.source.kind is Kind.OUTSIDE:
            return None
        size = min(link.mtu, case.route.mtu if case.route and case.route.mtu else link.mtu, 65_000)
        kind = Probe.UDP if case.proto == "udp" else Probe.ICMP
        flow = Flow(case.flow.destination, kind, case.flow.port if kind is Probe.UDP else 0, size=size)
        report = await prober.run(self._job(case, flow, mark, wait_ms=300, repeat=_REPEAT))
        if kind is Probe.ICMP and case.proto != ICMP and not case.stretched and not mtu.arrives(case, report):
            # Somebody may let pass this port, and no echo requests: then their size is not to blame.
            small = await prober.run(self._job(case, replace(flow, size=0), mark, wait_ms=300))
            if not mtu.arrives(case, small):
                return None
        return flow, report

    async def _looked_again(self, prober: Prober, case: Case) -> Case:
        """Look once more where the packet or its answer was lost: also at settings of the links, and at neighbours."""
        if trail.way_there(case.path.stations, case.report).whole and answers.answer(case):
            return case
        facts, later = dict(case.scene.facts), dict(case.scene.facts)
        forwards = host_routes.forwards(case)
        for place in (it for it in dict.fromkeys((*case.path.places, HOST_PLACE)) if it.key in facts and not it.host):
            links = dict.fromkeys(it.link for it in case.path.stations if it.place == place)
            names = tuple(f"net/ipv4/conf/{link}/{name}" for link in links for name in ("forwarding", "rp_filter"))
            with suppress(NetplugError):
                look = Look(place.netns, sysctls=names, forwards=forwards if place == HOST_PLACE else ())
                found, known = await prober.look(look), facts[place.netns]
                sysctls = known.sysctls + found.sysctls
                facts[place.netns] = replace(
                    known, sysctls=sysctls, neighbours=found.neighbours, forwards=found.forwards
                )
                later[place.netns] = replace(facts[place.netns], links=found.links)
        return replace(case, scene=Scene(facts), later=Scene(later))

    async def _drift(self, source: End, begun: _Begun) -> Sequence[Difference]:
        """Return what `netplug diff` knows of the objects of the path."""
        with suppress(TimeoutError, NetplugError):
            async with asyncio.timeout(_DIFF_S):
                found = await self._reconciler.diff()
            ends = [source, *([begun.prepared.crossing.destination] if begun.prepared else [])]
            owners = {"host", *(it.described for end in ends for it in end.records)}
            owners |= {f"network {net.name}" for end in ends for net in self._ends.networks(end)}
            return [it for it in found if it.owner in owners]
        return ()

    @staticmethod
    def _with_drift(hops: Sequence[Hop], found: Sequence[Difference]) -> tuple[Hop, ...]:
        """Name a difference to the records as the cause, where none is known."""
        if not found:
            return tuple(hops)
        first = found[0]
        words = f"{first.object} of {first.owner} {first.what}"

        def named(hop: Hop) -> Hop:
            if hop.cause is None or hop.cause.kind not in {"lost", "link.missing", "neighbour.none"}:
                return hop
            return replace(hop, cause=Cause("drift", f"{hop.cause.words}; {words}", "netplug repair"))

        return tuple(named(it) for it in hops)


def _misled(hops: Sequence[Hop], by: Cause | None) -> tuple[Hop, ...]:
    """Say first that the name may have led to a wrong address, where the packet is lost."""
    if by is None:
        return tuple(hops)

    def named(hop: Hop) -> Hop:
        if hop.verdict is not Verdict.BROKEN:
            return hop
        words = f"{by.words}; {hop.cause.words}" if hop.cause else by.words
        return replace(hop, cause=replace(by, words=words))

    return tuple(map(named, hops))


def _words(case: Case) -> str:
    source = case.report.source or case.flow.source or ""
    kind = " (echo)" if case.proto == ICMP else f"/{case.proto}"
    return f"{source} → {written(case.flow.destination, case.flow.port)}{kind}"
