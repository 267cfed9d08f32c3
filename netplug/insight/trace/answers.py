"""The end of the way there: the socket that should listen, and what came back."""

from collections.abc import Sequence

from netplug.drivers.api import PortMapping
from netplug.drivers.firewall import RESOLVER_PORT
from netplug.engine.records import EndpointRecord
from netplug.insight.trace import asking, drops, mends, rules, trail
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind, name_of
from netplug.insight.trace.findings import Finding
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.kernel.probes.api import Facts, Listener, Reply, What

_ANSWERS = {"tcp": What.SYN_ACK, "icmp": What.ECHO_REPLY}


def answer(case: Case) -> Reply | None:
    """Return the answer that means success, if it came back to the sender."""
    wanted = _ANSWERS.get(case.proto, What.UDP)
    return next((it for it in case.report.replies if it.what is wanted), None)


def left(case: Case) -> bool:
    """Return whether the destination sent an answer, though it may not have come back."""
    if answer(case):
        return True
    wanted = _ANSWERS.get(case.proto, What.UDP)
    return any(it.back and it.what is wanted for it in case.report.sightings)


def arrival(case: Case, found: Sequence[Finding]) -> Hop:
    """Return the hop at the destination: who listens there, and whether the kernel or a rule stands before it."""
    facts, where = case.scene.of(case.destination.place), case.destination.place.name
    if case.proto == "icmp":
        return _echo(case, found)
    what = f"port {case.port}/{case.proto}"
    if case.destination.kind is Kind.OUTSIDE:
        return _outside(case, what, found)
    listeners = listening(facts, case)
    if cause := _frozen(case, facts, listeners):
        return Hop("listener", where, what, Verdict.BROKEN, cause=cause)
    if cause := _stands_before(case, found):
        return Hop("listener", where, what, Verdict.BROKEN, cause=cause)
    if not left(case) and (cause := _nobody(case, facts, listeners)):
        return Hop("listener", where, what, Verdict.BROKEN, cause=cause)
    if not left(case) and case.proto == "tcp" and (cause := other_way(case)):
        return Hop("listener", where, what, Verdict.BROKEN, cause=cause)
    names = ", ".join(dict.fromkeys(_named(it) for it in listeners)) or "answers"
    if not left(case) and case.proto == "tcp":
        words = f"{where} does not answer on {what}, though {names} listens: its queue may be full"
        return Hop("listener", where, f"{what}: {names}", Verdict.BROKEN, cause=Cause("listener.silent", words))
    note = "" if left(case) else " (no answer, which UDP need not give)"
    return Hop("listener", where, f"{what}: {names}{note}")


def listening(facts: Facts, case: Case) -> list[Listener]:
    """Return the sockets that take what is sent."""
    address, port = case.destination.address, case.port
    if case.destination.kind is Kind.HOST and case.ends.serves_names(address, port):
        return [it for it in facts.listeners if it.proto == case.proto and it.address == address]
    return [
        it
        for it in facts.listeners
        if (it.proto, it.port) == (case.proto, port)
        and (it.address == address or (it.address.is_unspecified and (it.dual or it.address.version == case.version)))
    ]


def _named(it: Listener) -> str:
    return f"{it.process} (pid {it.pid})" if it.process else f"a socket at {it.address}"


def _frozen(case: Case, facts: Facts, listeners: Sequence[Listener]) -> Cause | None:
    name, record = case.destination.place.name, case.destination.record
    one = next((it for it in listeners if it.frozen), None)
    if one and record is None:
        words = f"{_named(one)} on {name} is stopped: the kernel may answer for it, but it does not"
        return Cause("paused", words, mends.inside(case.destination.place, mends.thawing(None, one.pid)))
    if record is None or not (facts.frozen or one):
        return None
    pid = one.pid if one else 0
    words = f"{name} is paused: the kernel may answer for it, but no process of it does"
    return Cause("paused", words, mends.thawing(record, pid))


def _stands_before(case: Case, found: Sequence[Finding]) -> Cause | None:
    """Return why it does not come to the socket, if it was dropped behind the link."""
    if left(case):
        return None
    if rule := rules.dropping(case, back=False):
        return rules.cause(case, rule)
    here = next(
        (it.cause for it in found if it.station == "destination" and not it.cause.kind.startswith("link")), None
    )
    if here:
        return here
    if waits := asking.nobody_has(case, trail.way_back(case.path.stations, case.report), found, back=True):
        return waits
    drop = drops.dropping(case, back=False)
    if drop and drop.reason not in {"no_socket", "tcp_reset"}:
        return drops.cause(case, drop)
    # A link may take a packet though it has no carrier any more: the kernel notices that up to a second later.
    return next((it.cause for it in found if not it.station or it.cause.kind.startswith("link.")), None)


