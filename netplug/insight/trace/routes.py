"""The route of the REST API. What a trace needs is imported at the first one."""

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from pydantic import ValidationError

from netplug.docker.strangers import find
from netplug.drivers.codec import JsonObject
from netplug.engine import Engine
from netplug.errors import NetplugError
from netplug.errors.validation import wrong
from netplug.insight.trace.wire import TraceIn, TraceOut

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.docker.strangers import Stranger
    from netplug.insight.overlay.remote_ends import RemoteEnd
    from netplug.insight.trace.tracer import Tracer
    from netplug.reconcile import Reconciler

DEADLINE_S = 30.0
"""For one trace. A broken path takes some seconds, the start of its process on a busy host some more."""
End = Annotated[str, Query(min_length=1, max_length=300)]
TRACE = "trace"
"""The question to another host: its body is that of ``POST /v1/trace``, its answer too."""
AT_ONCE = 4
"""Traces at the same time: each has a process of its own."""


class TraceRoutes:
    """Answers ``POST /v1/trace``, and ``GET /v1/trace?src=…&dst=…``.

    `docker_host`: of the Docker that is followed, else empty.
    """

    def __init__(
        self, engine: Engine, reconciler: "Reconciler", cluster: "Cluster | None" = None, docker_host: str = ""
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._reconciler = reconciler
        self._docker_host = docker_host
        self._turns = asyncio.Semaphore(AT_ONCE)
        if cluster:
            cluster.questions.answer(TRACE, self._answer)

    async def get(self, src: End, dst: End) -> TraceOut:
        """Trace, for who may only read (`insight.http`)."""
        return await self.trace(TraceIn(source=src, destination=dst))

    async def trace(self, body: TraceIn) -> TraceOut:
        """Trace, and say what became of the packet. A source on another host is traced by the daemon there."""
        if self._cluster and (far := self._elsewhere(body.source)):
            return await self._ask(self._cluster, far, body)
        return await self._trace(body)

    def _elsewhere(self, source: str) -> "RemoteEnd | None":
        """Return the endpoint of another host that is meant by a source, if none of this host is."""
        from netplug.insight.overlay.remote_ends import RemoteEnds  # noqa: PLC0415 - not at the start
        from netplug.insight.trace.ends import Ends  # noqa: PLC0415
        from netplug.insight.trace.target import parse  # noqa: PLC0415

        assert self._cluster is not None  # noqa: S101 - the caller has looked
        target, ends = parse(source, "SRC", port=False), Ends(self._engine, RemoteEnds(self._cluster))
        if target.outside or target.is_host:
            return None
        here = ends.at(target.address) if target.address else ends.called(target.name)
        there = None if here else ends.elsewhere(target.address or target.name)
        return there.far if there else None

    @staticmethod
    async def _ask(cluster: "Cluster", far: "RemoteEnd", body: TraceIn) -> TraceOut:
        asked: JsonObject = {"source": far.peer.endpoint, "destination": body.destination}
        answer = await cluster.questions.ask(far.host, TRACE, asked, DEADLINE_S)
        try:
            said = TraceOut.model_validate(answer)
        except ValidationError as error:
            words = f"host {far.host_name} gave an answer that cannot be read: it may have another version"
            raise NetplugError("unavailable", words, hint="netplug host ls") from error
        note = f"traced by host {far.host_name}, where {far.name} is: it is meant by 'this host'"
        return said.model_copy(update={"notes": [note, *said.notes]})

    async def _answer(self, body: JsonObject) -> JsonObject:
        """Trace for another host, from an endpoint of this one."""
        try:
            asked = TraceIn.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            words = f"the request to trace cannot be read: {'.'.join(map(str, first['loc']))} {wrong(first)}"
            raise NetplugError("invalid", words) from error
        answer: JsonObject = (await self._trace(asked)).model_dump()
        return answer

    async def _trace(self, body: TraceIn) -> TraceOut:
        try:
            async with self._turns, asyncio.timeout(DEADLINE_S):
                return TraceOut.of(await self._tracer.trace(body.source, body.destination))
        except TimeoutError as error:
            words = f"the trace did not end in {DEADLINE_S:g} s"
            raise NetplugError("unavailable", words, hint="the host may be busy: try again") from error

    @cached_property
    def _tracer(self) -> "Tracer":
        from netplug.insight.trace.tracer import Tracer  # noqa: PLC0415
        from netplug.kernel.probes.prober import WorkerProbes  # noqa: PLC0415

        return Tracer(self._engine, self._reconciler, WorkerProbes(), self._cluster, self._ask_docker)

    async def _ask_docker(self, name: str) -> "Stranger | None":
        if not self._docker_host:
            return None
        return await find(self._docker_host, name)
