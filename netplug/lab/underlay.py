"""The switch between hosts: a bridge in a namespace of its own, and a cable to each host.

Its ports are numbered like the hosts, from `p1` on; the host's end is `eth0`. There is nothing in the root namespace:
each veth pair is created in the switch's namespace, with its peer in the host's.
"""

import subprocess

from netplug.lab.file import ETCD, Lab
from netplug.lab.node import Node, environment
from netplug.lab.state import SWITCH, Member, State

UPLINK = "eth0"
_BURST_S = 0.01
"""Size of the token bucket, as time at the rate (tc-tbf(8))."""
_LEAST_BURST = 32 * 1024
_LATENCY = "50ms"


def order(lab: Lab) -> list[str]:
    """Return the nodes on the switch, in the order of ports and addresses."""
    return [*lab.hosts, *([ETCD] if lab.store == ETCD else [])]


def port(lab: Lab, name: str) -> str:
    """Return the switch's port of a host."""
    return f"p{order(lab).index(name) + 1}"


def addresses(lab: Lab, name: str) -> tuple[str, str]:
    """Return a host's addresses, IPv4 and IPv6."""
    number = order(lab).index(name) + 1
    return str(lab.underlay.ipv4[number]), str(lab.underlay.ipv6[number])


def make(state: State) -> None:
    """Create the switch of a lab."""
    folder = state.folder / SWITCH
    switch = Node.start(SWITCH, f"{state.lab.name}-{SWITCH}", folder)
    state.members[SWITCH] = Member(switch.pid, switch.since)
    widest = max([state.lab.underlay.mtu, *map(state.lab.mtu, state.lab.hosts)])
    # There are no loops, so the bridge forwards from the first packet on.
    switch.script(f"ip link add br0 mtu {widest} type bridge forward_delay 0", "ip link set br0 up")


def connect(state: State, host: Node) -> None:
    """Connect a host to the switch."""
    lab, switch, own = state.lab, state.node(SWITCH), port(state.lab, host.name)
    mtu = lab.mtu(host.name) if host.name in lab.hosts else lab.underlay.mtu
    # Enter only the network namespace, since the PID of the host's process is valid outside.
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
    """Return the command that limits a link's sent traffic to a host's rate."""
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
