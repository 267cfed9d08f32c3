"""Probes and what is seen of them, as insight sees it. Real in `probes.prober`, not to be had on a fake kernel.

A *job* names a flow, where it is sent from, and *posts*: links at which packets are watched. The *report* tells at
which posts the packets of the flow were seen, what answered, and which rule or function of the kernel dropped them. All
packets of a job carry its `mark`, by which they are known again after NAT, inside VXLAN and on other hosts.

All of these travel as JSON, to the process that does the work and to other hosts: see `codec`.
"""

import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from netplug.kernel.probes.facts import (
    HOST,
    Facts,
    ForwardingState,
    IPAddress,
    IPNetwork,
    LinkState,
    Listener,
    Look,
    NeighbourState,
    RouteFound,
    RouteState,
)

PROBING = "np-probe"
"""The name of the threads that change nf_tables for a trace. The kernel tells it in its notification of a commit."""


def new_mark() -> int:
    """Return a fresh mark for a job."""
    return int.from_bytes(os.urandom(3), "big") or 1


class Kind(StrEnum):
    """What is sent.

    `TCP`: a SYN; nothing stays open. `UDP`: a datagram with our mark. `DNS`: a question for `Flow.name`. `ICMP`: an
    echo request. `UDP` and `ICMP` may have a size.
    """

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    DNS = "dns"


