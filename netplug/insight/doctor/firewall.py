"""Checks of the rules of others, and of the programs that make them."""

from collections.abc import Collection, Iterable, Iterator

from netplug.drivers.naming import BRIDGES, OURS
from netplug.drivers.steps import IPNetwork
from netplug.insight.doctor.findings import Finding, note, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.kernel.firewall.api import DroppingRule, FilterTable

_IPTABLES = {4: "iptables", 6: "ip6tables"}


async def foreign(host: HostSubject) -> Iterable[Finding]:
    """Find rules of others that drop packets of our networks."""
    report = await host.kernel.firewall.report()
    bridges = {net.options.bridge for net in host.networks if net.options.bridge}
    subnets = [subnet.pool for net in host.networks for subnet in net.subnets]
    found: list[Finding] = []
    for rule in report.dropping:
        words = f"{rule.where}: {rule.text}"
        if _spares(rule, bridges):
            continue
        if rule.hook != "forward":
            found += _of_hook(rule, words, bridges, subnets)
        elif rule.whole and _covers(rule, bridges, subnets):
            found.append(warning(f"{words} drops packets of netplug's networks", rule.mend))
        elif _touches(rule, bridges, subnets):
            found.append(note(f"{words} drops some packets of netplug's networks", rule.mend))
    return found


def _of_hook(
    rule: DroppingRule, words: str, bridges: Collection[str], subnets: Collection[IPNetwork]
) -> Iterator[Finding]:
    """Find a rule that certainly drops packets of ours: what a host does not take in is its own business else."""
    about_ours = not rule.networks or _meets(rule, subnets)
    if rule.whole and about_ours and all(_is_ours(link, bridges) for link in rule.links):
        if not rule.after:
            yield warning(f"{words} drops packets of netplug's networks ({_HOOKS[rule.hook]})", rule.mend)
        elif rule.links or rule.networks:
            yield note(f"{words} drops some packets of netplug's networks ({_HOOKS[rule.hook]})", rule.mend)


_HOOKS = {
    "prerouting": "all that come to this host, also to be forwarded",
    "input": "from containers to this host, such as questions for names",
    "output": "from this host to containers",
}


def _is_ours(link: str, bridges: Collection[str]) -> bool:
    name = link.rstrip("+")
    return link in bridges or name.startswith(OURS) or BRIDGES.startswith(name)


def _spares(rule: DroppingRule, bridges: Collection[str]) -> bool:
    """Return whether a policy drops nothing of ours, since other rules of the chain let it pass."""
    return rule.text == "policy drop" and any(_is_ours(link, bridges) for link in rule.links)


def _covers(rule: DroppingRule, bridges: Collection[str], subnets: Collection[IPNetwork]) -> bool:
    """Return whether a rule is about our links or subnets, or about all."""
    if rule.text == "policy drop" or not (rule.links or rule.networks):
        return True
    return any(_is_ours(link, bridges) for link in rule.links) or _meets(rule, subnets)


def _touches(rule: DroppingRule, bridges: Collection[str], subnets: Collection[IPNetwork]) -> bool:
    """Return whether a rule may be about packets of ours among others."""
    foreign_links = [link for link in rule.links if not _is_ours(link, bridges)]
    return len(foreign_links) < 2 and (not rule.networks or _meets(rule, subnets))


def _meets(rule: DroppingRule, subnets: Collection[IPNetwork]) -> bool:
    return any(one.version == other.version and one.overlaps(other) for one in rule.networks for other in subnets)


async def iptables(host: HostSubject) -> Iterable[Finding]:
    """Find rules of iptables that cannot be read, or before which netplug has no gate."""
    report = await host.kernel.firewall.report()
    return [finding for it in report.filters for finding in _of_table(it, host)]


def _of_table(it: FilterTable, host: HostSubject) -> Iterator[Finding]:
    name = f"{_IPTABLES[it.family]}-{it.flavour}"
    if it.unread:
        words = f"{it.unread}, so netplug cannot let its networks pass there"
        yield warning(words, "apt-get install iptables")
        return
    drops = it.policies.get("FORWARD", "ACCEPT") != "ACCEPT"
    subnets = [subnet.pool for net in host.of_mode("bridge", "overlay") for subnet in net.subnets]
    of_family = any(subnet.version == it.family for subnet in subnets)
    if drops and of_family and not it.gate:
        mend = "netplug repair" if host.daemon else "systemctl start netplug"
        yield warning(f"policy of FORWARD in {name} is DROP, and netplug's gate is not there", mend)


async def flavours(host: HostSubject) -> Iterable[Finding]:
    """Tell that both flavours of iptables have rules."""
    report = await host.kernel.firewall.report()
    used = {it.flavour for it in report.filters if it.unread or any(it.rules.values())}
    if len(used) < 2:
        return []
    words = "iptables-nft and iptables-legacy both have rules of others: a packet has to pass both"
    return [note(words, "iptables-legacy-save and iptables-nft-save show them")]


async def libnftables(host: HostSubject) -> Iterable[Finding]:
    """Tell that tables cannot be printed."""
    missing = (await host.kernel.firewall.report()).libnftables
    words = f"{missing}: netplug diff cannot say which lines of a table differ"
    return [note(words, "apt-get install libnftables1")] if missing else []


async def tunnels(host: HostSubject) -> Iterable[Finding]:
    """Find that the host's firewall drops tunnels of overlays. Of firewalld the daemon knows it itself."""
    ports = sorted({net.options.vxlan_port for net in host.of_mode("overlay")})
    report = await host.kernel.firewall.report()
    found = []
    for port, it in ((port, it) for port in ports for it in report.filters if not it.unread):
        if any(first <= port <= last for first, last in it.udp_ports):
            continue
        if it.ufw and it.family == 4:
            found.append(
                warning(f"ufw drops tunnels of overlays: UDP port {port} is not open", f"ufw allow {port}/udp")
            )
        elif not it.ufw and it.policies.get("INPUT", "ACCEPT") != "ACCEPT":
            name = f"{_IPTABLES[it.family]}-{it.flavour}"
            words = f"policy of INPUT in {name} is DROP, and no rule names UDP port {port}, by which tunnels come"
            found.append(note(words, f"{name} -I INPUT -p udp --dport {port} -j ACCEPT"))
    return found
