"""The name server of this host: records as DNS zones, and access control.

The registry calls it within each change. So when the answer to an attach arrives, the name resolves. A client sees the
names of all networks of its sandbox, whichever of their gateways it asks.
"""

import asyncio
import gc
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from netplug.dns.cache import Cache
from netplug.dns.forward_rules import NO_FORWARDING, Rule, Rules, Server
from netplug.dns.pending import Client
from netplug.dns.question import Question
from netplug.dns.server import Counts, Listener, Tally
from netplug.dns.slow_path import respond
from netplug.dns.sockets import Opener, open_here
from netplug.dns.special_use import is_private
from netplug.dns.tcp import Connections
from netplug.dns.upstream import Forwarder
from netplug.dns.wire import ROOT, IPAddress, below, to_wire
from netplug.dns.zone import Entry, View, Zones
from netplug.drivers.api import Network
from netplug.drivers.naming import short
from netplug.drivers.steps import Resolver
from netplug.engine import Engine, host_link
from netplug.engine.conditions import Difference
from netplug.engine.host_link import HOST_ALONE
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.engine.registry import Record
from netplug.names import dns_records
from netplug.names.host_client import HostClient
from netplug.names.host_resolvers import RESOLV_CONF, HostResolvers
from netplug.names.rebinding import guard
from netplug.names.serving import Serving

log = structlog.get_logger(__name__)

NOT_SERVED = "it belongs to netplug or to the host, or is no domain name"
MAX_CACHED, MIN_CACHED = 40_000, 1_000
"""Cached answers of upstreams: for all networks together, divided between them, and the minimum for each."""


