"""The first hops: whether the source runs, has a link and a route, and by which network it sends."""

from collections.abc import Iterator

from netplug.insight.links import owner
from netplug.insight.trace import mends
from netplug.insight.trace.ends import End, Ends, Kind
from netplug.insight.trace.host_routes import REFUSALS
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.insight.trace.preparing import BEYOND, Prepared
from netplug.kernel.probes.api import Facts


def standing(ends: Ends, source: End, facts: Facts) -> Iterator[Hop]:
    """Return what is wrong with the source itself."""
    if source.kind is not Kind.SANDBOX:
        return
    if all(it.name == "lo" for it in facts.links):
        yield Hop("source", source.place.name, "has a link", Verdict.BROKEN, cause=_no_link(ends, source))
        return
    if facts.frozen and facts.processes:
        words = f"{source.place.name} is paused, so no process of it sends"
        cause = Cause("paused", words, mends.thawing(source.record))
        yield Hop("source", source.place.name, "runs", Verdict.BROKEN, cause=cause)


def leaving(ends: Ends, prepared: Prepared) -> Iterator[Hop]:
    """Return the hop of the source's route."""
    crossing, route = prepared.crossing, prepared.route
    source, where = crossing.source, crossing.source.place.name
    if route is None and not crossing.uplink:
        yield Hop("route", where, f"comes from {prepared.source}", Verdict.BROKEN, cause=_no_way_back(prepared))
        return
    if route is None:
        yield Hop("route", where, f"comes from {prepared.source} by {crossing.uplink}")
        return
    if route.error:
        yield Hop(
            "route", where, f"looks up a route to {route.destination}", Verdict.BROKEN, cause=_no_route(ends, prepared)
        )
        return
    if route.type == "local" or crossing.direct:
        yield Hop("route", where, f"{route.destination} is its own address")
        return
    if route.type not in {"", "unicast"}:
        words = f"the route of {where} to {route.destination} is {route.type}"
        yield Hop("route", where, "looks up a route", Verdict.BROKEN, cause=Cause("route.refused", words))
        return
    link = prepared.facts[source.place.netns].link(route.link)
    record = owner(link, source.records) if link else None
    network = f", network {ends.network(record).name}" if record else ""
    via = f"by router {route.gateway}" if route.gateway else "on the link"
    yield Hop("route", where, f"{route.destination} is {via}, {route.link}{network}, from {route.preferred}")


def _no_link(ends: Ends, source: End) -> Cause:
    """Say why a sandbox has no link."""
    none = {net.options.mode for net in ends.networks(source)} == {"none"}
    words = f"{source.place.name} reaches nobody: {'its network has mode none' if none else 'it has no link'}"
    return Cause("no_link", words, "" if none else mends.restarting(source.record))


def _no_way_back(prepared: Prepared) -> Cause:
    """Say that answers do not leave the host."""
    version = prepared.destination.version
    if prepared.source == BEYOND[version]:
        words = f"this host has no default route of IPv{version}, so it answers only to hosts on its own links"
        return Cause("route.none", words, "netplug trace outside=ADDRESS …, for one of those; or add a default route")
    return Cause("route.none", f"this host has no route to {prepared.source}, so its answers do not leave")


def _no_route(ends: Ends, prepared: Prepared) -> Cause:
    """Say why a sandbox has no route."""
    route, source = prepared.route, prepared.crossing.source
    assert route is not None  # noqa: S101 - the caller has looked
    name, facts = source.place.name, prepared.facts[source.place.netns]
    links = [it for it in facts.links if it.name != "lo"]
    if links and not any(it.up for it in links):
        return Cause(
            "link.down",
            f"{links[0].name} on {name} is down",
            mends.inside(source.place, f"ip link set {links[0].name} up"),
        )
    nets = ends.networks(source)
    if nets and all(net.internal for net in nets):
        words = f"network {nets[0].name} is internal, so {name} has no route to {route.destination}"
        return Cause("internal", words, f"netplug network update {nets[0].name} --internal false")
    version = route.destination.version
    gateways = [it for record in source.records for it in record.attachment.gateways if it.version == version]
    words = f"{name} has no route to {route.destination}: {route.error}"
    if refusal := REFUSALS.get(route.error):
        words = f"{name} does not send to {route.destination}: {refusal}"
        return Cause(
            "route.refused",
            words,
            mends.inside(source.place, "ip route show table all; ip rule show")
            if not source.place.netns
            else mends.inside(source.place, "sh -c 'ip rule show; ip route show table all'"),
        )
    default = any(it.destination.prefixlen == 0 and it.destination.version == version for it in facts.routes)
    if gateways and not default:
        words = f"{name} has no default route of IPv{version}, so none to {route.destination} ({route.error})"
        flag = "-6 " if version == 6 else ""
        return Cause("route.none", words, mends.inside(source.place, f"ip {flag}route add default via {gateways[0]}"))
    return Cause("route.none", words, mends.restarting(source.record))
