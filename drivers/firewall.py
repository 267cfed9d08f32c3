"""Firewall state of bridge networks: constant chains over sets, and a map of published ports.

All that is per network lies in sets, so that the rules a packet meets do not grow with networks or endpoints, and
attaching a container without published ports touches no rule. Only a bridge that the user named has rules of its own,
which lead what it receives to the chains:

==================  ===============  ======================================================================
set                 type             members
==================  ===============  ======================================================================
``netplug-netN``    hash:net,iface   (subnet, bridge) of each subnet
``netplug-iccN``    hash:net,iface   the same, where containers may talk to each other
``netplug-outN``    hash:net,iface   the same, where there is a way out and in (all but internal networks)
``netplug-masqN``   hash:net         subnets that leave under the host's address
``netplug-ifN``     hash:net,iface   (everything, bridge) of bridges that the user named
==================  ===============  ======================================================================

"Is this link ours?" is answered by its name, ``np-+``; only bridges with a name of the user's own are in a set, since
the kernel holds no more than 64 links of one prefix in a hash:net,iface.

A set with an interface matches ``src,src`` on the link a packet came by and ``dst,dst`` on the one it leaves by
(ipset(8)). ``src,dst`` thus reads "from a subnet whose bridge is the way out": the test for "stays within its network"
that also holds for bridged frames, which pass here under ``bridge-nf-call-iptables=1``. (``physdev`` would be shorter,
but its use loads br_netfilter and so changes every bridge of the host: it stands only where that is loaded.)
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from . import routing
from .api import Endpoint, HostFacts, Network, PortMapping
from .errors import DriverError, Kind
from .naming import BRIDGES
from .plan import Plan
from .steps import (
    Chain,
    Flows,
    Forward,
    Forwards,
    HostPort,
    IPAddress,
    IPInterface,
    IPNetwork,
    IpSet,
    Jump,
    Member,
    Proto,
    Relay,
    Resolver,
    Step,
)

FORWARD = "NETPLUG-FORWARD"
FROM = "NETPLUG-FROM"
INTO = "NETPLUG-INTO"
AMONG = "NETPLUG-AMONG"
LINK = "NETPLUG-LINK"
INPUT = "NETPLUG-INPUT"
SNAT = "NETPLUG-SNAT"
RAW = "NETPLUG-RAW"
DOCKER_USER = "DOCKER-USER"
DOCKER_ISOLATION = "DOCKER-ISOLATION-STAGE-2"
"""Docker's chain (until 28) that drops what would enter one of its own bridges; later versions drop in `raw`."""

RESOLVER_PORT = 25353
"""Where the name server listens at each gateway address: below the kernel's own choice, and nobody's by IANA."""

