"""The route of the REST API. What a trace needs is imported at the first one."""

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from fastapi import Query

from netplug.engine import Engine
from netplug.errors import NetplugError
from netplug.insight.trace.wire import TraceIn, TraceOut

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.insight.trace.tracer import Tracer
    from netplug.reconcile import Reconciler

DEADLINE_S = 30.0
"""For one trace. A broken path takes some seconds, the start of its process on a busy host some more."""
End = Annotated[str, Query(min_length=1, max_length=300)]
AT_ONCE = 4
"""Traces at the same time: each has a process of its own."""


class TraceRoutes:
    """Answers ``POST /v1/trace``, and ``GET /v1/trace?src=…&dst=…``."""

    def __init__(self, engine: Engine, reconciler: "Reconciler", cluster: "Cluster | None" = None) -> None:
        self._engine = engine
        self._cluster = cluster
        self._reconciler = reconciler
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def get(self, src: End, dst: End) -> TraceOut:
        """Trace, for who may only read (`insight.http`)."""
        return await self.trace(TraceIn(source=src, destination=dst))

    async def trace(self, body: TraceIn) -> TraceOut:
        """Trace, and say what became of the packet."""
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

        return Tracer(self._engine, self._reconciler, WorkerProbes(), self._cluster)
