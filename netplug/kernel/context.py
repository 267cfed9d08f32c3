"""What handlers of steps work with: the parts of one `LinuxKernel`."""

from dataclasses import dataclass

from netplug.kernel.firewall.conntrack import Conntrack
from netplug.kernel.firewall.ipset import IpSets
from netplug.kernel.firewall.iptables import Firewall
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.firewall.shortcuts import FastPath
from netplug.kernel.handlers import LoopLane
from netplug.kernel.host.ports import Ports
from netplug.kernel.host.relays import Relays
from netplug.kernel.links.announcements import Announcements
from netplug.kernel.links.forwarding_entries import ForwardingEntries
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.rtnetlink_lane import RequestLane
from netplug.kernel.sandbox.resolvers import Resolvers


@dataclass(frozen=True, slots=True)
class Context:
    """The parts. `nl`: of the thread of requests; `survey`: of threads that look. `firewall`: by IP version."""

    nl: Netlink
    survey: Netlink
    loop: LoopLane
    requests: RequestLane
    reaper: Reaper
    announcements: Announcements
    forwarding: ForwardingEntries
    firewall: dict[int, Firewall]
    sets: IpSets
    tables: Tables
    fast_path: FastPath
    flows: Conntrack
    ports: Ports
    relays: Relays
    resolvers: Resolvers
