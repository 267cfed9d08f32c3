"""Firewall of bridge networks: constant chains, ipsets, and a map of published ports.

Networks are members of sets. So the number of rules for a packet does not grow with networks or endpoints, and a
container without published ports changes no rule. Only a bridge that the user named has rules of its own, which jump to
the chains:

==================  ===============  ======================================================================
set                 type             members
==================  ===============  ======================================================================
``netplug-netN``    hash:net,iface   (subnet, bridge) of each subnet
``netplug-iccN``    hash:net,iface   the same, where containers may talk to each other
``netplug-outN``    hash:net,iface   the same, for networks with external access (all but internal ones)
``netplug-masqN``   hash:net         subnets that are masqueraded
``netplug-ifN``     hash:net,iface   (all addresses, bridge) of bridges that the user named
==================  ===============  ======================================================================

Our links are matched by their name, ``np-+``. Only bridges that the user named are in a set, since a hash:net,iface has
at most 64 links for one prefix.

In a set with an interface, ``src,src`` matches the input link and ``dst,dst`` the output link (ipset(8)). So
``src,dst`` means "from a subnet whose bridge is the output link": the packet stays in its network. That also holds for
bridged frames with ``bridge-nf-call-iptables=1``. (``physdev`` would be shorter, but it loads br_netfilter, which
affects all bridges of the host. So it is used only where br_netfilter is loaded.)
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from . import routing
from .api import Endpoint, HostFacts, Network, PortMapping
from .errors import DriverError, Kind
from .naming import BRIDGES
from .plan import Plan
from .steps import (
    EVERYTHING,
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
"""Port of the name server at each gateway address. It is below the ephemeral ports, and unassigned by IANA."""

_MOST_PORTS = 15
"""Limit of a rule with multiport (iptables-extensions(8))."""
UNSPECIFIED: Mapping[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
"""The unspecified address of each IP version. As a host address it means all addresses."""
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
    """Return the sets, chains and jumps of all networks."""
    return Plan(tuple(step for family in families for step in _base(family, host)))


def routed(families: Sequence[int], host: HostFacts) -> Plan:
    """Return the plan of all routed networks: `base`, and IP forwarding."""
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
    """Return the jumps for packets from `links` to the host itself, and to the raw table.

    A bridge that the user named has rules instead of a set: all packets to the host, also those of tunnels, would be
    looked up in the set.
    """
    raw = (Jump(4, "raw", "PREROUTING", f"-i {links} -j {RAW}"),) if family == 4 else ()
    return (*raw, Jump(family, "filter", "INPUT", f"-i {links} -j {INPUT}"))


def _from(family: int) -> tuple[str, str]:
    """Return the two matches for an input link of ours."""
    return f"-i {BRIDGES}+", _match("if", family, "src,src")


def _into(family: int) -> tuple[str, str]:
    """Return the two matches for an output link of ours."""
    return f"-o {BRIDGES}+", _match("if", family, "dst,dst")


def _forward(family: int) -> tuple[str, ...]:
    """Return the rules that sort packets into those from our networks and those to them.

    A bridge of the user may have other hosts. Their packets are treated as foreign, except on the link itself.
    """
    return (
        f"-i {BRIDGES}+ -j {FROM}",
        f"{_match('net', family, 'src,src')} -j {FROM}",
        f"{_match('if', family, 'src,src')} -j {LINK}",
        f"-o {BRIDGES}+ -j {INTO}",
        f"{_match('net', family, 'dst,dst')} -j {INTO}",
    )


def _from_ours(family: int, host: HostFacts, *, docker_isolation: bool) -> tuple[str, ...]:
    """Return the rules for packets from our networks. Accepted packets leave, or reach other hosts on a user's bridge.

    A packet from an internal network, or with a source outside its network, is dropped before connections are matched.
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
    """Return the end of a rule that rejects the store's ports; nothing if it has no address of this IP version.

    `here`: for a store on this host. It may listen on all addresses of the host.
    """
    own = {address.ip for address, _ in host.addresses}
    if here:
        found = {port for ip, port in host.store if ip.is_loopback or (ip.version == family and ip in own)}
    else:
        found = {port for ip, port in host.store if ip.version == family and not ip.is_loopback}
    ports = ",".join(map(str, sorted(found)[:_MOST_PORTS]))
    return (f"-m multiport --dports {ports} -j REJECT --reject-with tcp-reset",) if ports else ()


