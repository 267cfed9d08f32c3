"""Cables between hosts: so that "another host" is one, with its own address and its own way here."""

import subprocess
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network

from .host import Host
from .wait import wait_until


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair between two hosts, with the addresses of both ends."""

    left_link: str
    right_link: str
    left: str
    right: str
    left6: str
    right6: str


def wait_until_passing(host: Host, link: str) -> None:
    """Wait until a link passes frames: a work queue of the kernel sees to that (net/core/link_watch.c)."""
    wait_until(
        lambda: " state UP " in host.output("ip", "link", "show", link), what=f"{link} of {host.name} passes frames"
    )


def connect(
    left: Host,
    right: Host,
    subnet: str = "203.0.113.0/24",
    subnet6: str = "fd00:cafe::/64",
    *,
    routes: bool = True,
) -> Wire:
    """Lay a cable; `left` gets the first address of each subnet, `right` the second.

    With `routes`, each end gets a default route by way of the other, unless it has one. The links exist only
    in the hosts' namespaces, never in the root one.
    """
    names = left.next_link(), right.next_link()
    # Enters only the network namespace: the peer's pid is seen from here.
    nsenter = ["nsenter", f"--net={left.netns}", "ip", "link", "add", names[0], "type", "veth"]
    subprocess.run([*nsenter, "peer", "name", names[1], "netns", str(right.pid)], check=True)
    net, net6 = ip_network(subnet), ip_network(subnet6)
    ends = [(left, names[0], 1), (right, names[1], 2)]
    for host, link, number in ends:
        v4, v6 = f"{net[number]}/{net.prefixlen}", f"{net6[number]}/{net6.prefixlen}"
        via4, via6 = net[3 - number], net6[3 - number]
        batch = [f"addr add {v4} dev {link}", f"-6 addr add {v6} dev {link} nodad", f"link set {link} up"]
        if routes:
            batch += [f"route add default via {via4}"] * (not host.output("ip", "route", "show", "default"))
            batch += [f"-6 route add default via {via6}"] * (not host.output("ip", "-6", "route", "show", "default"))
        # A router asks for neighbours from its link-local address, and for a second or two not at all: DAD runs.
        at_once = [
            f"echo 0 >/proc/sys/net/ipv6/conf/{link}/{it}" for it in ("dad_transmits", "router_solicitation_delay")
        ]
        host.run(["sh", "-ec", "\n".join([*at_once, *(f"ip {line}" for line in batch)])])
    for host, link, _ in ends:
        wait_until_passing(host, link)
    at = [str(ip_interface(f"{n[number]}/{n.prefixlen}").ip) for n in (net, net6) for number in (1, 2)]
    return Wire(*names, *at)
