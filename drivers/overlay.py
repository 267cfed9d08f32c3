"""Overlay mode: a bridge network across the hosts of a cluster, with a VXLAN link as a port of each bridge.

On each host it works as a bridge network. The gateway has the same address and MAC on all hosts (anycast). NAT and
published ports are those of the container's host. There is no MAC learning and no flooding: every host knows the VTEP
of each remote endpoint (`peers`), and its bridge answers ARP and neighbour discovery for them.

Values that must be equal on all hosts are derived from the VNI: each host's Docker has its own id for the network.
"""

from collections.abc import Sequence
from dataclasses import replace
from re import fullmatch

from . import link_mtu, shared, tunnel_tables
from .api import Endpoint, HostFacts, Network, Peer, Scope
from .bridge import OPTIONS, BridgeDriver, link_of
from .errors import DriverError, Kind
from .naming import eui64, host_side, mac_of_host_side, mac_of_id, vxlan_name
from .options import AnyOption, NetworkOptions
from .plan import Plan
from .steps import IPAddress, IPNetwork, Step
from .tunnel import NO_MAC, Fdb, Neighbour, Vxlan

OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds: outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 5)."""


class OverlayDriver(BridgeDriver):
    """Networks across several hosts."""

    scope = Scope.CLUSTER
    options: tuple[AnyOption, ...] = (*OPTIONS, shared.VNI, shared.VXLAN_PORT, shared.BUM)
    own_ports = 1

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        room = _room(host)
        if room < link_mtu.SMALLEST[4]:
            words = f"mode overlay: VXLAN leaves {room} bytes of the mtu of VTEP {host.vtep}, and IPv4 needs 68"
            raise DriverError(Kind.INVALID, words, hint="raise the mtu of the underlay")
        return replace(options, mtu=options.mtu or room)

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse a VNI that is in use, and an MTU that exceeds the tunnel's or is too small."""
        _check_mtu(net, host)
        super().check(net, others, host)
        vni, port = net.options.vni, net.options.vxlan_port
        if not vni:
            raise DriverError(Kind.INVALID, f"network {net.name!r} of mode overlay has no VNI", hint="give -o vni=…")
        hint = "choose another vni or vxlan_port"
        for other in others:
            if (other.options.vni, other.options.vxlan_port) == (vni, port):
                words = f"option vni={vni}: network {other.name!r} uses it on UDP port {port}"
                raise DriverError(Kind.EXISTS, words, hint=hint)
        for link in host.links:
            if (link.vni, link.port) == (vni, port) and link.name != vxlan_name(net.id):
                words = f"option vni={vni}: vxlan link {link.name!r} of the host uses it on UDP port {port}"
                raise DriverError(Kind.EXISTS, words, hint=hint)

    def mac(self, net: Network) -> str:
        return mac_of_id(f"vni/{net.options.vni}")

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        options, vtep = net.options, _vtep(host)
        link = Vxlan(
            vxlan_name(net.id),
            mac=mac_of_host_side("vxlan/" + net.id),
            mtu=options.mtu,
            master=link_of(net),
            vni=options.vni,
            local=vtep,
            port=options.vxlan_port,
            flood=options.bum,
            isolated=not options.icc,
        )
        # Its frames are filtered before the link exists.
        filtered = tunnel_tables.filtered(options.vxlan_port, options.vni)
        fast_path = tunnel_tables.fast_path(link.name) if _has_fast_path(net) else Plan()
        return super().create_network(net, host) + Plan((filtered, link)) + fast_path

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        plan = super().create_endpoint(net, ep, host)
        if not _has_fast_path(net):
            return plan
        addresses = (address.ip for address in ep.addresses)
        return plan + tunnel_tables.shortcut(host_side(ep.id), vxlan_name(net.id), ep.chosen_mac().lower(), addresses)

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        return super().base(families, host) + Plan((tunnel_tables.filter_table(),))

    def publish(self, net: Network, ep: Endpoint, host: HostFacts) -> Peer:
        return Peer(ep.id, ep.chosen_mac().lower(), tuple(address.ip for address in ep.addresses), _vtep(host))

    def port(self, net: Network) -> int:
        return net.options.vxlan_port

    def room(self, host: HostFacts) -> int:
        return _room(host)

    def check_peer(self, net: Network, peer: Peer, host: HostFacts) -> None:
        """Refuse a VTEP that is not another host's, and a MAC or address that no endpoint of the network can have."""
        vtep = _vtep(host)
        if peer.vtep.version != vtep.version:
            raise _bad(peer, f"VTEP {peer.vtep} is an IPv{peer.vtep.version} address, this host's is {vtep}")
        if peer.vtep == vtep or _nobodys(peer.vtep):
            raise _bad(peer, f"VTEP {peer.vtep} is not an address of another host")
        if not fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", peer.mac) or peer.mac in {NO_MAC, self.mac(net)}:
            raise _bad(peer, f"MAC {peer.mac!r} is not valid for an endpoint")
        gateways = {subnet.gateway.ip for subnet in net.subnets if subnet.gateway}
        for address in peer.addresses:
            pools = [subnet.pool for subnet in net.subnets if address in subnet.pool]
            if address in gateways or not pools or any(_reserved(address, pool) for pool in pools):
                raise _bad(peer, f"address {address} is not valid for an endpoint of network {net.name!r}")

    def peers(self, net: Network, peers: Sequence[Peer]) -> Plan:
        bridge, link, options = link_of(net), vxlan_name(net.id), net.options
        vteps = dict.fromkeys(peer.vtep for peer in peers)
        remote = {peer.mac: peer.vtep for peer in peers}
        remote_addresses: dict[IPAddress, str] = {}
        for peer in peers:
            remote_addresses |= dict.fromkeys(peer.addresses, peer.mac)
            if 6 in net.families():
                remote_addresses[eui64(peer.mac)] = peer.mac
        steps: list[Step] = [tunnel_tables.accepted(vtep, options.vxlan_port, options.vni) for vtep in vteps]
        if options.bum:
            steps += [Fdb(link, NO_MAC, vtep) for vtep in vteps]
        steps += [Fdb(link, mac, vtep) for mac, vtep in remote.items()]
        steps += [Neighbour(bridge, address, mac) for address, mac in remote_addresses.items()]
        if _has_fast_path(net):
            steps += [tunnel_tables.remote(link, mac) for mac in remote]
        return Plan(tuple(steps))