def _among(family: int) -> tuple[str, ...]:
    """Return the rules for packets within a network of ours, or between two of them.

    A container may forge ICMP errors about other connections. Conntrack marks them RELATED, whatever their source is.
    So between networks, only packets to published ports, their replies, and errors in the reply direction are accepted.
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
    """Return the rules for packets to our networks from other sources."""
    return (
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"{_match('out', family, 'dst,dst')} -m conntrack --ctstate DNAT -j ACCEPT",
        "-j DROP",
    )


def _link(family: int, *, bridged: bool) -> tuple[str, ...]:
    """Return the rules for link-local packets, which a bridge forwards and a router does not.

    Linux routes a packet with a link-local source back into its input link (`ip6_forward`), which bypasses isolated
    ports. So such a packet is accepted only if it is multicast, neighbour discovery (receivers check that its hop limit
    is 255, RFC 4861), or known to be bridged.
    """
    if family == 4:
        # A DHCP client without an address (RFC 2131).
        dhcp = "-s 0.0.0.0/32 -d 255.255.255.255/32 -j ACCEPT"
        # Docker's ``--link-local-ip`` (RFC 3927), of which plugins are not told. No bridge has a route to them.
        local = "-s 169.254.0.0/16 -d 169.254.0.0/16"
        return (dhcp, *(f"{local} {leaves} -j ACCEPT" for leaves in _into(4)))
    return (
        *(f"-s {source} -d ff02::/16 -j ACCEPT" for source in ("fe80::/10", "::/128")),
        *(f"-s fe80::/10 -p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j ACCEPT" for kind in (135, 136)),
        *(("-s fe80::/10 -m physdev --physdev-is-bridged -j ACCEPT",) if bridged else ()),
    )


def _input(family: int, host: HostFacts) -> tuple[str, ...]:
    """Return the rules for packets to the host: internal networks reach only their own gateway, and no DNS resolver.

    A resolver on the host would forward their queries to the outside, on any address of the host, multicast and
    link-local ones included. A link-local source does not identify its network, so its queries are dropped. Our own
    name server does not forward queries of internal networks. It is accepted, also if the host's firewall drops others.
    """
    own = f"-m set ! --match-set netplug-net{family} dst,src"
    internal = f"-m set ! --match-set netplug-out{family} src,src"
    protocols = (Proto.TCP, Proto.UDP)
    return (
        # Other hosts on a bridge of the user.
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
        # Hairpin: a container uses a published port of itself or a neighbour. The reply must return through the host.
        f"-m conntrack --ctstate DNAT {_match('net', family, 'src,dst')} -j MASQUERADE",
        *(f"-s {_LOOPBACK4} {leaves} -j MASQUERADE" for leaves in _into(family) if family == 4),
        f"-m set --match-set netplug-masq{family} src -m set ! --match-set netplug-net{family} src,dst -j MASQUERADE",
    )


def _raw() -> tuple[str, ...]:
    """Return the rules that drop loopback addresses from containers (CVE-2020-8558).

    ``route_localnet`` of our bridges is only for the host's own packets. The rules match our links, so they drop no
    packets of the host, even if a rule of an earlier version jumps here for all links.
    """
    return tuple(f"{end} {_LOOPBACK4} {link} -j DROP" for end in ("-d", "-s") for link in _from(4))


def _match(name: str, family: int, flags: str) -> str:
    return f"-m set --match-set netplug-{name}{family} {flags}"


def network(net: Network, bridge: str) -> Plan:
    """Return the set members of a network."""
    steps: list[Step] = []
    if not bridge.startswith(BRIDGES):
        for family in net.families():
            steps += [Member(f"netplug-if{family}", EVERYTHING[family], bridge), *_received(family, bridge)]
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
    """Return the set members for a container with a link of its own: its address, and the host's addresses there."""
    names = ["net", *["out"] * (not net.internal)]
    steps: list[Step] = [Member(f"netplug-{name}{address.version}", address, link) for name in names]
    steps += [Member(f"netplug-net{it.version}", it.network, link) for it in gateways if it.version == address.version]
    if net.options.masquerade and not net.internal:
        steps.append(Member(f"netplug-masq{address.version}", address))
    return Plan(tuple(steps))


def catch_all(chain: str, address: IPAddress) -> Chain:
    """Return a chain that translates to `address` what no socket of the host accepts. It skips link-local clients."""
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
    """Return the host addresses of a published port, each with the container address that it maps to.

    Without a host address in the mapping, they are 0.0.0.0 and ::. The container may lack one IP version. Its clients
    are relayed by this process, as are those of ::1, if it has bound the ports (`relayed`). SCTP is not relayed.
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
    """Refuse a mapping whose host address cannot map to the endpoint; see `host_addresses`."""
    host = mapping.host_address
    if host is None:
        return
    words = f"port {mapping} cannot be published"
    if host.is_multicast or (host.version == 6 and host.is_link_local):
        raise DriverError(Kind.INVALID, f"{words}: {host} is a multicast or link-local address")
    if not host_addresses(mapping, (address.ip for address in ep.addresses)):
        words += f": network {net.name!r} has no IPv{host.version}, and SCTP is not relayed"
        raise DriverError(Kind.INVALID, words, hint=f"publish it on an IPv{10 - host.version} address, or on all")


def publish(mapping: PortMapping, host: IPAddress, address: IPAddress) -> Plan:
    """Return the steps that publish ports of a container on a host address."""
    proto, port, count = mapping.proto, mapping.host_port, mapping.count
    reserved = HostPort(proto, host, port, count=count)
    relay = Relay(proto, host, port, address, mapping.port, count)
    if relay.crosses_versions or host == _LOOPBACK6:
        return Plan((reserved, relay))
    unspecified = host == UNSPECIFIED[host.version]
    steps: list[Step] = [reserved, Forward(proto, None if unspecified else host, port, address, mapping.port, count)]
    if proto is Proto.UDP:
        steps.append(Flows(proto, port, address, mapping.host_address, count))
    if host == UNSPECIFIED[6] and proto is not Proto.SCTP:
        steps.append(relay)
    return Plan(tuple(steps))


def resolver(net: Network, gateways: Sequence[IPInterface], link: str) -> Plan:
    """Return the steps by which the name server answers on port 53 of the host's addresses on `link`."""
    steps: list[Step] = []
    for address in (gateway.ip for gateway in gateways if net.options.dns):
        steps.append(Resolver(net.id, link, address, RESOLVER_PORT))
        steps += [Forward(proto, address, 53, address, RESOLVER_PORT) for proto in (Proto.UDP, Proto.TCP)]
    return Plan(tuple(steps))


def check_pool(pool: IPNetwork, bridge: str, host: HostFacts) -> None:
    """Refuse a subnet that cannot be routed, or that overlaps the host's addresses or routes on other links."""
    hint = "choose another --subnet"
    for kind in ("loopback", "multicast", "reserved"):
        if getattr(pool, f"is_{kind}"):
            raise DriverError(Kind.INVALID, f"subnet {pool} has {kind} addresses", hint=hint)
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
