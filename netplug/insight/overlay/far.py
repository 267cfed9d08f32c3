"""The part of this host in the trace of another one: watches that the other host asks for by the store.

A question to watch opens sockets at all links of the path here, in a process of its own; a second one ends the watch
and takes what was seen. A watch that nobody asks about again ends by itself.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

import structlog

from netplug.cluster.cluster import Cluster
from netplug.drivers.api import Peer
from netplug.drivers.codec import JsonObject
from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.errors import NetplugError
from netplug.insight.links import link_of
from netplug.insight.overlay.messages import REPORT, WATCH, Fault, Request, Seat, Tunnel, Watching
from netplug.insight.overlay.tunnel import Tunnels
from netplug.kernel.probes.api import HOST, Facts, Job, Look, Post, Prober, Probes, Report
from netplug.kernel.probes.codec import from_json, to_json

log = structlog.get_logger(__name__)

MOST_AT_ONCE = 4
"""Each is a process."""
LONGEST_S = 30.0
_READY_S = 5.0


@dataclass(slots=True)
class _Watch:
    """A watch. `end`: set when its report is wanted."""

    ready: "asyncio.Future[Watching]"
    report: "asyncio.Future[Report]"
    end: asyncio.Event = field(default_factory=asyncio.Event)


class FarSide:
    """Answers `WATCH` and `REPORT`."""

    def __init__(self, engine: Engine, cluster: Cluster, probes: Probes) -> None:
        self._engine = engine
        self._cluster = cluster
        self._probes = probes
        self._tunnels = Tunnels(engine, cluster)
        self._watches: dict[str, _Watch] = {}
        self._group: asyncio.TaskGroup | None = None
        cluster.questions.answer(WATCH, self._watch)
        cluster.questions.answer(REPORT, self._report)

    async def run(self) -> None:
        """Keep watches until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.Event().wait()
        finally:
            self._group = None
            self._watches.clear()

    async def _watch(self, body: JsonObject) -> JsonObject:
        try:
            request = from_json(Request, body)
        except ValueError as exc:
            raise NetplugError("invalid", f"the request to watch cannot be read: {exc}") from exc
        if self._group is None or len(self._watches) >= MOST_AT_ONCE:
            raise NetplugError("unavailable", f"{len(self._watches)} traces are watched already", hint="try again")
        record = self._network(request.network)
        endpoint = self._engine.registry.find(record.network.id, request.endpoint)
        if absent := _absent(record, endpoint):
            return _answer(Watching(absent=absent))
        assert endpoint is not None  # noqa: S101 - `_absent` says so
        loop, token = asyncio.get_running_loop(), secrets.token_hex(8)
        watch = self._watches[token] = _Watch(loop.create_future(), loop.create_future())
        self._group.create_task(self._keep(token, watch, request, record, endpoint))
        try:
            return _answer(await watch.ready)
        except asyncio.CancelledError:
            watch.end.set()
            raise

    def _network(self, ident: str) -> NetworkRecord:
        if found := self._cluster.mirroring.shared().get(ident):
            return found
        raise NetplugError("not_found", f"there is no network {short(ident)!r} here", hint="see netplug host ls")

    async def _report(self, body: JsonObject) -> JsonObject:
        watch = self._watches.get(str(body.get("watch")))
        if watch is None:
            raise NetplugError("not_found", "the watch has ended already")
        watch.end.set()
        report: JsonObject = to_json(await watch.report)
        return report

    async def _keep(
        self, token: str, watch: _Watch, request: Request, record: NetworkRecord, endpoint: EndpointRecord
    ) -> None:
        """Watch until the report is wanted; no failure ends more than this watch."""
        try:
            async with asyncio.timeout(min(request.seconds, LONGEST_S)), self._probes.start() as prober:
                await self._observe(prober, token, watch, request, record, endpoint)
        except TimeoutError:
            log.debug("watch.abandoned", endpoint=short(request.endpoint))
        except Exception as exc:
            error = exc if isinstance(exc, NetplugError) else NetplugError("internal", repr(exc))
            if not isinstance(exc, NetplugError):
                log.exception("watch.failed", endpoint=short(request.endpoint))
            _fail(watch, error)
        finally:
            self._watches.pop(token, None)
            _fail(watch, NetplugError("unavailable", "the watch has ended"))

    async def _observe(
        self,
        prober: Prober,
        token: str,
        watch: _Watch,
        request: Request,
        record: NetworkRecord,
        endpoint: EndpointRecord,
    ) -> None:
        answer = await self._look(prober, request, record, endpoint)
        posts = tuple(Post(it.name, endpoint.sandbox if it.sandbox else HOST, it.link) for it in answer.seats)
        places = (HOST, endpoint.sandbox)
        wait_ms = round(request.seconds * 1000)
        ports = (answer.tunnel.port,) if answer.tunnel else ()
        common = Job(request.flow, request.mark, None, posts, wait_ms=wait_ms, vxlan_ports=ports)
        job = replace(common, traces=places, legacy=places, also=(request.vtep,))
        flow = request.large or request.flow
        large = replace(common, flow=flow, drops=False)
        async with prober.watch(job) as watching, AsyncExitStack() as stack:
            second = await stack.enter_async_context(prober.watch(large)) if flow.kind != request.flow.kind else None
            if not watch.ready.done():
                watch.ready.set_result(replace(answer, watch=token))
            await watch.end.wait()
            report, *more = await asyncio.gather(*(it.report() for it in (watching, second) if it))
            report = replace(report, sightings=report.sightings + tuple(it for one in more for it in one.sightings))
        if not watch.report.done():
            watch.report.set_result(report)

    async def _look(
        self, prober: Prober, request: Request, record: NetworkRecord, endpoint: EndpointRecord
    ) -> Watching:
        """Return what there is here on the path."""
        own = [it.ip for it in endpoint.endpoint.addresses if it.version == request.address.version]
        back = tuple((request.address, it) for it in own)
        inside, (host, tunnel), faults = await asyncio.gather(
            prober.look(Look(endpoint.sandbox, routes=back, listeners=True)),
            self._tunnels.look(prober, record, request.vtep),
            self._faults(request, record, endpoint),
        )
        seats = tuple(_seats(tunnel, host, endpoint, inside))
        shown = {it.link for it in seats if not it.sandbox}
        masters = {it.master for it in host.links if it.name in shown}
        links = tuple(it for it in host.links if it.name in shown | masters)
        near = (request.address, request.vtep)
        neighbours = tuple(it for it in host.neighbours if it.address in near)
        return Watching(
            called=endpoint.name or short(endpoint.endpoint.id),
            netns=endpoint.sandbox,
            seats=seats,
            tunnel=replace(tunnel, faults=tunnel.faults + faults),
            inside=inside,
            host=replace(host, links=links, neighbours=neighbours, routes=()),
            lacks=(*inside.lacks, *host.lacks),
        )

    async def _faults(self, request: Request, record: NetworkRecord, endpoint: EndpointRecord) -> tuple[Fault, ...]:
        host = next((it.name for it in self._cluster.view.hosts().values() if it.vtep == request.vtep), "")
        peer = Peer(request.sender, request.mac, (request.address,), request.vtep) if request.sender else None
        return await self._tunnels.faults(record, endpoint, host, peer)


