"""The parts of insight, and their routes of the REST API."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from netplug.config import Settings
from netplug.engine import Engine
from netplug.insight.doctor.report import Report
from netplug.insight.event_log import EventLog
from netplug.tasks.apart import apart

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.docker.resolver import SandboxResolvers
    from netplug.names.server import NameServer
    from netplug.reconcile import Reconciler

Route: TypeAlias = tuple[str, str, Callable[..., Coroutine[Any, Any, Any]], int]
"""Method, path below /v1, what answers, status."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at.

    `cluster`: None on a host without a shared store. `events`: None: none are kept. `resolvers`: of Docker's sandboxes;
    None if Docker is not followed.
    """

    settings: Settings
    engine: Engine
    reconciler: "Reconciler"
    names: "NameServer"
    cluster: "Cluster | None"
    events: EventLog | None = None
    resolvers: "SandboxResolvers | None" = None


class Insight:
    """The parts of insight on one host."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def follow(self, settings: Settings) -> None:
        """Look at other settings, which the daemon uses from now on."""
        self._subject = replace(self._subject, settings=settings)

    @property
    def background(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs as long as the daemon: name of the work → function to run and to restart."""
        if self._subject.cluster is None:
            return {}
        from netplug.insight.overlay.far import FarSide  # noqa: PLC0415 - not without a cluster
        from netplug.kernel.probes.prober import WorkerProbes  # noqa: PLC0415

        far = FarSide(self._subject.engine, self._subject.cluster, WorkerProbes())
        return {"insight.far": far.run}

    @property
    def routes(self) -> Sequence[Route]:
        """Routes for the REST API."""
        from netplug.insight.capture.ends import Ends  # noqa: PLC0415
        from netplug.insight.events import EventsApi  # noqa: PLC0415 - knows HTTP, which a CNI command does not need
        from netplug.insight.graph_reading import Graphs  # noqa: PLC0415
        from netplug.insight.trace.routes import TraceRoutes  # noqa: PLC0415
        from netplug.insight.traffic import Traffic  # noqa: PLC0415

        of = self._subject
        docker_host = of.settings.docker_host if of.resolvers else ""
        traces = TraceRoutes(of.engine, of.reconciler, of.cluster, docker_host)
        return (
            ("GET", "/graph", Graphs(of.engine, of.cluster, of.settings.host_name).answer, 200),
            ("GET", "/traffic", Traffic(of.engine, of.names).answer, 200),
            ("GET", "/doctor", self.doctor, 200),
            ("GET", "/settings", self.settings, 200),
            ("POST", "/trace", traces.trace, 200),
            ("GET", "/trace", traces.get, 200),
            *Ends(of.engine, of.settings.host_name, of.cluster).routes,
            *(EventsApi(of.events, of.engine.registry.network).routes if of.events else ()),
        )

    async def settings(self) -> dict[str, str]:
        """Return the settings without secrets."""
        from netplug.insight.doctor.support import settings_of  # noqa: PLC0415 - not at the start

        return settings_of(self._subject.settings)

    async def doctor(self) -> Report:
        """Say what is wrong with this host."""
        # In a thread: all its modules take a tenth of a second, in which names are to be answered.
        await apart(partial(import_module, "netplug.insight.doctor.api"))
        from netplug.insight.doctor.api import examined  # noqa: PLC0415 - not at the start

        return await examined(self._subject)