def other_way(case: Case) -> Cause | None:
    """Say that the destination answers by another link than the one by which it was asked."""
    way, place, source = case.crossing.way_out, case.destination.place, case.report.source or case.flow.source
    lookup = next((it for it in case.scene.of(place).lookups if it.source == case.destination.address), None)
    if way is None or lookup is None:
        return None
    if lookup.error:
        words = f"{place.name} has no route back to {source}: {lookup.error}"
        return Cause("route.none", words, mends.restarting(case.destination.record))
    if lookup.link and lookup.link != way.link:
        words = f"{place.name} was asked by {way.link} and answers by {lookup.link}: its route to {source} leads there"
        gateways = way.record.attachment.gateways if way.record else ()
        via = next((f" via {it}" for it in gateways if it.version == case.version), "")
        flag = "-6 " if case.version == 6 else ""
        mend = mends.inside(place, f"ip {flag}route replace {source}{via} dev {way.link}")
        return Cause("route.other_link", words, mend)
    return None


def _nobody(case: Case, facts: Facts, listeners: Sequence[Listener]) -> Cause | None:
    if listeners:
        return None
    where, what = case.destination.place.name, f"port {case.port}/{case.proto}"
    others = [it for it in facts.listeners if (it.proto, it.port) == (case.proto, case.port)]
    addresses = ", ".join(dict.fromkeys(str(it.address) for it in others))
    published = case.ends.published_as(case.port, case.proto) if case.destination.kind is Kind.HOST else None
    if others and published:
        return _published_elsewhere(case, *published)
    if others and all(it.address.is_loopback for it in others):
        who = _named(others[0])
        words = f"{who} in {where} listens on {addresses} only, where nobody but {where} itself reaches it"
        return Cause("listener.loopback", words, f"have it listen on 0.0.0.0:{case.port}")
    if others:
        words = f"{_named(others[0])} in {where} listens on {addresses} only, not on {case.destination.address}"
        return Cause("listener.other_address", words, f"have it listen on 0.0.0.0:{case.port}")
    # netplug's name server has a port of its own, to which only port 53 leads.
    seen = [it for it in facts.listeners if it.proto == case.proto and not it.address.is_loopback]
    open_ports = sorted({it.port for it in seen} - {RESOLVER_PORT})
    hint = f"; ports that are: {', '.join(map(str, open_ports[:8]))}" if open_ports else ""
    words = f"nobody listens on {what} in {where}{hint}"
    return Cause("listener.none", words, f"start the server in {where}, or ask for the port that it listens on")


def _published_elsewhere(case: Case, record: EndpointRecord, mapping: PortMapping, inside: int) -> Cause:
    """Say that a published port is asked for at an address at which it is not published."""
    name, asked = name_of(record), case.destination.address
    words = f"port {case.port}/{case.proto} of {name} is published on {mapping.host_address} only, not on {asked}"
    return Cause("not_published", words, mends.publishing(name, case.port, inside, case.proto, asked))


def _echo(case: Case, found: Sequence[Finding]) -> Hop:
    where = case.destination.place.name
    if left(case):
        return Hop("answer", where, "answers the echo request")
    cause = _stands_before(case, found) or other_way(case) or _ignoring(case)
    return Hop("answer", where, "echo request", Verdict.BROKEN, cause=cause)


def _ignoring(case: Case) -> Cause:
    facts, place = case.scene.of(case.destination.place), case.destination.place
    if facts.sysctl("net/ipv4/icmp_echo_ignore_all") == "1" and case.version == 4:
        mend = mends.inside(place, "sysctl -w net.ipv4.icmp_echo_ignore_all=0")
        return Cause("icmp.ignored", f"{place.name} ignores echo requests (icmp_echo_ignore_all=1)", mend)
    return Cause("no_answer", f"{place.name} does not answer the echo request")


def _outside(case: Case, what: str, found: Sequence[Finding]) -> Hop:
    where = str(case.destination.address)
    if left(case):
        return Hop("listener", where, f"{what} answers")
    reply = case.report.reply
    if reply and reply.what is What.RST:
        return Hop("listener", where, what, Verdict.BROKEN, cause=Cause("refused", f"{reply.source} refuses {what}"))
    if reply and reply.what is What.UNREACHABLE:
        words = f"{reply.source} says: {reply.code or 'unreachable'}"
        return Hop("listener", where, what, Verdict.BROKEN, cause=Cause("unreachable", words))
    if case.proto == "udp":
        return Hop("listener", where, f"{what}: sent (no answer, which UDP need not give)")
    if broken := next((it.cause for it in found if it.cause.kind.startswith("link.")), None):
        return Hop("listener", where, what, Verdict.BROKEN, cause=broken)
    words = f"it left this host by {case.crossing.uplink}, and {where} does not answer"
    return Hop("listener", where, what, Verdict.BROKEN, cause=Cause("outside.silent", words))
