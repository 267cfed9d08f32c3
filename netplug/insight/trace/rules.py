"""Rules that dropped the packet, in words: ours say what they are for, those of others who has them and how they go."""

from netplug.drivers.api import Network
from netplug.insight.links import link_of
from netplug.insight.trace import mends
from netplug.insight.trace.case import Case
from netplug.insight.trace.ends import Kind, name_of
from netplug.insight.trace.model import Cause
from netplug.insight.trace.path import wrong_mac
from netplug.kernel.probes.api import Rule

OURS = "netplug"
_INTERNAL = frozenset({"from_internal", "to_internal", "host_internal"})
_SEPARATE = frozenset({"between_open", "between_home", "between_bridge"})
_FAMILIES = {"ip": 4, "ip6": 6}


def dropping(case: Case, *, back: bool) -> Rule | None:
    """Return the rule that dropped the packet, or its answer."""
    return next((it for it in case.report.rules if it.drops and it.back is back), None)


def cause(case: Case, rule: Rule) -> Cause:
    """Say why a rule dropped it."""
    if rule.table.startswith(OURS) and not case.place(rule.netns).netns:
        return _of_ours(case, rule)
    return _of_others(case, rule)


def _of_ours(case: Case, rule: Rule) -> Cause:
    chain = rule.chain
    if rule.table == "netplug-vxlan":
        return _stranger(case, rule)
    if rule.family in {"bridge", "netdev"} or chain == "ingress":
        return spoofed(case, back=rule.back) or _differs(rule)
    if _may_pass(case, rule):
        return _differs(rule)
    if chain in _INTERNAL:
        return _internal(case)
    if chain in _SEPARATE:
        return _separate(case)
    if chain in {"to_open", "to_home", "dstnat"}:
        return _unpublished(case)
    if chain == "store":
        return Cause("store", "the shared store of the hosts is none of the containers' business")
    words = f"netplug drops it in table {rule.family} {rule.table}, chain {chain}: {rule.text}"
    return Cause("rule.netplug", words, "netplug diff")


def _differs(rule: Rule) -> Cause:
    """Say that a table of ours differs from the records: the daemon heals it, unless somebody changes it again."""
    where = f"table {rule.family} {rule.table}, chain {rule.chain}"
    words = f"netplug's own firewall drops it ({where}), though the records let it pass: somebody changed that table"
    return Cause("drift", words, "netplug repair")


def _may_pass(case: Case, rule: Rule) -> bool:
    """Whether the records let pass what a rule of ours dropped."""
    if rule.back:
        return True
    if rule.chain in _SEPARATE:
        ways = (case.crossing.way_in, case.crossing.way_out)
        one, other = (case.ends.network(it.record) if it and it.record else None for it in ways)
        within = one is not None and one == other and one.options.icc
        return bool(case.destination.via) or within
    if rule.chain in {"to_open", "to_home"}:
        return bool(case.destination.via or case.destination.port)
    return False


def spoofed(case: Case, *, back: bool) -> Cause | None:
    """Say why anti-spoofing drops what the source sends, or the destination on the way back; None: that is its own."""
    end = case.destination if back else case.source
    record = end.record
    if record is None or end.far or case.ends.network(record).options.mode not in {"bridge", "overlay"}:
        return None
    sent = case.destination.address if back else (case.flow.source or case.report.source)
    owner = end.holder(sent) or record
    wrong = wrong_mac(owner, case.scene.of(end.place))
    own = ", ".join(str(it.ip) for one in end.records for it in one.endpoint.addresses) or "no address"
    if not wrong and sent and not sent.is_link_local and end.holder(sent) is None:
        wrong = f"from {sent}, which is not its address ({own})"
    if not wrong:
        return None
    words = f"{end.place.name} sends {wrong}, so anti-spoofing drops it"
    return Cause("spoofed", words, mends.restarting(record))


def _stranger(case: Case, rule: Rule) -> Cause:
    """The filter of VXLAN: it knows no endpoint behind the VTEP, or not by this link."""
    place, stretched = case.place(rule.netns), case.stretched
    sender = (stretched.near.vtep if place.host else stretched.near.other) if stretched else "the sender"
    who = f"host {place.host}" if place.host else "this host"
    words = f"{who} takes no VXLAN from {sender}: it knows no endpoint of the network there, or not by this link"
    return Cause("tunnel.filter", words, mends.inside(place, "netplug repair"))