class NameServer:
    """Answers for the names of all networks, and forwards other questions.

    Args:
        engine: its registry has the records.
        domain: the domain of full names.
        upstreams: resolvers that replace those of the host.
        conf: the host's resolv.conf.
        opener: opens sockets to upstreams.
        special: whether special-use names below the host's search list are forwarded to the host's resolvers, as the
            host does; other special-use names are never forwarded.
        refuse_rebinding: whether answers with private addresses for public names are refused.

    Attributes:
        counts: numbers of questions by network; a client in several networks is counted in one of them.
        tallies: the same by endpoint, since it may ask.
        host_resolvers: the resolvers of the host.
        watchers: called after their change.
        host: answers the host itself.
        guard: refuses private addresses for public names, if it is on.
    """

    def __init__(
        self,
        engine: Engine,
        domain: str = "netplug.internal",
        upstreams: Sequence[Rule] = (),
        conf: Path = RESOLV_CONF,
        opener: Opener = open_here,
        *,
        special: bool = True,
        refuse_rebinding: bool = False,
    ) -> None:
        self.zones = Zones(domain)
        self.forwarder = Forwarder(opener=opener)
        self.guard = guard(engine, self.forwarder.counts)
        self.guard.on = refuse_rebinding
        self.connections = Connections()
        self.host = HostClient(self.zones, self._forward, self.connections)
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._engine = engine
        self._configured = tuple(upstreams)
        self.host_resolvers = HostResolvers(conf, self._use_resolvers, searched=special)
        self.watchers: list[Callable[[], None]] = []
        self._refused: dict[str, tuple[str, ...]] = {}
        self._rules = Rules()
        self._of_networks: WeakValueDictionary[object, Rules] = WeakValueDictionary()
        self._listeners: defaultdict[str, list[Listener]] = defaultdict(list)
        self._remote: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        self._owners: dict[tuple[str, IPAddress], str] = {}
        engine.registry.watchers.append(self._changed)

    def start(self) -> None:
        """Start to answer. Earlier questions have waited in the queues of the sockets."""
        # Cycles are rare; a search for them after every 700 objects takes a seventh of the time of a question.
        gc.set_threshold(20_000, 20, 50)
        self.host_resolvers.read()
        self._engine.kernel.resolvers.serve_resolvers(self._serve)

    async def run(self) -> None:
        """Follow the host's resolv.conf until cancelled."""
        await self.host_resolvers.run()

    def use_upstreams(self, upstreams: Sequence[Rule], *, special: bool, refuse_rebinding: bool) -> None:
        """Take other resolvers and rules for their answers; see the class. Pending questions ask them."""
        self._configured, self.guard.on = tuple(upstreams), refuse_rebinding
        self.host_resolvers.reset(searched=special)

    def close(self) -> None:
        """Close the sockets to upstreams. The kernel closes the listeners."""
        self.forwarder.close()

    def view(self, networks: Iterable[str], via: str) -> View | None:
        """Return what a client in these networks sees; None if their names are not served."""
        view = self.zones.view(networks, via)
        if view is not None:
            self._set_rules(view)
        return view

    def entries(self, network_id: str) -> list[Entry]:
        """Return the DNS entries of a network."""
        index = self.zones.networks.get(network_id)
        return list(index.entries.values()) if index else []

    async def ask(self, networks: Iterable[str], message: bytes) -> bytes | None:
        """Answer a message as from a container of these networks by TCP; None if it would get no answer."""
        view = self.view(networks, "")
        found = respond(view, message, tcp=True)
        if view is None or not isinstance(found, Question):
            return found if isinstance(found, bytes) else None
        said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def tell(reply: bytes) -> None:
            if not said.done():
                said.set_result(reply)

        self._forward(view, Client(found, "api", "network api", tell))
        return await said

    def learn(self, network: str, ident: str, entry: Entry | None) -> None:
        """Set the entry of an endpoint on another host; None removes it."""
        if self._engine.registry.find_network(network) is None:
            return
        if entry is not None:
            self._remote[network][ident] = entry
        else:
            self._remote[network].pop(ident, None)
        index = self.zones.networks.get(network)
        if index is not None and entry is not None:
            index.add(entry)
        elif index is not None:
            index.remove(ident)

    # Changes of the registry

    def _changed(self, before: Record | None, after: Record | None) -> None:
        match before, after:
            case (_, NetworkRecord()) | (NetworkRecord(), _):
                self._network(before, after)
                self.host.refresh()
            case _:
                assert not isinstance(before, NetworkRecord)  # noqa: S101 - matched by the first case
                assert not isinstance(after, NetworkRecord)  # noqa: S101
                self._endpoint(before, after)

    def _network(self, before: Record | None, after: Record | None) -> None:
        if isinstance(after, NetworkRecord):
            if after.network.options.dns:
                self._serve_network(after)
            else:
                self._end_network(after.network.id)
        elif isinstance(before, NetworkRecord):
            ident = before.network.id
            self._end_network(ident)
            self._remote.pop(ident, None)
            self.counts.pop(ident, None)
            if not self._listeners.get(ident):
                self._listeners.pop(ident, None)

    def _serve_network(self, record: NetworkRecord) -> None:
        ident = record.network.id
        begins = ident not in self.zones.networks
        self.zones.set_network(dns_records.network(record, gateway=self._engine.drivers.of(record.network).gateway))
        if begins:
            for endpoint in self._engine.registry.endpoints(ident):
                self._name(endpoint)
            for entry in self._remote.get(ident, {}).values():
                self.zones.networks[ident].add(entry)
        self._set_all_rules()
        self._admit_all(ident)

    def _end_network(self, ident: str) -> None:
        """Serve the names of a network no longer; its containers may ask for those of their other networks."""
        if ident not in self.zones.networks:
            return
        for key in [key for key in self._owners if key[0] == ident]:
            self._dismiss(*key)
        self.zones.remove_network(ident)
        self._report()
        self._set_all_rules()
        self._admit_all(ident)

    def _endpoint(self, before: EndpointRecord | None, after: EndpointRecord | None) -> None:
        if after is not None:
            self._name(after)
        elif before is not None and (index := self.zones.networks.get(before.endpoint.network)):
            index.remove(before.endpoint.id)
            index.unnamed.discard(before.endpoint.id)
            self._report()
        if before is not None and (after is None or not _may_ask(after)):
            network = before.endpoint.network
            self.tallies.pop(before.endpoint.id, None)
            for address in (interface.ip for interface in before.endpoint.addresses):
                if self._owners.get((network, address)) == before.endpoint.id:
                    self._dismiss(network, address)
        self._admit(record for record in (before, after) if record and record.sandbox)

    def _name(self, record: EndpointRecord) -> None:
        index = self.zones.networks.get(record.endpoint.network)
        if index is None:
            return
        ident, entry = record.endpoint.id, dns_records.entry(record)
        if entry is None:
            index.remove(ident)
        else:
            index.add(entry)
        if record.linked and entry is None:
            index.unnamed.add(ident)
        else:
            index.unnamed.discard(ident)
        self._report()

    def _report(self) -> None:
        """Report names that are not served: they belong to the zone itself, or are no domain names."""
        refused = {
            f"endpoint {short(ident)} ({index.entries[ident].names[0]})": names
            for index in self.zones.networks.values()
            for ident, names in index.refused.items()
        }
        if refused == self._refused:
            return
        self._refused = refused
        found = [
            Difference(owner, "name", f"{name!r} is not served: {NOT_SERVED}")
            for owner, names in refused.items()
            for name in names
        ]
        self._engine.conditions.report("names", found)

    # Access

    def _admit(self, records: Iterable[EndpointRecord]) -> None:
        """Allow endpoints to resolve the names of all networks of their sandboxes."""
        for sandbox in {(record.sandbox, record.sandbox_id) for record in records}:
            self._admit_one(*sandbox)

    def _admit_one(self, sandbox: str, sandbox_id: str) -> None:
        records = [record for record in self._engine.registry.in_sandbox(sandbox, sandbox_id) if _may_ask(record)]
        networks = {record.endpoint.network for record in records}
        for record in records:
            ident = record.endpoint.network
            view = self.view(networks, ident)
            if view is None:
                continue
            for address in (interface.ip for interface in record.endpoint.addresses):
                self._owners[ident, address] = record.endpoint.id
                for listener in self._listeners[ident]:
                    listener.admit(address, view, sandbox, self.tallies[record.endpoint.id])

    def _admit_all(self, network: str) -> None:
        self._admit(record for record in self._engine.registry.endpoints(network) if _may_ask(record))

    def _dismiss(self, network: str, address: IPAddress) -> None:
        self._owners.pop((network, address), None)
        for listener in self._listeners.get(network, ()):
            listener.dismiss(address)

    def _serve(self, step: Resolver, udp: socket.socket, tcp: socket.socket) -> Serving:
        if step.network == HOST_ALONE:
            return self.host.serve(step, udp, tcp)
        counts = self.counts[step.network]
        listener = Listener(udp, tcp, step.network, self._forward, counts=counts, connections=self.connections)
        listeners = self._listeners[step.network]
        listeners.append(listener)
        self._admit_all(step.network)
        return Serving(listener, listeners.remove)

    # Upstreams

    def _forward(self, view: View, client: Client) -> None:
        self.forwarder.ask(view.rules, client)

    def _rules_of(self, view: View) -> Rules:
        """Return the forward rules of a view. Internal networks have none: questions could carry data out."""
        nets = self._open_networks(view)
        return self._shared_rules(self._rules, dns_records.rules_by(nets), nets) if nets else NO_FORWARDING

    def rules_of_domains(self, view: View) -> Rules:
        """Return the forward rules that networks of a view have for certain domains; other names are not forwarded."""
        nets = self._open_networks(view)
        given = tuple(rule for rule in dns_records.rules_by(nets) if rule.zone != ROOT)
        return self._shared_rules(NO_FORWARDING, given, nets)

    def _shared_rules(self, rules: Rules, given: tuple[Rule, ...], nets: Iterable[Network]) -> Rules:
        """Return the rules for clients of certain networks, shared by all views that have these.

        Each has its own cache, so that a client of another network cannot poison it.
        """
        key = rules.rules, given, frozenset(net.id for net in nets), self.guard.on
        found = self._of_networks.get(key)
        if found is None:
            most = max(MIN_CACHED, MAX_CACHED // max(len(self.zones.networks), 1))
            found = (
                rules.below(given, avoid=self._gateways(), cache=Cache(most))
                if given or rules.forward
                else NO_FORWARDING
            )
            self._of_networks[key] = found
        return found

    def _gateways(self) -> set[IPAddress]:
        ours = {address for record in self._engine.registry.networks() for address in record.resolvers}
        return ours | host_link.ADDRESSES

    def _open_networks(self, view: View) -> list[Network]:
        records = (self._engine.registry.find_network(index.network.id) for index in view.indexes)
        return [record.network for record in records if record is not None and not record.network.internal]

    def has_resolvers(self, view: View) -> bool:
        """Tell whether the settings, or a network of the view, name resolvers for all names."""
        given = (*self._configured, *dns_records.rules_by(self._open_networks(view)))
        return any(rule.zone == ROOT for rule in given)

    def trusts(self, name: bytes) -> bool:
        """Tell whether the settings name a resolver for a domain of a lower-case name."""
        return any(below(name, zone) for zone in self._rules.zones)

    def _set_rules(self, view: View) -> None:
        before, view.rules = view.rules, self._rules_of(view)
        view.upstream_cache, view.forwarded = view.rules.cache, view.rules.zones
        if before is not view.rules:
            # Pending questions wait for a server that may be gone; ask them again.
            for client in self.forwarder.take(before):
                self.forwarder.ask(view.rules, client)

    def _set_all_rules(self) -> None:
        for view in {view for index in self.zones.networks.values() for view in index.views}:
            if not view.shared:
                self._set_rules(view)

    def _use_resolvers(self, servers: Sequence[Server], search: tuple[str, ...]) -> None:
        also = [zone for zone in map(to_wire, search) if is_private(zone)]
        self._rules = Rules.of(self._configured, servers, avoid=self._gateways(), also=also, guard=self.guard)
        self.host.use_resolvers(servers)
        self._engine.search = search
        self._set_all_rules()
        for tell in self.watchers:
            tell()
        log.info("dns.upstreams", servers=[str(server) for server in self._rules.servers(b"\0")], search=search)


def _may_ask(record: EndpointRecord) -> bool:
    return bool(record.sandbox) and record.linked
