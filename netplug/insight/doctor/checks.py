"""All checks, in the order of output. Their ids are stable: scripts know them."""

from typing import TYPE_CHECKING

from netplug.insight.doctor import (
    cluster,
    daemons,
    dns,
    docker,
    firewall,
    kernel,
    link_managers,
    links,
    records,
    resources,
    stores,
    underlay,
)
from netplug.insight.doctor.findings import Check
from netplug.insight.doctor.subject import HostSubject

if TYPE_CHECKING:
    from netplug.insight.insight import Subject

HOST: tuple[Check[HostSubject], ...] = (
    Check("kernel.features", "the kernel has all that netplug needs", kernel.features),
    Check("kernel.forwarding", "the host forwards what networks need", kernel.forwarding),
    Check("kernel.ipv6", "IPv6 is on where networks need it", kernel.ipv6),
    Check("kernel.bridge-netfilter", "bridged frames do not meet the IP firewall", kernel.bridge_netfilter),
    Check("kernel.connections", "connections can be tracked", kernel.connections),
    Check("kernel.neighbours", "there is room for neighbours", kernel.neighbours),
    Check("firewall.foreign", "no rule of others drops packets of networks", firewall.foreign),
    Check("firewall.iptables", "iptables lets networks pass", firewall.iptables),
    Check("firewall.flavours", "one flavour of iptables has rules at most", firewall.flavours),
    Check("firewall.tunnels", "the host takes in tunnels, if it has any", firewall.tunnels),
    Check("firewall.libnftables", "tables can be printed", firewall.libnftables),
    Check("links.routes", "no route of others overlaps a subnet of networks", links.overlaps),
    Check("links.uplink", "the host has a default route", links.uplink),
    Check("links.checksums", "packets come with right checksums", links.checksums),
    Check("links.networkmanager", "NetworkManager leaves our links alone", link_managers.network_manager),
    Check("links.networkd", "systemd-networkd leaves our links alone", link_managers.networkd),
    Check("links.dhcpcd", "dhcpcd leaves our links alone", link_managers.dhcpcd),
    Check("dns.ports", "the ports of name servers at the gateways are netplug's", dns.ports),
    Check("dns.upstreams", "name servers for external names answer", dns.upstreams),
    Check("docker.engine", "dockerd answers", docker.engine),
    Check("store.shared", "etcd answers", stores.shared),
    Check("store.trust", "etcd knows its clients", stores.trust),
    Check("cluster.vtep", "this host has a VTEP", stores.vtep),
    Check("daemon.others", "there is one daemon", daemons.others),
    Check("resources.disk", "there is room on disk", resources.disk),
    Check("resources.descriptors", "there are file descriptors left", resources.descriptors),
)
"""Of the host: also without a daemon."""

RECORDS: tuple[Check["Subject"], ...] = (
    Check("store.local", "the store of this host answers", stores.local),
    Check("docker.resolvers", "containers of Docker ask netplug for names", docker.resolvers),
    Check("cluster.hosts", "all hosts are alive", cluster.hosts),
    Check("cluster.versions", "all hosts run one version", cluster.versions),
    Check("cluster.clocks", "the clocks of all hosts agree", cluster.clocks),
    Check("cluster.mtu", "tunnels fit on the ways to other hosts", underlay.mtu, 1.8),
    Check("records.drift", "kernel and records agree", records.drift),
    Check("records.faults", "the daemon knows of no faults", records.conditions),
    Check("records.quarantine", "all records can be used", records.quarantine),
    Check("records.leases", "each lease has an endpoint", records.leases),
    Check("records.subnets", "there are subnets left for new networks", records.subnets),
    Check("records.pools", "each network has free addresses", records.pools),
)
"""Of what the daemon knows."""
