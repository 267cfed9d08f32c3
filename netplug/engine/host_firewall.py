"""What of the host's firewall concerns networks and their links, as data."""

from collections.abc import Sequence
from dataclasses import dataclass

from netplug.drivers import routing
from netplug.drivers.steps import Element
from netplug.engine.base_plan import BasePlan
from netplug.kernel.firewall.api import BaseChain, FilterTable, FirewallView


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Whether the host forwards packets of an IP version.

    `by`: who turned it on: "netplug", "others" or, if it is off, nobody. `strangers`: links of others between which
    nothing is forwarded, since netplug turned it on.
    """

    family: int
    by: str
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFirewall:
    """The host's firewall.

    `libnftables`: why tables cannot be made, or empty. `chains`: all base chains of nf_tables. `iptables`: its filter
    tables, if there are any. `firewalld`: whether it filters. `bridge_netfilter`: whether frames that bridges forward
    come to these rules too.
    """

    libnftables: str
    chains: Sequence[BaseChain]
    iptables: Sequence[FilterTable]
    forwarding: Sequence[Forwarding]
    firewalld: bool
    bridge_netfilter: bool


async def look(view: FirewallView, base_plan: BasePlan) -> HostFirewall:
    """Return the firewall of this host. Changes nothing."""
    host, found = await base_plan.read_host(), await view.report()
    ours = routing.turned_on(base_plan.plan)
    forwarding = [
        Forwarding(family, "netplug" if family in ours else "others" if family in host.forwarding else "", links)
        for family in (4, 6)
        for links in (_elements(base_plan, f"strangers{family}"),)
    ]
    firewalld = host.firewalld is not None
    return HostFirewall(found.libnftables, found.chains, found.filters, forwarding, firewalld, host.bridge_netfilter)


def _elements(base_plan: BasePlan, name: str) -> tuple[str, ...]:
    return tuple(step.item for step in base_plan.plan if isinstance(step, Element) and step.set == name)
