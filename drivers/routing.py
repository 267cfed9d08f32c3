"""The host forwards for our networks, and for nobody else: a guest leaves the house as it found it.

Where the host forwarded before, nothing changes. Where it did not, it becomes a router between all its links as soon as
forwarding is on. So what is neither of our networks nor let pass by a rule of somebody else's is dropped, behind all
other rules; and with the last network forwarding is off again, unless another engine needs it by then: then both stay.
And a host that forwards IPv6 takes no router advertisements and forgets the default routes that it had from them,
unless ``accept_ra`` is 2 (ip-sysctl.rst).
"""

from dataclasses import replace

from .api import HostFacts
from .plan import Plan
from .steps import Chain, Jump, Step, Sysctl

GUEST = "NETPLUG-GUEST"
_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ENGINES = ("CNI-", "DOCKER", "KUBE-", "LIBVIRT", "NETAVARK")
"""Beginnings of chains of those who need forwarding, and do not turn it on where it is on."""
_RELYING = ("CNI-", "KUBE-")
"""And of those who have no rule for all that is theirs: they rely on FORWARD's policy being ACCEPT."""
_BY_NFT = frozenset({"docker-bridges", "netavark"})
"""Tables of those who let pass what is theirs by rules of nft alone: what is dropped in FORWARD stays dropped."""


def forwarding(family: int, host: HostFacts) -> Plan:
    """Return what has the host forward what is ours; the rules that let that pass stand before it."""
    name = _FORWARDING[family]
    if family in host.forwarding:
        return Plan((Sysctl(name, "1"),))
    steps: list[Step] = []
    if not _would_block(family, host):
        # Frames that a bridge of somebody else's forwards are not routed, and none of our business.
        routed = "-m physdev ! --physdev-is-bridged -j DROP" if host.bridge_netfilter else "-j DROP"
        steps.append(Chain(family, "filter", GUEST, (routed,)))
        steps.append(Jump(family, "filter", "FORWARD", f"-j {GUEST}", last=True))
    if family == 6:
        steps += [Sysctl(_accept_ra(link), "2", str(value) if value != 2 else "") for link, value in host.advertised]
    return Plan((*steps, Sysctl(name, "1", "0")))


def _has_chain(family: int, beginnings: tuple[str, ...], host: HostFacts) -> bool:
    return any(version == family and name.startswith(beginnings) for version, name in host.chains)


def blocks_other_engine(plan: Plan, host: HostFacts) -> bool:
    """Whether a guard of a plan drops what is another engine's, which has come since."""
    return any(isinstance(step, Chain) and step.name == GUEST and _would_block(step.family, host) for step in plan)


def _would_block(family: int, host: HostFacts) -> bool:
    """Whether a guard would drop what another engine lets pass."""
    return _has_chain(family, _RELYING, host) or _accepts_by_nft(family, host)


def _accepts_by_nft(family: int, host: HostFacts) -> bool:
    return any(version == family and name in _BY_NFT for version, name in host.tables)


def facts_without(plan: Plan, host: HostFacts) -> HostFacts:
    """Return what the host would be like had a plan of ours not been applied.

    A host that forwarded before does so for others too, also when somebody has turned it off since.
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
    """Return what of a plan stays without a network of ours: forwarding that somebody else needs, and its guard.

    Docker and others accept what is theirs by rules, and turn forwarding on with a policy of DROP only where it is off.
    So without the guard the host would be a router between all its links from then on.
    """
    keys: set[str] = set()
    for family in (it for it in _FORWARDING if _has_chain(it, _ENGINES, host) or _accepts_by_nft(it, host)):
        found = forwarding(family, replace(host, forwarding=(), advertised=()))
        keys |= {step.key for step in found}
        if family == 6:
            keys |= {step.key for step in plan if _advertised(step)}
    return Plan(tuple(step for step in plan if step.key in keys))


def without_missing_links(plan: Plan, host: HostFacts) -> Plan:
    """Return a plan less what it says of links that are gone: a setting goes with its link."""
    links = {link.name for link in host.links}
    return Plan(tuple(step for step in plan if not (link := _advertised(step)) or link in links))


def _accept_ra(link: str) -> str:
    return f"net/ipv6/conf/{link}/accept_ra"


def _advertised(step: Step) -> str:
    """Return the link that a step has take router advertisements; empty when it is another kind of step."""
    parts = step.name.split("/") if isinstance(step, Sysctl) else []
    return parts[3] if parts[:3] == ["net", "ipv6", "conf"] and parts[4:] == ["accept_ra"] else ""