def _absent(record: NetworkRecord, endpoint: EndpointRecord | None) -> str:
    """Return why there is nothing to watch."""
    if endpoint is None:
        return f"network {record.network.name} has no such endpoint there"
    if not endpoint.sandbox or not endpoint.linked:
        return f"{endpoint.called} does not run there"
    return ""


def _seats(tunnel: Tunnel, host: Facts, endpoint: EndpointRecord, inside: Facts) -> Iterator[Seat]:
    """Yield the links of the path, in the order of a packet that arrives."""
    links = {it.name for it in host.links}
    if tunnel.uplink in links:
        yield Seat("far-uplink", tunnel.uplink, incoming=True)
    if tunnel.link in links:
        yield Seat("far-tunnel", tunnel.link, incoming=True)
    if endpoint.host_link and endpoint.host_link.name in links:
        yield Seat("far-port", endpoint.host_link.name, incoming=False)
    if link := link_of(endpoint, inside):
        yield Seat("far-end", link.name, incoming=True, sandbox=True)


def _answer(watching: Watching) -> JsonObject:
    answer: JsonObject = to_json(watching)
    return answer


def _fail(watch: _Watch, error: NetplugError) -> None:
    for future in (watch.ready, watch.report):
        if not future.done():
            future.set_exception(error)
            with suppress(NetplugError):
                future.exception()  # it may be that nobody waits for it
