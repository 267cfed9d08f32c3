"""IP forwarding: enabled for our networks, without making the host a router between all its links.

If the host forwarded before, nothing changes. Otherwise a rule behind all others drops packets that are not of our
networks and that no foreign rule accepts. With the last network, forwarding is disabled and the rule removed, unless
another container engine needs forwarding by then. With IPv6 forwarding, Linux ignores router advertisements and deletes
the default routes that it got from them, unless ``accept_ra`` is 2 (ip-sysctl.rst).
"""

from dataclasses import replace

from .api import HostFacts
from .plan import Plan
from .steps import Chain, Jump, Step, Sysctl

GUEST = "NETPLUG-GUEST"
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ENGINES = ("CNI-", "DOCKER", "KUBE-", "LIBVIRT", "NETAVARK")
"""Chain prefixes of engines that need forwarding. They do not record that they need it if it is enabled already."""
_RELYING = ("CNI-", "KUBE-")
"""Chain prefixes of engines without accept rules for all their packets. They rely on the policy ACCEPT of FORWARD."""
_BY_NFT = frozenset({"docker-bridges", "netavark"})
"""Tables of engines that accept packets by nft rules only, which does not prevent a drop in FORWARD of iptables."""


def forwarding(family: int, host: HostFacts) -> Plan:
    """Return the steps that enable forwarding for our networks, in addition to the accept rules of `firewall`."""
    name = _FORWARDING[family]
    if family in host.forwarding:
        return Plan((Sysctl(name, "1"),))
    steps: list[Step] = []
    if not _would_block(family, host):
        # Bridged frames of foreign bridges are not routed, so they are not dropped.
        routed = "-m physdev ! --physdev-is-bridged -j DROP" if host.bridge_netfilter else "-j DROP"
        steps.append(Chain(family, "filter", GUEST, (routed,)))
        steps.append(Jump(family, "filter", "FORWARD", f"-j {GUEST}", last=True))
    if family == 6:
        steps += [Sysctl(_accept_ra(link), "2", str(value) if value != 2 else "") for link, value in host.advertised]
    return Plan((*steps, Sysctl(name, "1", "0")))


def _has_chain(family: int, beginnings: tuple[str, ...], host: HostFacts) -> bool:
    return any(version == family and name.startswith(beginnings) for version, name in host.chains)


def blocks_other_engine(plan: Plan, host: HostFacts) -> bool:
    """Return whether the drop rule of a plan blocks packets of another engine, which was started since."""
    return any(isinstance(step, Chain) and step.name == GUEST and _would_block(step.family, host) for step in plan)


def _would_block(family: int, host: HostFacts) -> bool:
    """Return whether the drop rule would block packets that another engine accepts."""
    return _has_chain(family, _RELYING, host) or _accepts_by_nft(family, host)


def _accepts_by_nft(family: int, host: HostFacts) -> bool:
    return any(version == family and name in _BY_NFT for version, name in host.tables)


def facts_without(plan: Plan, host: HostFacts) -> HostFacts:
    """Return the facts of the host as if a plan of ours had not been applied.

    A host that forwarded before the plan counts as forwarding, even if forwarding was disabled since.
    """
    settings = {step.name: step.restore for step in plan if isinstance(step, Sysctl)}
    before = {name: restore for name, restore in settings.items() if restore}
    found_on = {family for family, name in _FORWARDING.items() if settings.get(name) == ""}
    ours = {family for family, name in _FORWARDING.items() if name in before}
    return replace(
        host,
        forwarding=tuple(sorted((set(host.forwarding) | found_on) - ours)),
        advertised=tuple((link, int(before.get(_accept_ra(link), value))) for link, value in host.advertised),
    )


def needed_by_others(plan: Plan, host: HostFacts) -> Plan:
    """Return the steps that stay after our last network: forwarding that other engines need, and the drop rule.

    Docker and others accept their packets by rules. They set the policy DROP only if they enable forwarding themselves.
    So without the drop rule the host would become a router between all its links.
    """
    keys: set[str] = set()
    for family in (it for it in _FORWARDING if _has_chain(it, _ENGINES, host) or _accepts_by_nft(it, host)):
        found = forwarding(family, replace(host, forwarding=(), advertised=()))
        keys |= {step.key for step in found}
        if family == 6:
            keys |= {step.key for step in plan if _advertised(step)}
    return Plan(tuple(step for step in plan if step.key in keys))


def without_missing_links(plan: Plan, host: HostFacts) -> Plan:
    """Return a plan without the sysctls of missing links: a sysctl is deleted with its link."""
    links = {link.name for link in host.links}
    return Plan(tuple(step for step in plan if not (link := _advertised(step)) or link in links))


def _accept_ra(link: str) -> str:
    return f"net/ipv6/conf/{link}/accept_ra"


def _advertised(step: Step) -> str:
    """Return the link on which a step accepts router advertisements; empty for other steps."""
    parts = step.name.split("/") if isinstance(step, Sysctl) else []
    return parts[3] if parts[:3] == ["net", "ipv6", "conf"] and parts[4:] == ["accept_ra"] else ""
