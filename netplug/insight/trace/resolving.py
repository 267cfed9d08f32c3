"""The name of DST, as the C library in the source's sandbox resolves it.

It reads /etc/hosts first (nsswitch.conf: "files dns"; musl does always), then asks its name servers, with its search
list and ndots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.insight.trace.ends import End, Kind, name_of
from netplug.insight.trace.mends import connecting
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.kernel.probes.api import Facts, Flow, Job, Origin, Prober, Reply, new_mark
from netplug.kernel.probes.api import Kind as Probe

WAIT_MS = 1500
"""For an answer of one name server. The C library waits for five seconds (resolv.conf(5)); ours takes milliseconds."""
_MOST_SERVERS = 3
_DOCKER = ip_address("127.0.0.11")
_NO_NAME = frozenset({"nxdomain", "nodata"})


@dataclass(frozen=True, slots=True)
class Resolved:
    """What came of a name. `addresses`: IPv4 first; empty if the hop is broken.

    `misled`: why the packet is lost, if it is: the name servers would tell another address.
    """

    hop: Hop
    addresses: tuple[IPAddress, ...] = ()
    misled: Cause | None = None


class Resolving:
    """Asks for names as a sandbox does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def resolve(self, prober: Prober, source: End, inside: Facts, name: str) -> Resolved:
        """Resolve a name, and say why there is no answer."""
        if inside.hosts:
            return self._by_hosts(source, inside.hosts, name)
        facts = self._configured(source, inside)
        if not facts.nameservers:
            words = f"{source.place.name} has no name server in its resolv.conf, so it resolves no names"
            return self._broken(source, name, "", Cause("dns.no_server", words, self._mend(source)))
        said = ""
        for server in facts.nameservers[:_MOST_SERVERS]:
            for candidate in candidates(name, facts):
                found, ms, said = await _ask(prober, source, server, candidate)
                if found:
                    texts = ", ".join(map(str, found))
                    what = f"asks {server} for {candidate}: {texts}"
                    return Resolved(Hop("name", source.place.name, what, ms=ms), found)
                if said not in _NO_NAME:
                    break
            if said in _NO_NAME:
                cause = self._strangers(source, name, facts) or self._unknown(source, name)
                return self._broken(source, name, f"asks {server} for {name}: {said}", cause)
        servers = ", ".join(map(str, facts.nameservers[:_MOST_SERVERS]))
        cause = self._strangers(source, name, facts) or _silent(source, name, servers, said)
        if await self._knows_its_own(prober, source, facts.nameservers[0]):
            cause = self._unknown(source, name, beyond=True)
        return self._broken(source, name, f"asks {servers} for {name}: {said or 'no answer'}", cause)

    def _by_hosts(self, source: End, addresses: tuple[IPAddress, ...], name: str) -> Resolved:
        """Take what /etc/hosts says: no name server is asked then. An address that is for nobody blocks the name."""
        who = source.place.name
        file, texts = f"/etc/hosts of {who}", ", ".join(map(str, addresses))
        what, mend = f"name {name} is {texts} by {file}", f"take {addresses[0]} {name} out of {file}"
        if addresses[0].is_unspecified:
            words = f"{file} says that {name} is {addresses[0]}, which stands for nobody"
            return self._broken(source, name, what, Cause("name.hosts", words, mend))
        mine = {it.endpoint.network for it in source.records}
        records = [it for it in self._engine.registry.endpoints() if it.endpoint.network in mine]
        known = [one.ip for it in records if _has_name(it, name) for one in it.endpoint.addresses]
        misled = None
        if known and not set(known) & set(addresses):
            words = f"{file} says that {name} is {texts}, and its name server that it is {known[0]}"
            misled = Cause("name.hosts", words, mend)
        return Resolved(Hop("name", who, what), addresses, misled)

    @staticmethod
    async def _knows_its_own(prober: Prober, source: End, server: IPAddress) -> bool:
        """Whether a server answers for a name that it has to know: then it waits for resolvers beyond this host."""
        record = next((it for it in source.records if it.name), None)
        return bool(record and (await _ask(prober, source, server, record.name))[0])

    def _configured(self, source: End, inside: Facts) -> Facts:
        """Return the resolver's settings; a bare namespace has no process, and is served at its gateways."""
        if inside.nameservers or inside.resolv_conf or source.kind is not Kind.SANDBOX:
            return inside
        return replace(inside, nameservers=self._servers(source))

    def _servers(self, source: End) -> tuple[IPAddress, ...]:
        """Return the name servers that know the names of the source's networks, those of Docker's containers first."""
        records = (self._engine.registry.find_network(it.endpoint.network) for it in source.records)
        servers = [address for it in records if it for address in it.resolvers]
        servers += [address for it in source.records for address in it.resolvers]
        if source.record and source.record.front_end is FrontEnd.DOCKER:
            servers.insert(0, _DOCKER)
        return tuple(dict.fromkeys(servers))

    def _strangers(self, source: End, name: str, facts: Facts) -> Cause | None:
        """Say that a sandbox asks other name servers than those that know the name."""
        ours, mine = self._servers(source), {it.endpoint.network for it in source.records}
        known = any(_has_name(it, name) and it.endpoint.network in mine for it in self._engine.registry.endpoints())
        if not known or not ours or set(ours) & set(facts.nameservers):
            return None
        asked = ", ".join(map(str, facts.nameservers[:_MOST_SERVERS]))
        words = (
            f"the resolv.conf of {source.place.name} names {asked}, and only {ours[0]} knows the names of containers"
        )
        return Cause("dns.strangers", words, self._mend(source))

    def _mend(self, source: End) -> str:
        """Return what gives a sandbox its name server back."""
        servers = self._servers(source)
        if not servers:
            return ""
        if source.record and source.record.front_end is FrontEnd.DOCKER:
            return f"docker exec {source.place.name} sh -c 'echo nameserver {servers[0]} > /etc/resolv.conf'"
        return f"write into the resolv.conf of {source.place.name}: nameserver {servers[0]}"

    @staticmethod
    def _broken(source: End, name: str, what: str, cause: Cause) -> Resolved:
        return Resolved(Hop("name", source.place.name, what or f"asks for {name}", Verdict.BROKEN, cause=cause))

    def _unknown(self, source: End, name: str, *, beyond: bool = False) -> Cause:
        """Say why a name is unknown: nobody has it, or who has it is in another network."""
        registry = self._engine.registry
        mine = {it.endpoint.network for it in source.records}
        mine_words = ", ".join(sorted(registry.network(it).network.name for it in mine)) or "no network of netplug"
        label, _, rest = name.rstrip(".").partition(".")
        others = [it for it in registry.endpoints() if _has_name(it, label) and it.endpoint.network not in mine]
        if rest:
            others = [
                it for it in others if rest.startswith(registry.network(it.endpoint.network).network.name)
            ] or others
        who = source.place.name
        if others and source.records:
            net = registry.network(others[0].endpoint.network).network.name
            words = f"{label} is in network {net}, and {who} is in {mine_words}: it sees names of its own networks only"
            return Cause("name.other_network", words, connecting(net, source.records[0]))
        words = f"nobody in the networks of {who} ({mine_words}) has the name {name!r}"
        words += ", and the resolvers beyond this host do not answer" if beyond else ""
        return Cause("name.unknown", words, "netplug ps")