def _internal(case: Case) -> Cause:
    nets = [*case.ends.networks(case.source), *case.ends.networks(case.destination)]
    net = next((it for it in nets if it.internal), None)
    if net is None:
        return Cause("internal", "the network is internal: it has no way out", "")
    words = f"network {net.name} is internal: nothing leaves it, and nothing comes in"
    return Cause("internal", words, f"netplug network update {net.name} --internal false")


def _separate(case: Case) -> Cause:
    source, record = case.source, case.destination.record
    if record is None or source.record is None:
        return Cause("isolated", "networks are separate from each other, except for published ports", "")
    target, who = case.ends.network(record), case.source.place.name
    mine = ", ".join(it.name for it in case.ends.networks(source))
    if target.name in {it.name for it in case.ends.networks(source)} and not target.options.icc:
        return icc(target.name)
    if cause := _other_link(case, target):
        return cause
    words = f"{name_of(record)} is in network {target.name}, {who} in {mine}: networks are separate from each other"
    return Cause("isolated", words, mends.connecting(target.name, source.record))


def _other_link(case: Case, target: Network) -> Cause | None:
    """Say that a source, which is in the network too, sends by another one."""
    source = case.source
    own = next((it for it in source.records if it.endpoint.network == target.id), None)
    if own is None or case.route is None:
        return None
    who, inside = source.place.name, case.scene.of(source.place)
    link = link_of(own, inside)
    name = link.name if link else own.ifname or "its link"
    if link and not link.up:
        words = f"{name} of {who}, network {target.name}, is down, so it sends by {case.route.link}"
        return Cause("link.down", words, mends.inside(source.place, f"ip link set {name} up"))
    words = f"{who} is in network {target.name} too, but its route to {case.route.destination} is by {case.route.link}"
    subnets = (it.pool for it in target.subnets if case.route.destination in it.pool)
    mend = f"ip route replace {next(subnets, case.route.destination)} dev {name}"
    return Cause("route.other_link", words, mends.inside(source.place, mend))


def icc(network: str) -> Cause:
    """Say that containers of a network may not talk."""
    words = f"network {network} has icc=false: its containers do not reach each other"
    return Cause("icc", words, f"netplug network update {network} -o icc=true")


def _unpublished(case: Case) -> Cause:
    end, port = case.destination, case.port
    if end.kind is not Kind.SANDBOX or not port:
        return Cause("not_published", "only published ports of a container are reached from outside", "")
    name = end.place.name
    words = f"port {port}/{case.proto} of {name} is not published, and only published ports are reached from outside"
    return Cause("not_published", words, mends.publishing(name, port, port, case.proto))


def _of_others(case: Case, rule: Rule) -> Cause:
    place = case.place(rule.netns)
    where = f"{rule.flavour}: table {rule.family} {rule.table}, chain {rule.chain}"
    does = "rejects" if rule.verdict == "reject" else "drops"
    text = rule.text or f"policy {rule.verdict}"
    mend = mends.without_rule(rule, place)
    if place.netns:
        return Cause("rule.container", f"the firewall inside {place.name} {does} it ({where}): {text}", mend)
    if rule.chain == "DOCKER-USER":
        return Cause("rule.docker_user", f"a rule in DOCKER-USER {does} it ({where}): {text}", mend)
    switch = f"net/bridge/bridge-nf-call-{'ip6tables' if case.version == 6 else 'iptables'}"
    here = not place.host and rule.hook not in {"input", "output"}
    if here and rule.family in {"ip", "ip6", "inet"} and case.crossing.bridged and case.host.sysctl(switch) == "1":
        words = f"{switch.rpartition('/')[2]}=1 hands bridged frames to the host's firewall, and a rule {does} it"
        mend = f"sysctl -w {switch.replace('/', '.')}=0"
        return Cause("bridge_netfilter", f"{words} ({where}): {text}", mend)
    whose = f"a rule of others on host {place.host}" if place.host else "a rule of others"
    return Cause("rule.foreign", f"{whose} {does} it ({where}): {text}", mend)