@dataclass(frozen=True, slots=True)
class Flow:
    """What is sent. Packets are never fragmented (DF).

    `source`: None for the one that the routes choose. Another than the sender's own is a spoofed one.
    `source_port`: of the first packet, each further one has the next; 0 for any.
    `size`: of the IP packet in bytes; 0 for as small as can be. `name`, `record`: of a question (`Kind.DNS`).
    """

    destination: IPAddress
    kind: Kind = Kind.TCP
    port: int = 0
    source: IPAddress | None = None
    source_port: int = 0
    size: int = 0
    name: str = ""
    record: str = "A"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where packets are sent from.

    Without `link` they are made in the namespace, as those of its processes. With it they come in at that link, as if
    received from outside; `mac` is the sender's (any other than the link's by default).
    """

    netns: str = HOST
    link: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Post:
    """A link at which packets are watched. `name`: what the report calls it."""

    name: str
    netns: str
    link: str


@dataclass(frozen=True, slots=True)
class Job:
    """What is sent and watched.

    `origin`: None for a watch alone (`Prober.watch`). `mark`: 24 bits; `new_mark` returns a fresh one, and each
    host that takes part gets the same. `traces`: namespaces whose nf_tables are traced. `legacy`: namespaces whose
    counters of iptables-legacy are compared. `repeat`: how many packets are sent, each with a source port of its own.
    `wait_ms`: how long an answer is awaited after the last packet; it ends early when all is answered and nothing was
    dropped. `also`: further addresses of the path (gateways, VTEPs, addresses after NAT) whose ARP and ND is reported.
    `drops`: tell which packets the kernel dropped. `vxlan_ports`: further UDP ports of tunnels, beside 4789 and 8472.
    """

    flow: Flow
    mark: int
    origin: Origin | None = None
    posts: tuple[Post, ...] = ()
    traces: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    repeat: int = 1
    wait_ms: int = 300
    also: tuple[IPAddress, ...] = ()
    drops: bool = True
    vxlan_ports: tuple[int, ...] = ()


class What(StrEnum):
    """What a packet is. Packets of `Kind.UDP` and `Kind.DNS` are told apart by `Sighting.back`."""

    SYN = "syn"
    SYN_ACK = "syn-ack"
    RST = "rst"
    TCP = "tcp"
    UDP = "udp"
    ECHO_REQUEST = "echo-request"
    ECHO_REPLY = "echo-reply"
    TOO_BIG = "too-big"
    UNREACHABLE = "unreachable"
    TIME_EXCEEDED = "time-exceeded"
    ARP_REQUEST = "arp-request"
    ARP_REPLY = "arp-reply"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet at a post. ARP_* stand for neighbour discovery of IPv6 too.

    `incoming`: the link received it; else it was sent there. `back`: it answers the flow, or tells of an error.
    `ms`: since the first packet was sent; of a watch: since it began. `number`: which of the repeated packets, from 0.
    `vni`: of the VXLAN packet that it was in, else 0; `vtep_source`, `vtep_destination`: of that.
    `code`: of the ICMP message, in words ("port unreachable"). `mtu`: that a TOO_BIG tells.
    `mac`: the sender's hardware address. `size`: of the IP packet, in bytes.
    For ARP and ND `source` is who asks or answers, and `destination` the address asked for, or who asked.
    """

    post: str
    what: What
    incoming: bool
    back: bool
    ms: float
    source: IPAddress
    destination: IPAddress
    source_port: int = 0
    port: int = 0
    number: int = 0
    vni: int = 0
    vtep_source: IPAddress | None = None
    vtep_destination: IPAddress | None = None
    code: str = ""
    mtu: int = 0
    mac: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, or the policy of a chain, that decided about a packet of the flow.

    `back`: about its answer. `verdict`: "drop", "reject", "accept"… `text`: as `nft` or `iptables-save` print it;
    "policy drop" for a policy. `handle`: 0 for a policy. `flavour`: "nft"; "iptables-nft"; "iptables-legacy", where the
    counters tell it, `packets` being by how many they moved. `hook`: of a base chain.
    """

    netns: str
    flavour: str
    family: str
    table: str
    chain: str
    verdict: str
    text: str = ""
    handle: int = 0
    hook: str = ""
    back: bool = False
    packets: int = 1
    number: int = 0

    @property
    def drops(self) -> bool:
        """Tell whether the packet ended here."""
        return self.verdict in {"drop", "reject"}


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets of the flow that the kernel dropped without a rule, as `skb:kfree_skb` tells.

    `reason`: without "SKB_DROP_REASON_", in lower case: "ip_rpfilter", "neigh_failed", "no_socket".
    `function`: where, without the offset. `count`: of different packets. `netns`: as the job calls it, "?" if it does
    not.
    """

    reason: str
    function: str
    count: int = 1
    netns: str = "?"
    link: str = ""
    back: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back to the sender, behind its own firewall.

    `text`: of a DNS answer: its addresses or its error ("nxdomain"). `source`: who sent it.
    """

    what: What
    source: IPAddress
    ms: float
    mtu: int = 0
    code: str = ""
    text: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a job.

    `sent`: how many packets. `refused`: why one could not be sent, in the kernel's words, and its symbolic name
    ("EHOSTUNREACH: no route to host"). `lacks`: what could not be observed, and why, each one line.
    `rules`: the deciding ones, in the order of the packet. `replies`: the best one of each packet first.
    """

    sent: int = 0
    refused: str = ""
    source: IPAddress | None = None
    sightings: tuple[Sighting, ...] = ()
    rules: tuple[Rule, ...] = ()
    drops: tuple[Drop, ...] = ()
    replies: tuple[Reply, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def reply(self) -> Reply | None:
        """Return the first answer, if there is any."""
        return self.replies[0] if self.replies else None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The stations that answered for an address: more than one means that it is used twice."""

    macs: tuple[str, ...] = ()
    ms: float = 0.0


class Watch(Protocol):
    """A job that runs without sending. All is opened when it is given out."""

    async def report(self) -> Report:
        """End it, and return what was seen."""


class Prober(Protocol):
    """A process that probes: one for each trace. One job at a time; questions and looks may run beside it.

    Each call raises `NetplugError` "unavailable", with the reason, if it cannot be done at all (a namespace or link is
    gone). What is missing in part is in `lacks`.
    """

    async def run(self, job: Job) -> Report:
        """Send, watch, and return what was seen."""

    def watch(self, job: Job) -> AbstractAsyncContextManager[Watch]:
        """Watch what another host sends. A watch that is not asked for its report ends with the block."""

    async def who_has(self, netns: str, link: str, address: IPAddress, wait_ms: int = 300) -> Neighbours:
        """Ask a segment by ARP or ND who has an address, and return all that answer within the time."""

    async def look(self, look: Look) -> Facts:
        """Read what there is in a namespace."""


class Probes(Protocol):
    """Starts probers."""

    def start(self) -> AbstractAsyncContextManager[Prober]:
        """Start a process that probes; it ends with the block, and all that it made with it.

        Raises:
            NetplugError: "unavailable", it cannot be started.
        """


__all__ = (
    "HOST",
    "PROBING",
    "Drop",
    "Facts",
    "Flow",
    "ForwardingState",
    "IPAddress",
    "IPNetwork",
    "Job",
    "Kind",
    "LinkState",
    "Listener",
    "Look",
    "NeighbourState",
    "Neighbours",
    "Origin",
    "Post",
    "Prober",
    "Probes",
    "Reply",
    "Report",
    "RouteFound",
    "RouteState",
    "Rule",
    "Sighting",
    "Watch",
    "What",
    "new_mark",
)