def _has_fast_path(net: Network) -> bool:
    """Return whether the fast path's checks suffice: anti-spoofing and icc are on, and the bridge is ours alone."""
    return net.options.spoofchk and net.options.icc and not net.options.bridge


def _nobodys(address: IPAddress) -> bool:
    """Return whether an address can be no host's: also of the reserved block of IPv4, with the broadcast address."""
    reserved = address.version == 4 and address.is_reserved
    return address.is_loopback or address.is_multicast or address.is_unspecified or reserved


def _vtep(host: HostFacts) -> IPAddress:
    if host.vtep is None:
        raise DriverError(
            Kind.INVALID,
            "mode overlay: this daemon is not part of a cluster",
            hint="use mode bridge, or a daemon with a cluster store",
        )
    return host.vtep


def _room(host: HostFacts) -> int:
    """Return the largest MTU of an overlay: that of the link with the VTEP's address, minus the overhead."""
    vtep = _vtep(host)
    links = [host.link(name) for address, name in host.addresses if address.ip == vtep]
    if not links:
        raise DriverError(Kind.INVALID, f"mode overlay: VTEP {vtep} is not an address of this host")
    # With routing protocols, the VTEP may be on the loopback link. Packets then use other links.
    lowest = links[0].mtu if links[0] and links[0].name != "lo" else host.mtu
    return lowest - OVERHEAD[vtep.version]


def _check_mtu(net: Network, host: HostFacts) -> None:
    mtu, room = net.options.mtu, _room(host)
    if mtu > room:
        vtep = _vtep(host)
        words = (
            f"option mtu={mtu}: VXLAN over IPv{vtep.version} adds {OVERHEAD[vtep.version]} bytes, and the link of VTEP "
            f"{vtep} has mtu {room + OVERHEAD[vtep.version]}"
        )
        raise DriverError(Kind.INVALID, words, hint=f"choose at most {room}")
    link_mtu.check(net, "raise the mtu of the underlay, or leave the subnet out")


def _bad(peer: Peer, what: str) -> DriverError:
    return DriverError(Kind.INVALID, f"peer {peer.endpoint[:12]!r}: {what}")


def _reserved(address: IPAddress, pool: IPNetwork) -> bool:
    """Whether an address is the network or broadcast address of an IPv4 subnet; a /31 has none (RFC 3021)."""
    return pool.version == 4 and pool.prefixlen <= 30 and address in {pool.network_address, pool.broadcast_address}
