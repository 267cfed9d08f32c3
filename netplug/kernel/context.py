"""What handlers of steps work with: the parts of one `LinuxKernel`."""

from dataclasses import dataclass

from netplug.kernel.firewall.conntrack import Conntrack
from netplug.kernel.firewall.former import FormerRelease
from netplug.kernel.firewall.handlers import TablesLane
from netplug.kernel.firewall.iptables import Iptables
from netplug.kernel.firewall.table_reader import TableReader
from netplug.kernel.handlers import LoopLane
from netplug.kernel.host.ports import Ports
from netplug.kernel.host.relays import Relays
from netplug.kernel.host.sysctl_watch import SysctlWatch
from netplug.kernel.links.announcements import Announcements
from netplug.kernel.links.forwarding_entries import ForwardingEntries
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.rtnetlink_lane import RequestLane
from netplug.kernel.sandbox.resolvers import Resolvers


@dataclass(frozen=True, slots=True)
class Context:
    """The parts. `nl`: of the thread of requests; `survey`: of threads that look. `iptables`: by IP version."""

    nl: Netlink
    survey: Netlink
    loop: LoopLane
    requests: RequestLane
    reaper: Reaper
    announcements: Announcements
    forwarding: ForwardingEntries
    iptables: dict[int, Iptables]
    tables: TablesLane
    reader: TableReader
    former: FormerRelease
    flows: Conntrack
    ports: Ports
    relays: Relays
    resolvers: Resolvers
    sysctls: SysctlWatch
