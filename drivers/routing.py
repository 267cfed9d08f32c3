"""The host forwards for our networks, and for nobody else: a guest leaves the house as it found it.

Where the host forwarded before, nothing changes. Where it did not, it becomes a router between all its links as soon as
forwarding is on. So what is neither of our networks nor let pass by a rule of somebody else's is dropped, behind all
other rules; and with the last network forwarding is off again. And a host that forwards IPv6 takes no router
advertisements and forgets the default routes that it had from them, unless ``accept_ra`` is 2 (ip-sysctl.rst).
"""

from dataclasses import replace

from .api import HostFacts
from .plan import Plan
from .steps import Chain, Jump, Step, Sysctl

GUEST = "NETPLUG-GUEST"
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ENGINES = ("CNI-", "DOCKER", "KUBE-", "LIBVIRT", "NETAVARK")
"""Beginnings of chains of those who need forwarding, and do not turn it on where it is on."""


def forwarding(family: int, host: HostFacts) -> Plan:
    """Return what has the host forward what is ours; the rules that let that pass stand before it."""
    name = _FORWARDING[family]
    if family in host.forwarding:
        return Plan((Sysctl(name, "1"),))
    steps: list[Step] = []
    if not relied_on(host):
        # Frames that a bridge of somebody else's forwards are not routed, and none of our business.
        routed = "-m physdev ! --physdev-is-bridged -j DROP" if host.bridge_netfilter else "-j DROP"
        steps.append(Chain(family, "filter", GUEST, (routed,)))
        steps.append(Jump(family, "filter", "FORWARD", f"-j {GUEST}", last=True))
    if family == 6:
        steps += [Sysctl(_accept_ra(link), "2", str(value) if value != 2 else "") for link, value in host.advertised]
    return Plan((*steps, Sysctl(name, "1", "0")))


def relied_on(host: HostFacts) -> bool:
    """Return whether somebody else on the host needs forwarding too."""
    return any(name.startswith(_ENGINES) for _, name in host.chains)


def without(plan: Plan, host: HostFacts) -> HostFacts:
    """Return what the host would be like had a plan of ours not been applied."""
    before = {step.name: step.restore for step in plan if isinstance(step, Sysctl) and step.restore}
    return replace(
        host,
        forwarding=tuple(family for family in host.forwarding if before.get(_FORWARDING[family]) is None),
        advertised=tuple((link, int(before.get(_accept_ra(link), value))) for link, value in host.advertised),
    )


def staying(plan: Plan) -> Plan:
    """Return a plan that is about to be reverted, less what turns forwarding off, and what goes with it."""
    return Plan(tuple(replace(step, restore="") if isinstance(step, Sysctl) else step for step in plan))


def present(plan: Plan, host: HostFacts) -> Plan:
    """Return a plan less what it says of links that are gone: a setting goes with its link."""
    links = {link.name for link in host.links}
    return Plan(tuple(step for step in plan if not (link := _advertised(step)) or link in links))


def _accept_ra(link: str) -> str:
    return f"net/ipv6/conf/{link}/accept_ra"


def _advertised(step: Step) -> str:
    """Return the link that a step has take router advertisements; empty when it is another kind of step."""
    parts = step.name.split("/") if isinstance(step, Sysctl) else []
    return parts[3] if parts[:3] == ["net", "ipv6", "conf"] and parts[4:] == ["accept_ra"] else ""
