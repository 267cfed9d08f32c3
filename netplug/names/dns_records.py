"""DNS entries and zones, computed from the records of endpoints and networks."""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from netplug.dns.forward_rules import Rule
from netplug.dns.zone import Entry, Network, Service
from netplug.drivers import api
from netplug.drivers.steps import IPAddress
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.names.short_ids import short_id

_SHORT = re.compile(r"[0-9a-f]{12}", re.ASCII)


def entry(record: EndpointRecord) -> Entry | None:
    """Return the DNS entry of an endpoint; None if it has no name, or its links are down."""
    names, short = names_of(record), short_id(record.container)
    if not (names or short) or not record.linked:
        return None
    addresses = tuple(address.ip for address in record.endpoint.addresses)
    whole = tuple(filter(None, (qualified_name(record),)))
    served = tuple(services(ports_of(record)))
    return Entry(record.endpoint.id, names, addresses, served, record.healthy, short, whole)


def remote_entry(
    ident: str,
    names: Iterable[str],
    addresses: Iterable[IPAddress],
    ports: Iterable[tuple[str, int]],
    *,
    healthy: bool = True,
) -> Entry:
    """Return the DNS entry of an endpoint on another host. The short id is recognized among its names by its form."""
    every = tuple(names)
    short = next((name for name in every[::-1] if _SHORT.fullmatch(name)), "")
    others = tuple(name for name in every if name != short)
    return Entry(ident, others, tuple(addresses), tuple(services(ports)), healthy, short)


def advertised_names(record: EndpointRecord) -> tuple[str, ...]:
    """Return all names of an endpoint, for other hosts."""
    return tuple(filter(None, dict.fromkeys((*names_of(record), short_id(record.container)))))


def names_of(record: EndpointRecord) -> tuple[str, ...]:
    """Return the names of an endpoint; the main one first.

    The short id is not included, see `Entry.short`. An id without a short form is.
    """
    short = short_id(record.container)
    ident = "" if short else record.container
    called = (record.name, *record.aliases, record.hostname, qualified_name(record), ident)
    return tuple(dict.fromkeys(name.lower() for name in called if name and name != short))


def qualified_name(record: EndpointRecord) -> str:
    """Return a container's own host name with its domain; empty if it has no domain."""
    return f"{record.hostname}.{record.domainname}".lower() if record.hostname and record.domainname else ""


def ports_of(record: EndpointRecord) -> set[tuple[str, int]]:
    """Return the protocols and ports of an endpoint that are published or exposed."""
    mappings = record.endpoint.ports + record.added
    ports = {(str(it.proto), it.port + number) for it in mappings for number in range(it.count)}
    return ports | {(proto, int(port)) for port, _, proto in (text.partition("/") for text in record.serves)}


def services(ports: Iterable[tuple[str, int]]) -> Iterable[Service]:
    """Yield the services of ports that have a name (services(5)): "http" for TCP port 80."""
    for proto, port in sorted(ports):
        if name := _service(proto, port):
            yield Service(name, proto, port)


@lru_cache(maxsize=4096)  # bounded, since other hosts choose the ports
def _service(proto: str, port: int) -> str:
    """Return a port's service name; empty if there is none. Cached, since libc reads the whole file for each."""
    try:
        return socket.getservbyport(port, proto)
    except (OSError, OverflowError, ValueError):
        return ""


def network(record: NetworkRecord, *, gateway: bool) -> Network:
    """Return a network's zone. `gateway`: whether gateways of its mode are addresses of the host."""
    net = record.network
    hosts = [subnet.host for subnet in net.subnets]
    hosts += [subnet.gateway for subnet in net.subnets if gateway]
    addresses = tuple(dict.fromkeys(address.ip for address in hosts if address))
    # Docker's order of networks for lookups: internal networks last, and before others those with gateways of both IP
    # versions (libnetwork, Endpoint.Less).
    ways = {subnet.gateway.version for subnet in net.subnets if subnet.gateway}
    rank = (int(net.internal), -sum({4: 1, 6: 2}[version] for version in ways))
    pools = tuple(subnet.pool for subnet in net.subnets)
    return Network(net.id, net.name, net.options.ttl, addresses, pools, rank)


@dataclass(frozen=True, slots=True)
class Resolving:
    """The content of a container's resolv.conf(5): name servers and search list."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def resolving(record: NetworkRecord, built: EndpointRecord, domain: str, search: Iterable[str] = ()) -> Resolving:
    """Return the resolver settings of an endpoint's sandbox; empty if it has no name server.

    `domain`: the domain of all names; empty if no name server runs. `search`: the host's search list, which containers
    of internal networks do not get.
    """
    servers = tuple(map(str, (*record.resolvers, *built.resolvers)))
    if not (servers and domain):
        return Resolving()
    own = f"{record.network.name}.{domain}".lower()
    return Resolving(servers, tuple(dict.fromkeys((own, *(() if record.network.internal else search)))))


def rules_by(nets: Iterable[api.Network]) -> tuple[Rule, ...]:
    """Return the forward rules in the options of networks."""
    texts = dict.fromkeys(text for net in nets for text in net.options.dns_upstream)
    return tuple(map(Rule.parse, texts))
