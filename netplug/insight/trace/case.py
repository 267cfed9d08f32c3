"""All that is known of one trace when it is judged."""

from dataclasses import dataclass

from netplug.insight.trace.ends import End, Ends
from netplug.insight.trace.model import HOST_PLACE, Path, Place, Scene
from netplug.insight.trace.overlay import Stretched
from netplug.insight.trace.path import Crossing
from netplug.kernel.probes.api import Facts, Flow, Neighbours, Report, RouteFound


@dataclass(frozen=True, slots=True)
class Case:
    """`route`: of the source to the destination; None from outside. `asked`: who answered for the next hop.

    `port`, `proto`: at the destination, "icmp" without port. `large`: of a packet as large as the path's MTU.
    `stretched`: what is known of the way to another host, if the destination is there. `later`: what there was after
    the packet, or its answer, was lost.
    """

    ends: Ends
    crossing: Crossing
    path: Path
    scene: Scene
    flow: Flow
    report: Report
    proto: str
    port: int
    route: RouteFound | None = None
    asked: Neighbours | None = None
    large: "tuple[Flow, Report] | None" = None
    stretched: Stretched | None = None
    later: Scene | None = None

    @property
    def source(self) -> End:
        return self.crossing.source

    @property
    def destination(self) -> End:
        return self.crossing.destination

    @property
    def host(self) -> Facts:
        return self.scene.of(HOST_PLACE)

    @property
    def version(self) -> int:
        return self.flow.destination.version

    def place(self, netns: str) -> Place:
        """Return the place of a namespace, as the path calls it."""
        found = (*self.path.places, self.source.place, self.destination.place, HOST_PLACE)
        return next((it for it in found if it.key == netns), Place(netns or "?", netns))
