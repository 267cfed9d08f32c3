"""IP forwarding: enabled for our networks, without making the host a router between all its links.

If the host forwarded before, nothing changes. Otherwise the table of our networks drops what would be forwarded between
two links of others (`strangers`): uplinks, as far as they are known. Links of other container engines are none, so what
these forward is let pass, whatever they accept it by. With the last network, forwarding is disabled, unless another
container engine needs it by then. With IPv6 forwarding, Linux ignores router advertisements and deletes the default
routes that it got from them, unless ``accept_ra`` is 2 (ip-sysctl.rst).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .api import HostFacts, LinkFacts
from .naming import OURS
from .plan import Plan
from .steps import Element, IPInterface, Step, Sysctl
from .tables import NETWORKS

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"
"""The kernel turns it off with forwarding, and on without, whatever it was before (`inet_forward_change`)."""
_ENGINES = ("CNI-", "DOCKER", "KUBE-", "LIBVIRT", "NETAVARK")
"""Chain prefixes of engines that need forwarding. They do not record that they need it if it is enabled already."""
_RELYING = ("CNI-", "KUBE-")
"""Chain prefixes of engines that forward between uplinks too: packets to a service may leave for another node."""
_BY_NFT = frozenset({"docker-bridges", "kube-proxy", "netavark"})
"""Tables of engines with rules of nft."""
_RELYING_TABLES = frozenset({"kube-proxy"})
_NO_UPLINKS = frozenset({"dummy", "ifb", "nlmon"})
"""Kinds of links from which nothing comes."""
_OF_ENGINES = ("vb-", "ve-", "vz-")
"""Beginnings of the names of links of engines that look like uplinks: those of systemd-nspawn(1)."""
_INSIDE = frozenset({"veth", "tun", "tap", "ifb", "dummy"})
"""Kinds of a bridge's ports behind which there are containers and virtual machines of this host."""
_STRANGERS, _BRIDGED = {4: "strangers4", 6: "strangers6"}, "bridged"


def forwarding(family: int, host: HostFacts) -> Plan:
    """Return the steps that enable forwarding for our networks, and keep it from others."""
    name = _FORWARDING[family]
    if family in host.forwarding:
        return Plan((Sysctl(name, "1"),))
    steps: list[Step] = [*_strangers(family, host)]
    if family == 4 and not host.redirects:
        # Before forwarding, so that it is restored afterwards.
        steps.append(Sysctl(_REDIRECTS, "0", "0"))
    if family == 6:
        steps += [Sysctl(_accept_ra(link), "2", str(value) if value != 2 else "") for link, value in host.advertised]
    return Plan((*steps, Sysctl(name, "1", "0")))


def _strangers(family: int, host: HostFacts) -> Iterator[Element]:
    """Yield the elements for the links between which the host forwards nothing."""
    if host.forward_others or _forwards_between_uplinks(family, host):
        return
    for link in host.links:
        if _is_uplink(link, family, host):
            yield Element(NETWORKS, _STRANGERS[family], link.name)
            if link.kind == "bridge":
                yield Element(NETWORKS, _BRIDGED, f"{link.name} . {link.name}")


def _is_uplink(link: LinkFacts, family: int, host: HostFacts) -> bool:
    """Return whether other hosts may be behind a link, and not only containers or virtual machines of an engine.

    An engine's bridge has no ports but theirs. A host side of a veth has no address of its own, or one without a subnet
    (the CNI plugin ptp). But in a container, the uplink is a veth.
    """
    if link.name == "lo" or link.name.startswith((*OURS, *_OF_ENGINES)) or link.kind in _NO_UPLINKS:
        return False
    addresses = [it for it, name in host.addresses if name == link.name and it.version == family]
    if link.kind == "veth":
        return link.name == host.uplink or any(it.network.prefixlen < it.max_prefixlen for it in _global(addresses))
    if link.kind == "bridge":
        ports = {port.kind for port in host.links if port.master == link.name and not port.name.startswith(OURS)}
        return bool(ports - _INSIDE) and (link.name == host.uplink or bool(_global(addresses)))
    return link.name == host.uplink or bool(_global(addresses))


def _has_chain(family: int, beginnings: tuple[str, ...], host: HostFacts) -> bool:
    return any(version == family and name.startswith(beginnings) for version, name in host.chains)


def _has_table(family: int, names: frozenset[str], host: HostFacts) -> bool:
    return any(version == family and name in names for version, name in host.tables)


def former_strangers(plan: Plan, host: HostFacts) -> set[str]:
    """Return the names of links that a plan has as strangers, and that are none now.

    They are gone, lost their addresses, or an engine that was started since forwards by them.
    """
    names = _STRANGERS.values()
    found = {step for step in plan if isinstance(step, Element) and step.table == NETWORKS and step.set in names}
    return {step.item for step in found.difference(*(_strangers(family, host) for family in _FORWARDING))}


def _forwards_between_uplinks(family: int, host: HostFacts) -> bool:
    return _has_chain(family, _RELYING, host) or _has_table(family, _RELYING_TABLES, host)


def turned_on(plan: Plan) -> set[int]:
    """Return the IP versions whose forwarding a plan turned on, and turns off again."""
    ours = {step.name for step in plan if isinstance(step, Sysctl) and step.restore}
    return {family for family, name in _FORWARDING.items() if name in ours}


def facts_without(plan: Plan, host: HostFacts) -> HostFacts:
    """Return the facts of the host as if a plan of ours had not been applied.

    A host that forwarded before the plan counts as forwarding, even if forwarding was disabled since.
    """
    settings = {step.name: step.restore for step in plan if isinstance(step, Sysctl)}
    before = {name: restore for name, restore in settings.items() if restore}
    found_on = {family for family, name in _FORWARDING.items() if settings.get(name) == ""}
    return replace(
        host,
        forwarding=tuple(sorted((set(host.forwarding) | found_on) - turned_on(plan))),
        redirects=_REDIRECTS not in settings if 4 in turned_on(plan) else host.redirects,
        advertised=tuple((link, int(before.get(_accept_ra(link), value))) for link, value in host.advertised),
    )


def needed_by_others(plan: Plan, host: HostFacts) -> Plan:
    """Return what is wanted after our last network: forwarding that other engines need, and the strangers of today.

    Docker and others accept their packets by rules. They set the policy DROP only if they enable forwarding themselves.
    So without our table the host would become a router between all its links.
    """
    keys: set[str] = set()
    more = Plan()
    for family in (it for it in _FORWARDING if _has_chain(it, _ENGINES, host) or _has_table(it, _BY_NFT, host)):
        found = forwarding(family, replace(host, forwarding=(), advertised=()))
        keys |= {step.key for step in found}
        if any(isinstance(step, Element) and step.key in keys for step in plan):
            keys.add(f"table/{NETWORKS}")
            if family in turned_on(plan):
                more += Plan(tuple(step for step in found if isinstance(step, Element)))
        if family == 6:
            keys |= {step.key for step in plan if _advertised(step)}
    return Plan(tuple(step for step in plan if step.key in keys)) + more.without(step.key for step in plan)


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


def _global(addresses: Iterable[IPInterface]) -> list[IPInterface]:
    return [it for it in addresses if not it.is_link_local]
