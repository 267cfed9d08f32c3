"""The parts of insight, and their routes of the REST API."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from netplug.config import Settings
from netplug.engine import Engine

if TYPE_CHECKING:
    from netplug.cluster.cluster import Cluster
    from netplug.names.server import NameServer
    from netplug.reconcile import Reconciler

Route: TypeAlias = tuple[str, str, Callable[..., Coroutine[Any, Any, Any]], int]
"""Method, path below /v1, what answers, status."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at. `cluster`: None on a host without a shared store."""

    settings: Settings
    engine: Engine
    reconciler: "Reconciler"
    names: "NameServer"
    cluster: "Cluster | None"


class Insight:
    """The parts of insight on one host."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def routes(self) -> Sequence[Route]:
        """Routes for the REST API."""
        from netplug.insight.traffic import Traffic  # noqa: PLC0415

        traffic = Traffic(self._subject.engine, self._subject.names)
        return (("GET", "/traffic", traffic.answer, 200),)
