"""A watch on another host, as the host that sends sees it: asked for by the store, and its report fetched."""

from dataclasses import dataclass

from netplug.cluster.cluster import Cluster
from netplug.cluster.questions import Unanswered
from netplug.insight.overlay.messages import REPORT, WATCH, Request, Watching
from netplug.kernel.probes.api import Report
from netplug.kernel.probes.codec import from_json, to_json

ASK_S = 4.0
"""To open a watch: a process starts there. A host under load takes a second or two."""
REPORT_S = 3.0


@dataclass(frozen=True, slots=True)
class FarWatch:
    """A watch on host `host`. `silence`: why there is none; then `watching` says nothing."""

    host: str
    watching: Watching
    silence: Unanswered | None = None

    @property
    def open(self) -> bool:
        return bool(self.watching.watch)


class FarWatches:
    """Asks other hosts to watch."""

    def __init__(self, cluster: Cluster) -> None:
        self._questions = cluster.questions

    async def begin(self, host: str, name: str, request: Request) -> FarWatch:
        """Ask host `host`, which is called `name`, to watch. It watches when this returns, or says why not."""
        try:
            return FarWatch(name, from_json(Watching, await self._questions.ask(host, WATCH, to_json(request), ASK_S)))
        except Unanswered as exc:
            return FarWatch(name, Watching(), exc)
        except ValueError as exc:
            return FarWatch(name, Watching(lacks=(f"host {name} gave an answer that cannot be read: {exc}",)))

    async def report(self, host: str, watch: FarWatch) -> Report:
        """End the watch, and return what was seen there.

        Raises:
            Unanswered: the other host does not tell it.
        """
        if not watch.open:
            return Report()
        said = await self._questions.ask(host, REPORT, {"watch": watch.watching.watch}, REPORT_S)
        try:
            return from_json(Report, said)
        except ValueError as exc:
            return Report(lacks=(f"host {watch.host} gave a report that cannot be read: {exc}",))