def candidates(name: str, facts: Facts) -> Iterator[str]:
    """Yield the names that are asked for, in order (resolv.conf(5): search, ndots).

    >>> list(candidates("web", Facts(search=("blue.test",))))
    ['web.blue.test', 'web']
    >>> list(candidates("web.blue", Facts(search=("blue.test",))))
    ['web.blue', 'web.blue.blue.test']
    """
    if name.endswith("."):
        yield name.rstrip(".")
        return
    numbers = [it.partition(":")[2] for it in facts.resolv_options if it.startswith("ndots:")]
    ndots = int(numbers[-1]) if numbers and numbers[-1].isdigit() else 1
    searched = [f"{name}.{domain.rstrip('.')}" for domain in facts.search if domain.strip(".")]
    yield from ([name, *searched] if name.count(".") >= ndots else [*searched, name])


async def _ask(
    prober: Prober, source: End, server: IPAddress, name: str
) -> tuple[tuple[IPAddress, ...], float | None, str]:
    """Return the addresses of both IP versions, how long it took, and what was said instead."""
    found: list[IPAddress] = []
    ms, said = None, ""
    for record in ("A", "AAAA"):
        flow = Flow(server, Probe.DNS, 53, name=name, record=record)
        job = Job(flow, new_mark(), Origin(source.place.netns), wait_ms=WAIT_MS, drops=False)
        reply = (await prober.run(job)).reply
        if reply is None:
            return tuple(found), ms, ""
        addresses = _addresses(reply)
        found += addresses
        ms = reply.ms if ms is None else ms
        said = said if addresses or said not in {"", *_NO_NAME} else (reply.text or reply.code or str(reply.what))
    return tuple(found), ms, said.lower()


def _addresses(reply: Reply) -> Sequence[IPAddress]:
    found = []
    for word in reply.text.replace(",", " ").split():
        try:
            found.append(ip_address(word))
        except ValueError:
            return []
    return found


def _silent(source: End, name: str, servers: str, said: str) -> Cause:
    if source.kind is Kind.HOST:
        words = f"no container is called {name!r}, and this host's name server at {servers}"
        words += f" answers {said}" if said else " does not answer"
        return Cause("dns.failed" if said else "dns.silent", words, "netplug ps; dig @" + servers.partition(",")[0])
    if not said:
        return Cause("dns.silent", f"the name server at {servers} does not answer", "netplug repair")
    return Cause("dns.failed", f"the name server at {servers} answers {said}", "netplug dns ls")


def _has_name(record: EndpointRecord, label: str) -> bool:
    names = {record.name, record.hostname, *record.aliases, short(record.container) if record.container else ""}
    return label in names or (record.front_end is FrontEnd.CLI and name_of(record) == label)
