"""The end on this host of the tunnel to another host: what the kernel has of it, and what the records say."""

from collections.abc import Iterable, Iterator, Sequence

from netplug.cluster.cluster import Cluster
from netplug.drivers.api import Meshed, Peer, meshed
from netplug.drivers.naming import short, vxlan_name
from netplug.drivers.steps import Element, IPAddress, Step, Table
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.drivers.tunnel_tables import of_peers
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.errors import NetplugError
from netplug.insight.overlay.messages import Fault, Tunnel
from netplug.kernel.api import MISSING
from netplug.kernel.probes.api import Facts, Look, Prober

DOWN = "the link with the VTEP is down, or has no carrier"


class Tunnels:
    """Looks at tunnels of this host."""

    def __init__(self, engine: Engine, cluster: Cluster) -> None:
        self._engine = engine
        self._cluster = cluster

    async def look(self, prober: Prober, record: NetworkRecord, other: IPAddress) -> tuple[Facts, Tunnel]:
        """Return what there is in the host's namespace, and the tunnel to the host with VTEP `other`."""
        net, vtep = record.network, self._cluster.membership.vtep
        facts = await prober.look(Look(routes=((other, vtep),), neighbours=True))
        route = next((it for it in facts.lookups if it.destination == other), None)
        uplink = route.link if route and not route.error else ""
        name, options, faults = vxlan_name(net.id), net.options, tuple(_below(facts, vtep))
        return facts, Tunnel(name, options.vni, options.vxlan_port, vtep, other, uplink, route, faults)

    async def faults(
        self, record: NetworkRecord, endpoint: EndpointRecord | None, host: str, peer: Peer | None
    ) -> tuple[Fault, ...]:
        """Return what differs from the records, of a network, of its endpoint here, and of a peer on a host."""
        applied = {step.key: step for step in self._engine.peers.plan(record.network.id)}
        wanted = list(self._driver(record).peers(record.network, [peer])) if peer else []
        found = self._unknown(record, host, peer, wanted, applied) if peer else ()
        steps = [applied[step.key] for step in wanted if step.key in applied]
        steps += [*record.plan, *(endpoint.present if endpoint else ())]
        drifts = await self._engine.kernel.drift(steps)
        return (*found, *(Fault(kind_of(it.step), it.step.key, it.what) for it in drifts))

    def _driver(self, record: NetworkRecord) -> Meshed:
        driver = self._engine.drivers.of(record.network)
        if not meshed(driver):
            words = f"network {record.network.name!r} has no endpoints on other hosts"
            raise NetplugError("invalid", words)
        return driver

    def _unknown(
        self, record: NetworkRecord, host: str, peer: Peer, wanted: Sequence[Step], applied: dict[str, Step]
    ) -> Iterable[Fault]:
        """Yield why this host does not send to a peer, or sends elsewhere, by its own doing."""
        key = f"endpoint {short(peer.endpoint)}"
        refused = [it.what for it in self._engine.conditions.all() if it.object == f"{key} on host {host}"]
        if refused:
            yield Fault("unknown", key, refused[0])
            return
        for step in wanted:
            if not isinstance(step, Fdb) or applied.get(step.key) == step:
                continue
            now = applied.get(step.key)
            if isinstance(now, Fdb):
                yield Fault("unknown", key, f"frames go to VTEP {now.vtep}, and host {host} has {step.vtep}")
            else:
                yield Fault("unknown", key, f"network {record.network.name} here does not know it")


def _below(facts: Facts, vtep: IPAddress) -> Iterator[Fault]:
    """Yield what is wrong with the link that has the VTEP."""
    link = next((it for it in facts.links if any(one.ip == vtep for one in it.addresses)), None)
    if link is None and facts.links:
        yield Fault("underlay", f"VTEP {vtep}", "no link has this address")
    elif link and not (link.up and link.carrier):
        yield Fault("underlay", link.name, DOWN)


def kind_of(step: Step) -> str:
    """Return the kind of a `Fault` of a step."""
    match step:
        case Fdb():
            return "fdb"
        case Neighbour():
            return "neighbour"
        case Vxlan():
            return "tunnel"
        case Element(table=table) | Table(name=table):
            return "filter" if of_peers(step) or table.endswith("vxlan") else "table"
    return "link"


def in_words(fault: Fault) -> str:
    """Return a fault in words.

    >>> in_words(Fault("fdb", "fdb/npv0a/02:42:0a:00:00:02", "missing"))
    'fdb/npv0a/02:42:0a:00:00:02 is missing'
    """
    return f"{fault.where} is missing" if fault.words == MISSING else f"{fault.where}: {fault.words}"
