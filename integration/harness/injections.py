"""What other programs do to the networks of a host: commands, by name. `healing.Scene` runs them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A network that is harmed: its links on the host, and addresses in it. `vni`: of an overlay, else 0."""

    name: str
    bridge: str
    port: str
    container: str
    tunnel: str = ""
    peer: str = ""
    peer_mac: str = ""
    vtep: str = ""

    def fill(self, command: str) -> str:
        return command.format(**{name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Injection:
    """What others do. `first`: what has to be so before, each time, and `after`: what ends that.

    `overlay`: to an overlay, not to a bridge network. `takes`: sections in which it takes what is of others.
    """

    command: str
    first: str = ""
    after: str = ""
    overlay: bool = False
    takes: frozenset[str] = frozenset()


_SAME_COMMENT = """
set -- $(nft -a list chain {0} {1} | sed -n 's/.*comment \\("[^"]*"\\) # handle \\([0-9]*\\)/\\2 \\1/p' | head -1)
n=$1; shift
nft "replace rule {0} {1} handle $n counter accept comment $*"
"""
_PRIORITY = """
( echo 'delete table {0}'; nft list table {0} | sed '/chain {1} /,/policy/s/priority [^;]*;/priority {2};/' ) | nft -f -
"""
_MAC_MOVED = """
set -- $(bridge fdb show dev {port} | grep sticky | cut -d' ' -f1) $(ls /sys/class/net/{bridge}/brif | grep -v {port})
if [ $# = 2 ]; then bridge fdb replace $1 dev $2 master static; fi  # a network of CNI may have no static entries
"""
_TTL = """
set -- $(ip -d link show {tunnel} | grep -o 'vxlan id [0-9]*')
ip link set {tunnel} type vxlan id $3 ttl 1
"""
_GATED = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
_UNGATED = "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT"

INJECTIONS: dict[str, Injection] = {
    "iptables -F": Injection("iptables -F; ip6tables -F", _GATED, _UNGATED),
    "rule first in the gate": Injection("iptables -I NETPLUG-FORWARD -j DROP", _GATED, _UNGATED),
    "iptables-legacy: policy": Injection(
        "for it in iptables ip6tables; do $it-legacy -P FORWARD DROP; done",
        after="for it in iptables ip6tables; do $it-legacy -P FORWARD ACCEPT; done",
        takes=frozenset({"iptables legacy", "ip6tables legacy"}),
    ),
    "nft flush ruleset": Injection("nft flush ruleset", _GATED, _UNGATED, takes=frozenset({"iptables", "ip6tables"})),
    "table of networks deleted": Injection("nft delete table inet netplug"),
    "table of guards deleted": Injection("nft delete table bridge netplug"),
    "rule replaced, same comment": Injection(_SAME_COMMENT.format("inet netplug", "ingress")),
    "rule first in our chain": Injection("nft insert rule inet netplug forward drop"),
    "priority of a base chain": Injection(_PRIORITY.format("inet netplug", "forward", "300")),
    "published ports deleted": Injection("nft flush map inet netplug published4_any"),
    "bridge deleted": Injection("ip link del {bridge}"),
    "bridge down": Injection("ip link set {bridge} down"),
    "bridge down and up": Injection("ip link set {bridge} down; ip link set {bridge} up"),
    "bridge renamed": Injection(
        # By one process: healing may begin before the next one.
        "printf 'link set %s\\n' '{bridge} down' '{bridge} name stray0' 'stray0 up' | ip -batch -"
    ),
    "addresses of the bridge removed": Injection("ip addr flush dev {bridge}"),
    "routes of the bridge deleted": Injection(
        "ip route flush dev {bridge} proto kernel; ip -6 route flush dev {bridge} root fd00::/8"
    ),
    "MTU of the bridge": Injection("ip link set {bridge} mtu 1280"),
    "MTU of a veth": Injection("ip link set {port} mtu 1280"),
    "MAC of the bridge": Injection("ip link set {bridge} address 02:00:00:00:00:99"),
    "veth off its bridge": Injection("ip link set {port} nomaster"),
    "veth down": Injection("ip link set {port} down"),
    "port disabled": Injection("bridge link set dev {port} state 0"),
    "port locked, not flooded to": Injection("bridge link set dev {port} locked on flood off bcast_flood off"),
    "ports isolated": Injection(
        "for it in $(ls /sys/class/net/{bridge}/brif); do bridge link set dev $it isolated on; done"
    ),
    "port flags of others": Injection(
        "bridge link set dev {port} neigh_suppress on; ip link set {port} type bridge_slave proxy_arp on"
    ),
    "MAC of a veth": Injection("ip link set {port} address 02:00:00:00:00:77"),
    "spanning tree protocol": Injection("ip link set {bridge} type bridge stp_state 1"),
    "limits deleted": Injection(
        "for it in $(ls /sys/class/net/{bridge}/brif); do tc qdisc del dev $it root; tc qdisc del dev $it ingress; done"
    ),
    "container's MAC at another port": Injection(_MAC_MOVED),
    "forwarding of the bridge off": Injection("sysctl -qw net.ipv4.conf.{bridge}.forwarding=0"),
    "bridge takes routers and redirects": Injection(
        "sysctl -qw net.ipv6.conf.{bridge}.accept_ra=2 net.ipv4.conf.{bridge}.accept_redirects=1"
    ),
    "ARP of the bridge off": Injection("ip link set {bridge} arp off"),
    "forwarding off": Injection("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"),
    "route_localnet off": Injection("sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0"),
    "overlay: FDB entry deleted": Injection("bridge fdb del {peer_mac} dev {tunnel} dst {vtep} self", overlay=True),
    "overlay: FDB entry to a container": Injection(
        "bridge fdb replace {peer_mac} dev {port} master static", overlay=True
    ),
    "overlay: FDB flushed": Injection("bridge fdb flush dev {tunnel} self", overlay=True),
    "overlay: neighbour deleted": Injection("ip neigh del {peer} dev {bridge}", overlay=True),
    "overlay: neighbours flushed": Injection("ip neigh flush dev {bridge} nud permanent", overlay=True),
    "overlay: tunnel deleted": Injection("ip link del {tunnel}", overlay=True),
    "overlay: tunnel down": Injection("ip link set {tunnel} down", overlay=True),
    "overlay: TTL of a tunnel": Injection(_TTL, overlay=True),
    "overlay: tunnel off its bridge": Injection("ip link set {tunnel} nomaster", overlay=True),
    "overlay: tunnel's port disabled": Injection("bridge link set dev {tunnel} state 0", overlay=True),
    "overlay: bridge deleted": Injection("ip link del {bridge}", overlay=True),
    "overlay: bridge down and up": Injection("ip link set {bridge} down; ip link set {bridge} up", overlay=True),
}


GUARDED: dict[str, dict[str, Injection]] = {
    "firewalld": {"firewall-cmd --reload": Injection("firewall-cmd --reload")},
    "iptables-legacy": {
        "iptables-legacy -F": Injection(
            "iptables-legacy -F; ip6tables-legacy -F",
            "for it in iptables ip6tables; do $it-legacy -P FORWARD DROP; $it-legacy -A FORWARD -o x0 -j ACCEPT; done",
            takes=frozenset({"iptables legacy", "ip6tables legacy"}),
        ),
    },
}
"""Injections where a host has another firewall, by its name (`harness/environment.py`), which stays as it is then."""
