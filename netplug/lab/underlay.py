"""The switch between hosts: a bridge in a namespace of its own, and a cable to each host.

Its ports are called as the hosts are numbered, `p1` and so on; the host's end is `eth0`. Nothing is in the root
namespace: each pair is made in the switch's namespace, with its peer in the host's.
"""

import subprocess

from netplug.lab.file import ETCD, Lab
from netplug.lab.node import Node, environment
from netplug.lab.state import SWITCH, Member, State

UPLINK = "eth0"
_BURST_S = 0.01
"""A rate's bucket holds what it lets through in so long (tc-tbf(8))."""
_LEAST_BURST = 32 * 1024
_LATENCY = "50ms"


def order(lab: Lab) -> list[str]:
    """Return who is on the switch, in the order of ports and addresses."""
    return [*lab.hosts, *([ETCD] if lab.store == ETCD else [])]


def port(lab: Lab, name: str) -> str:
    """Return the switch's port of a host."""
    return f"p{order(lab).index(name) + 1}"


def addresses(lab: Lab, name: str) -> tuple[str, str]:
    """Return a host's addresses, IPv4 and IPv6."""
    number = order(lab).index(name) + 1
    return str(lab.underlay.ipv4[number]), str(lab.underlay.ipv6[number])


def make(state: State) -> None:
    """Make the switch of a lab."""
    folder = state.folder / SWITCH
    switch = Node.start(SWITCH, f"{state.lab.name}-{SWITCH}", folder)
    state.members[SWITCH] = Member(switch.pid, switch.since)
    widest = max([state.lab.underlay.mtu, *map(state.lab.mtu, state.lab.hosts)])
    # Hosts know each other from the first packet: the bridge need not wait for loops.
    switch.script(f"ip link add br0 mtu {widest} type bridge forward_delay 0", "ip link set br0 up")


def connect(state: State, host: Node) -> None:
    """Lay the cable of a host."""
    lab, switch, own = state.lab, state.node(SWITCH), port(state.lab, host.name)
    mtu = lab.mtu(host.name) if host.name in lab.hosts else lab.underlay.mtu
    # Enters only the network namespace: the host's process is known by its number out here.
    veth = f"ip link add {own} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} netns {host.pid}"
    subprocess.run(["nsenter", f"--net={switch.netns}", "--", *veth.split()], check=True, env=environment())
    ipv4, ipv6 = addresses(lab, host.name)
    host.script(
        f"ip addr add {ipv4}/{lab.underlay.ipv4.prefixlen} dev {UPLINK}",
        f"ip -6 addr add {ipv6}/{lab.underlay.ipv6.prefixlen} dev {UPLINK} nodad",
        f"ip link set {UPLINK} up",
        *_limit(UPLINK, lab, host.name),
    )
    switch.script(f"ip link set {own} master br0", f"ip link set {own} up", *_limit(own, lab, host.name))


def _limit(link: str, lab: Lab, name: str) -> list[str]:
    """Return the command that keeps what a link sends below the rate of a host."""
    rate = lab.hosts[name].rate if name in lab.hosts else None
    if not rate:
        return []
    burst = max(_LEAST_BURST, int(bits(rate) / 8 * _BURST_S))
    return [f"tc qdisc add dev {link} root tbf rate {rate} burst {burst} latency {_LATENCY}"]


def bits(rate: str) -> float:
    """Return bit/s.

    >>> bits("1.5mbit")
    1500000.0
    """
    number = rate.removesuffix("bit")
    return float(number.rstrip("kmgt")) * float(1000 ** ("kmgt".find(number[-1]) + 1))