_MOST_PORTS = 15
"""Of a rule (iptables-extensions(8), multiport)."""
_ANY = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
UNSPECIFIED: Mapping[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
"""All addresses of a host, by IP version."""
_LOOPBACK4, _LOOPBACK6 = "127.0.0.0/8", ip_address("::1")
_ON_LINK = {4: ("224.0.0.0/4", "255.255.255.255/32"), 6: ("fe80::/10", "ff00::/8")}
_SETS = {
    "if": "hash:net,iface",
    "net": "hash:net,iface",
    "icc": "hash:net,iface",
    "out": "hash:net,iface",
    "masq": "hash:net",
}


def base(families: Sequence[int], host: HostFacts) -> Plan:
    """Return the sets, chains and jumps that all networks share."""
    return Plan(tuple(step for family in families for step in _base(family, host)))


def routed(families: Sequence[int], host: HostFacts) -> Plan:
    """Return what all networks share that the host routes for: `base`, and forwarding."""
    plan = base(families, host)
    for family in families:
        plan += routing.forwarding(family, host)
    return plan


def _base(family: int, host: HostFacts) -> tuple[Step, ...]:
    isolation = (family, DOCKER_ISOLATION) in host.chains
    store = [Member(f"netplug-store{family}", ip_network(it), None) for it in _addresses_of_store(family, host)]
    return (
        *(IpSet(f"netplug-{name}{family}", kind, family) for name, kind in _SETS.items()),
        *((IpSet(f"netplug-store{family}", "hash:net", family), *store) if store else ()),
        Chain(family, "filter", LINK, _link(family, bridged=host.bridge_netfilter)),
        Chain(family, "filter", AMONG, _among(family)),
        Chain(family, "filter", FROM, _from_ours(family, host, docker_isolation=isolation)),
        Chain(family, "filter", INTO, _into_ours(family)),
        Chain(family, "filter", FORWARD, _forward(family)),
        Chain(family, "filter", INPUT, _input(family, host)),
        Chain(family, "nat", SNAT, _snat(family)),
        Forwards(family),
        *((Chain(4, "raw", RAW, _raw()),) if family == 4 else ()),
        *_received(family, f"{BRIDGES}+"),
        Jump(family, "filter", "FORWARD", f"-j {FORWARD}", after=DOCKER_USER),
        Jump(family, "nat", "POSTROUTING", f"-j {SNAT}"),
    )


def _received(family: int, links: str) -> tuple[Jump, ...]:
    """Return the jumps of what comes by `links` to the host itself, or on to others.

    A rule for a bridge that the user named, in place of a set: all that the host receives would be looked up there, the
    frames of tunnels too.
    """
    raw = (Jump(4, "raw", "PREROUTING", f"-i {links} -j {RAW}"),) if family == 4 else ()
    return (*raw, Jump(family, "filter", "INPUT", f"-i {links} -j {INPUT}"))


def _from(family: int) -> tuple[str, str]:
    """Return the two tests for "came by a bridge of ours"."""
    return f"-i {BRIDGES}+", _match("if", family, "src,src")


def _into(family: int) -> tuple[str, str]:
    """Return the two tests for "leaves by a bridge of ours"."""
    return f"-o {BRIDGES}+", _match("if", family, "dst,dst")


def _forward(family: int) -> tuple[str, ...]:
    """Tell by direction what comes from a network of ours, and what goes to one.

    On a bridge that the user lent us others have theirs: they are as strangers are, but on the link itself.
    """
    return (
        f"-i {BRIDGES}+ -j {FROM}",
        f"{_match('net', family, 'src,src')} -j {FROM}",
        f"{_match('if', family, 'src,src')} -j {LINK}",
        f"-o {BRIDGES}+ -j {INTO}",
        f"{_match('net', family, 'dst,dst')} -j {INTO}",
    )


def _from_ours(family: int, host: HostFacts, *, docker_isolation: bool) -> tuple[str, ...]:
    """Decide on what comes from a network of ours; what is left goes out, or to others on a bridge of the user's.

    A source that is not of the network, as one of an internal network, goes nowhere, whatever connection it claims to
    belong to.
    """
    return (
        *(f"{into} -j {AMONG}" for into in _into(family)),
        f"-m set ! --match-set netplug-out{family} src,src -j DROP",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        *(f"-p tcp -m set --match-set netplug-store{family} dst {ports}" for ports in _ports_of_store(family, host)),
        *((f"-m conntrack ! --ctstate DNAT -j {DOCKER_ISOLATION}",) if docker_isolation else ()),
        "-j ACCEPT",
    )


def _addresses_of_store(family: int, host: HostFacts) -> list[IPAddress]:
    return sorted({ip for ip, _ in host.store if ip.version == family and not ip.is_loopback})


def _ports_of_store(family: int, host: HostFacts, *, here: bool = False) -> tuple[str, ...]:
    """Return the end of a rule that refuses the ports of the store; none where it has no address of this family.

    `here`: those of a store on this host. It may well listen at all its addresses, however we reach it.
    """
    own = {address.ip for address, _ in host.addresses}
    if here:
        found = {port for ip, port in host.store if ip.is_loopback or (ip.version == family and ip in own)}
    else:
        found = {port for ip, port in host.store if ip.version == family and not ip.is_loopback}
    ports = ",".join(map(str, sorted(found)[:_MOST_PORTS]))
    return (f"-m multiport --dports {ports} -j REJECT --reject-with tcp-reset",) if ports else ()


def _among(family: int) -> tuple[str, ...]:
    """Decide on what goes from one network of ours to another, or stays in one.

    Containers may send ICMP errors about connections that they know by hearsay. Conntrack finds such a connection and
    calls them related, whoever they are from. So what goes among networks is that to published ports and its answers,
    errors of whoever answers too.
    """
    return (
        f"{_match('icc', family, 'src,src')} {_match('icc', family, 'src,dst')} -j ACCEPT",
        f"-j {LINK}",
        f"-m set ! --match-set netplug-out{family} src,src -j DROP",
        "-m conntrack --ctstate RELATED --ctdir ORIGINAL -j DROP",
        f"{_match('out', family, 'dst,dst')} -m conntrack --ctstate DNAT -j ACCEPT",
        f"-o {BRIDGES}+ -j DROP",
        f"{_match('net', family, 'dst,dst')} -j DROP",
    )


def _into_ours(family: int) -> tuple[str, ...]:
    """Decide on what comes from elsewhere to a network of ours."""
    return (
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"{_match('out', family, 'dst,dst')} -m conntrack --ctstate DNAT -j ACCEPT",
        "-j DROP",
    )


def _link(family: int, *, bridged: bool) -> tuple[str, ...]:
    """Let pass what bridges of ours forward as frames, where those come here, and routers do not forward.

    A packet from a link-local address is routed back into the link that it came by (Linux `ip6_forward`), past ports
    that are isolated. So it passes only if it is to a group, of neighbour discovery (whose receivers insist on a hop
    limit that no router has touched, RFC 4861), or known to be bridged.
    """
    if family == 4:
        # A client that has no address yet asks for one (RFC 2131).
        asks = "-s 0.0.0.0/32 -d 255.255.255.255/32 -j ACCEPT"
        # Those that Docker gives (``--link-local-ip``) and tells nobody (RFC 3927); no bridge has a route to them.
        local = "-s 169.254.0.0/16 -d 169.254.0.0/16"
        return (asks, *(f"{local} {leaves} -j ACCEPT" for leaves in _into(4)))
    return (
        *(f"-s {source} -d ff02::/16 -j ACCEPT" for source in ("fe80::/10", "::/128")),
        *(f"-s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT" for kind in (135, 136)),
        *(("-s fe80::/10 -m physdev --physdev-is-bridged -j ACCEPT",) if bridged else ()),
    )


def _input(family: int, host: HostFacts) -> tuple[str, ...]:
    """Let internal networks speak to the host at their own gateway alone, and ask none of its resolvers for names.

    A resolver of the host would carry their questions out, whatever address of the host's it is asked at: group and
    link-local ones are of the link. From a link-local address nobody asks one; which network it is of cannot be told.
    Our own name server, which does not, is reached behind a firewall that lets nobody else in too.
    """
    own = f"-m set ! --match-set netplug-net{family} dst,src"
    internal = f"-m set ! --match-set netplug-out{family} src,src"
    protocols = (Proto.TCP, Proto.UDP)
    return (
        # On a bridge of the user's, others have theirs.
        f"! -i {BRIDGES}+ -m set ! --match-set netplug-net{family} src,src -j RETURN",
        *(f"-p tcp {ports}" for ports in _ports_of_store(family, host, here=True)),
        *(f"-p {proto} {internal} -m multiport --dports 53,853 -j DROP" for proto in protocols),
        *(f"-d {address} -j RETURN" for address in _ON_LINK[family]),
        f"{internal} {own} -j DROP",
        *(
            f"-p {proto} -m {proto} --dport {RESOLVER_PORT} {_match('net', family, 'src,src')} -j ACCEPT"
            for proto in protocols
        ),
    )


def _snat(family: int) -> tuple[str, ...]:
    return (
        # Published port reached from the container itself or a neighbour: the answer must come back through us.
        f"-m conntrack --ctstate DNAT {_match('net', family, 'src,dst')} -j MASQUERADE",
        *(f"-s {_LOOPBACK4} {leaves} -j MASQUERADE" for leaves in _into(family) if family == 4),
        f"-m set --match-set netplug-masq{family} src -m set ! --match-set netplug-net{family} src,dst -j MASQUERADE",
    )


def _raw() -> tuple[str, ...]:
    """``route_localnet`` on our bridges is for the host's own packets: containers may not use it (CVE-2020-8558).

    Whoever leads something else here, as a rule of an earlier version may, drops none of the host's own by that.
    """
    return tuple(f"{end} {_LOOPBACK4} {came} -j DROP" for end in ("-d", "-s") for came in _from(4))


def _match(name: str, family: int, flags: str) -> str:
    return f"-m set --match-set netplug-{name}{family} {flags}"


def network(net: Network, bridge: str) -> Plan:
    """Return the set members of a network."""
    steps: list[Step] = []
    if not bridge.startswith(BRIDGES):
        for family in net.families():
            steps += [Member(f"netplug-if{family}", _ANY[family], bridge), *_received(family, bridge)]
    for pool in (subnet.pool for subnet in net.subnets):
        steps.append(Member(f"netplug-net{pool.version}", pool, bridge))
        if net.options.icc:
            steps.append(Member(f"netplug-icc{pool.version}", pool, bridge))
        if not net.internal:
            steps.append(Member(f"netplug-out{pool.version}", pool, bridge))
        if net.options.masquerade and not net.internal:
            steps.append(Member(f"netplug-masq{pool.version}", pool))
    return Plan(tuple(steps))


def single_address(net: Network, address: IPNetwork, gateways: Sequence[IPInterface], link: str) -> Plan:
    """Return the set members of a single address behind a link of its own, and of the host's addresses there."""
    names = ["net", *["out"] * (not net.internal)]
    steps: list[Step] = [Member(f"netplug-{name}{address.version}", address, link) for name in names]
    steps += [Member(f"netplug-net{it.version}", it.network, link) for it in gateways if it.version == address.version]
    if net.options.masquerade and not net.internal:
        steps.append(Member(f"netplug-masq{address.version}", address))
    return Plan(tuple(steps))


def catch_all(chain: str, address: IPAddress) -> Chain:
    """Return a chain that leads to `address` what no socket of the host wants; clients on the link alone stay out."""
    family = address.version
    local = ("-s fe80::/10 -j RETURN",) if family == 6 else ()
    protocols = (Proto.TCP, Proto.UDP)
    return Chain(
        family,
        "nat",
        chain,
        (
            *local,
            *(f"-p {proto} -m socket --nowildcard -j RETURN" for proto in protocols),
            *(f"-p {proto} -j DNAT --to-destination {address}" for proto in protocols),
        ),
    )


def host_addresses(
    mapping: PortMapping, addresses: Iterable[IPAddress], *, relayed: bool = True
) -> list[tuple[IPAddress, IPAddress]]:
    """Return the host addresses that a mapping is published on, each with that of the container which it leads to.

    Without a host address of its own those are all of IPv4 and all of IPv6, whichever the container has: for clients of
    the other version this process relays, as it does for ::1, if it holds the ports (`relayed`). It does not for SCTP.
    """
    inside: dict[int, IPAddress] = {}
    for address in addresses:
        inside.setdefault(address.version, address)
    relayed = relayed and mapping.proto is not Proto.SCTP
    hosts = list(UNSPECIFIED.values()) if mapping.host_address is None else [mapping.host_address]
    found = [
        (host, inside.get(host.version) or (next(iter(inside.values()), None) if relayed else None)) for host in hosts
    ]
    return [(host, address) for host, address in found if address and (relayed or host != _LOOPBACK6)]


def check_port(net: Network, ep: Endpoint, mapping: PortMapping) -> None:
    """Refuse a mapping with a host address from which nothing leads to the endpoint; see `host_addresses`."""
    host = mapping.host_address
    if host is None:
        return
    words = f"port {mapping} cannot be published"
    if host.is_multicast or (host.version == 6 and host.is_link_local):
        raise DriverError(Kind.INVALID, f"{words}: {host} is no address of a host alone")
    if not host_addresses(mapping, (address.ip for address in ep.addresses)):
        words += f": network {net.name!r} has no IPv{host.version}, and SCTP is not relayed"
        raise DriverError(Kind.INVALID, words, hint=f"publish it on an IPv{10 - host.version} address, or on all")


def publish(mapping: PortMapping, host: IPAddress, address: IPAddress) -> Plan:
    """Return the steps that lead ports of a host address to those of the container's."""
    proto, port, count = mapping.proto, mapping.host_port, mapping.count
    held = HostPort(proto, host, port, count=count)
    relay = Relay(proto, host, port, address, mapping.port, count)
    if relay.crosses_versions or host == _LOOPBACK6:
        return Plan((held, relay))
    everywhere = host == UNSPECIFIED[host.version]
    steps: list[Step] = [held, Forward(proto, None if everywhere else host, port, address, mapping.port, count)]
    if proto is Proto.UDP:
        steps.append(Flows(proto, port, address, mapping.host_address, count))
    if host == UNSPECIFIED[6] and proto is not Proto.SCTP:
        steps.append(relay)
    return Plan(tuple(steps))


def resolver(net: Network, gateways: Sequence[IPInterface], link: str) -> Plan:
    """Return what has the name server answer at port 53 of the host's addresses behind `link`."""
    steps: list[Step] = []
    for address in (gateway.ip for gateway in gateways if net.options.dns):
        steps.append(Resolver(net.id, link, address, RESOLVER_PORT))
        steps += [Forward(proto, address, 53, address, RESOLVER_PORT) for proto in (Proto.UDP, Proto.TCP)]
    return Plan(tuple(steps))


def check_pool(pool: IPNetwork, bridge: str, host: HostFacts) -> None:
    """Refuse a subnet that cannot be routed to `bridge`, or that the host routes elsewhere."""
    hint = "choose another --subnet"
    for kind in ("loopback", "multicast", "reserved"):
        if getattr(pool, f"is_{kind}"):
            raise DriverError(Kind.INVALID, f"subnet {pool} is of {kind} addresses", hint=hint)
    for address, link in host.addresses:
        if link != bridge and address in pool:
            raise DriverError(
                Kind.INVALID, f"subnet {pool} contains the host's own address {address.ip} on link {link!r}", hint=hint
            )
    for route, link in host.routes:
        if link != bridge and route.version == pool.version and route.subnet_of(pool):  # type: ignore[arg-type]
            raise DriverError(
                Kind.INVALID, f"subnet {pool} overlaps the host's route {route} on link {link!r}", hint=hint
            )
