"""Records as the name server has them: what an endpoint is called, and what its network looks like from inside."""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from netplug.dns.zone import Entry, Network, Service
from netplug.drivers.steps import IPAddress
from netplug.engine.records import EndpointRecord, NetworkRecord
from netplug.names.short_ids import short_id

_SHORT = re.compile(r"[0-9a-f]{12}", re.ASCII)


def entry(record: EndpointRecord) -> Entry | None:
    """Return an endpoint as others call it; None when nobody can, or its links are down."""
    names, short = names_of(record), short_id(record.container)
    if not (names or short) or not record.linked:
        return None
    addresses = tuple(address.ip for address in record.endpoint.addresses)
    whole = tuple(filter(None, (whole_name(record),)))
    served = tuple(services(ports_of(record)))
    return Entry(record.endpoint.id, names, addresses, served, record.healthy, short, whole)


def of_other(
    ident: str,
    names: Iterable[str],
    addresses: Iterable[IPAddress],
    ports: Iterable[tuple[str, int]],
    *,
    healthy: bool = True,
) -> Entry:
    """Return an endpoint of another host as others call it. Which of its names is part of an id is not said."""
    every = tuple(names)
    short = next((name for name in every[::-1] if _SHORT.fullmatch(name)), "")
    others = tuple(name for name in every if name != short)
    return Entry(ident, others, tuple(addresses), tuple(services(ports)), healthy, short)


def advertised_names(record: EndpointRecord) -> tuple[str, ...]:
    """Return all names of an endpoint, for other hosts."""
    return tuple(filter(None, dict.fromkeys((*names_of(record), short_id(record.container)))))


def names_of(record: EndpointRecord) -> tuple[str, ...]:
    """Return all that an endpoint is called, what it is called first of all at the beginning.

    Part of an id is no such name: see `Entry.short`. An id that nobody shortens is.
    """
    short = short_id(record.container)
    ident = "" if short else record.container
    called = (record.name, *record.aliases, record.hostname, whole_name(record), ident)
    return tuple(dict.fromkeys(name.lower() for name in called if name and name != short))


def whole_name(record: EndpointRecord) -> str:
    """Return the name that a container has with its domain, as it sees itself; empty for none."""
    return f"{record.hostname}.{record.domainname}".lower() if record.hostname and record.domainname else ""


def ports_of(record: EndpointRecord) -> set[tuple[str, int]]:
    """Return the protocols and ports on which an endpoint serves, as far as somebody said so."""
    ports = {(str(it.proto), it.port + number) for it in record.endpoint.ports for number in range(it.count)}
    return ports | {(proto, int(port)) for port, _, proto in (text.partition("/") for text in record.serves)}


def services(ports: Iterable[tuple[str, int]]) -> Iterable[Service]:
    """Yield the services that ports have names for (services(5)): "http" for TCP port 80."""
    for proto, port in sorted(ports):
        if name := _service(proto, port):
            yield Service(name, proto, port)


@lru_cache(maxsize=4096)  # other hosts say what they like
def _service(proto: str, port: int) -> str:
    """Return a port's name; libc reads the whole list for each. Empty: it has none, or the protocol has no list."""
    try:
        return socket.getservbyport(port, proto)
    except (OSError, OverflowError, ValueError):
        return ""


def network(record: NetworkRecord, *, gateway: bool) -> Network:
    """Return a network as its containers see it. `gateway`: those of its mode are addresses of the host."""
    net = record.network
    hosts = [subnet.host for subnet in net.subnets]
    hosts += [subnet.gateway for subnet in net.subnets if gateway]
    addresses = tuple(dict.fromkeys(address.ip for address in hosts if address))
    # Docker looks a name up in its networks in this order: the internal ones last, and first those that lead out in
    # both families (libnetwork, Endpoint.Less).
    ways = {subnet.gateway.version for subnet in net.subnets if subnet.gateway}
    rank = (int(net.internal), -sum({4: 1, 6: 2}[version] for version in ways))
    pools = tuple(subnet.pool for subnet in net.subnets)
    return Network(net.id, net.name, net.options.ttl, addresses, pools, rank)


@dataclass(frozen=True, slots=True)
class Resolving:
    """What a container's resolv.conf(5) should say: whom to ask, and below which domains names are short."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


def resolving(record: NetworkRecord, built: EndpointRecord, domain: str, search: Iterable[str] = ()) -> Resolving:
    """Return how an endpoint's sandbox reaches the name server; empty when it does not.

    `domain`: what all names end in; empty where no name server runs. `search`: domains below which the host itself
    looks for names, of which internal networks are told nothing.
    """
    servers = tuple(map(str, (*record.resolvers, *built.resolvers)))
    if not (servers and domain):
        return Resolving()
    own = f"{record.network.name}.{domain}".lower()
    return Resolving(servers, tuple(dict.fromkeys((own, *(() if record.network.internal else search)))))
