"""What hosts ask each other during a trace, as JSON of `probes.codec`. A later version may add fields with defaults."""

from dataclasses import dataclass, field

from netplug.drivers.steps import IPAddress
from netplug.kernel.probes.api import Facts, Flow, RouteFound

WATCH = "probe.watch"
"""Body: `Request`; answer: `Watching`."""
REPORT = "probe.report"
"""Body: ``{"watch": …}`` of `Watching`; answer: `probes.api.Report`. It ends the watch."""


@dataclass(frozen=True, slots=True)
class Request:
    """Watch the packets of a flow to an endpoint of yours.

    `network`: its id in the cluster; `endpoint`: the id of yours; `sender`: of the other one, with its `mac`, `address`
    and the `vtep` of its host, as the cluster's records say. `flow`, `mark`: of the job. `large`: of a second job
    with the same mark. `seconds`: after which nobody asks for the report any more.
    """

    network: str
    endpoint: str
    sender: str
    mac: str
    address: IPAddress
    vtep: IPAddress
    flow: Flow
    mark: int
    seconds: float = 10.0
    large: Flow | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """A link at which the other host watches, in the order of the packet.

    `sandbox`: in the container, not on the host. `incoming`: the link receives the packet on the way there.
    """

    name: str
    link: str
    incoming: bool
    sandbox: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What differs from the records on a host.

    `kind`: "fdb", "neighbour", "filter", "table", "tunnel", "link"; "unknown": the records do not say where a peer is;
    "underlay": of the link below the tunnel. `where`: the object, as `netplug diff` names it.
    """

    kind: str
    where: str
    words: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A host's end of the tunnel to another host.

    `link`: the VXLAN link; `route`: how the kernel reaches the other host; `uplink`: by which link. `faults`: what
    differs from the records, or breaks the way below.
    """

    link: str
    vni: int
    port: int
    vtep: IPAddress
    other: IPAddress
    uplink: str = ""
    route: RouteFound | None = None
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Watching:
    """The other host watches, or says why it does not.

    `watch`: for `REPORT`; empty: it does not watch. `absent`: the endpoint is not there, in words. `called`: the
    container. `netns`: its namespace, there. `inside`, `host`: what there is in it, and of the links of the path on its
    host. `lacks`: what it could not do.
    """

    watch: str = ""
    absent: str = ""
    called: str = ""
    netns: str = ""
    seats: tuple[Seat, ...] = ()
    tunnel: Tunnel | None = None
    inside: Facts = field(default_factory=Facts)
    host: Facts = field(default_factory=Facts)
    lacks: tuple[str, ...] = ()
