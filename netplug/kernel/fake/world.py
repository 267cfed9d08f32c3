"""The state of the fake kernel, and the rules of the real kernel about it."""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from netplug.drivers.api import Firewalld, HostFacts, LinkFacts
from netplug.drivers.steps import (
    Address,
    Bridge,
    Element,
    Gate,
    Hairpin,
    Hook,
    HostPort,
    Ifb,
    IPAddress,
    IPInterface,
    Loopback,
    Macvlan,
    Passage,
    Proto,
    Relay,
    Resolver,
    Route,
    Shape,
    SourceRoute,
    Step,
    Sysctl,
    Table,
    Veth,
)
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.drivers.zones import ZONE, Zone
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall.api import FirewallReport
from netplug.kernel.host import ports


@dataclass(slots=True)
class Foreign:
    """Objects on the host that are not ours. Tests change them freely.

    `links`: kind by name. `mtus`: those that are not 1500. `forwarding_entries`: MACs of stations by address, on every
    segment. `ports`: in use by other processes. `reserved`: bound by runtimes, by process or container. `lacks`: kernel
    features that are missing: "sctp". `missing_sysctls`: names. `tunnels`: VNI and UDP port of vxlan links.
    `facts`: source of `mtu` and `uplink`. `descriptors`: free file descriptors of this process.
    `gateways`: of default routes that a runtime made, by sandbox.
    """

    forwarding_entries: dict[IPAddress, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=lambda: {"lo": ""})
    mtus: dict[str, int] = field(default_factory=dict)
    addresses: set[tuple[str, IPInterface]] = field(default_factory=set)
    routes: list[Route] = field(default_factory=list)
    ports: set[tuple[Proto, IPAddress, int]] = field(default_factory=set)
    reserved: dict[int | str, set[tuple[Proto, IPAddress, int]]] = field(default_factory=dict)
    missing_sysctls: set[str] = field(default_factory=set)
    lacks: set[str] = field(default_factory=set)
    tunnels: dict[str, tuple[int, int]] = field(default_factory=dict)
    facts: HostFacts = field(default_factory=HostFacts)
    firewall: FirewallReport = field(default_factory=FirewallReport)
    descriptors: int = 1 << 20
    gateways: dict[str, set[IPAddress]] = field(default_factory=dict)


_LINKS = (Bridge, Veth, Macvlan, Ifb, Vxlan)


class World:
    """Our objects by key, and the foreign objects.

    `away`: the sandbox into which a runtime moved a link, or the sandbox side of a veth, by key. `tuned`: the MTU that
    such a link has in its sandbox, or a tunable one, if it is not that of its step; by key. `lost`: tables that others
    deleted, with their elements. `remembers`: this process knows of them: it put them there, or has looked at all.
    """

    def __init__(self, foreign: Foreign) -> None:
        self.foreign = foreign
        self.state: dict[str, Step] = {}
        self.sysctls: dict[str, str] = {}
        self.gone: set[str] = set()
        self.lives: Counter[str] = Counter()
        self.looped: set[str] = set()
        self.away: dict[str, str] = {}
        self.tuned: dict[str, int] = {}
        self.lost: dict[str, tuple[Table, list[Element]]] = {}
        self.remembers = True

    def firewalld(self) -> Firewalld | None:
        """Return what firewalld's rules say, with our links in its zone."""
        found = self.foreign.facts.firewalld
        if found is None:
            return None
        ours = {step.link: ZONE for step in self.state.values() if isinstance(step, Zone)}
        zones = tuple(sorted((ours | dict(found.zones)).items()))
        return replace(found, zones=zones, trusted=found.trusted | set(ours))

    def links(self) -> list[Bridge | Veth | Macvlan | Ifb | Vxlan]:
        """Return our links."""
        return [step for step in self.state.values() if isinstance(step, _LINKS)]

    def names(self, netns: str | None = None) -> set[str]:
        """Return the names of all links of a namespace."""
        found = {"lo"} if netns else {*self.foreign.links, *self.foreign.tunnels}
        for link in self.links():
            if isinstance(link, Macvlan):
                if link.netns == netns:
                    found.add(link.ifname or link.name)
                continue
            if isinstance(link, Veth) and self.away.get(link.key, link.netns) == netns:
                found.add(link.peer)
            if not netns:
                found.add(link.name)
        return found

    def link_facts(self) -> tuple[LinkFacts, ...]:
        """Return the facts about the host's links that drivers get."""
        found = [LinkFacts(name, kind, self.foreign.mtus.get(name, 1500)) for name, kind in self.foreign.links.items()]
        found += [LinkFacts(name, "vxlan", vni=vni, port=port) for name, (vni, port) in self.foreign.tunnels.items()]
        for link in self.links():
            match link:
                case Bridge():
                    found.append(LinkFacts(link.name, "bridge", link.mtu))
                case Ifb():
                    found.append(LinkFacts(link.name, "ifb"))
                case Vxlan():
                    facts = LinkFacts(link.name, "vxlan", link.mtu, master=link.master, vni=link.vni, port=link.port)
                    found.append(facts)
                case Veth():
                    found.append(LinkFacts(link.name, "veth", link.mtu, master=link.master))
                    if not link.netns:
                        found.append(LinkFacts(link.peer, "veth", link.mtu, up=False))
                case Macvlan(netns=None):
                    found.append(
                        LinkFacts(link.name, "macvlan", link.mtu, link.up, parent=link.parent, macvlan_mode=link.mode)
                    )
        return tuple(sorted({link.name: link for link in reversed(found)}.values(), key=lambda link: link.name))

    def wants_sandbox(self, step: Step, netns: str | None) -> None:
        """Raise an error if a sandbox is gone."""
        if netns and self.is_gone(netns, getattr(step, "netns_id", "")):
            raise StepError("not_found", step, f"sandbox {netns} is gone")

    def is_gone(self, netns: str, netns_id: str) -> bool:
        """Return whether a sandbox is gone. Another namespace may be at its path."""
        return netns in self.gone or netns_id not in {"", self.identity(netns)}

    def find(self, step: Step) -> Step | None:
        """Return the current state of a step's object, None if it is absent."""
        inside = (
            isinstance(step, Address | Route | SourceRoute) and step.netns and self.is_gone(step.netns, step.netns_id)
        )
        return None if inside else self.state.get(step.key)

    def identity(self, netns: str) -> str:
        """Return the identity of the namespace at a path."""
        return f"0:{zlib.crc32(netns.encode())}:fake:{self.lives[netns]}"

    def wants_link(self, step: Step, name: str, netns: str | None) -> None:
        """Raise an error if a link is missing."""
        self.wants_sandbox(step, netns)
        latest = next((it for it in reversed(self.state.values()) if getattr(it, "name", "") == name), None)
        made = netns is None and isinstance(latest, _LINKS) and not isinstance(latest, Macvlan)
        if not made and name not in self.names(netns):
            where = f" in sandbox {netns}" if netns else ""
            raise StepError("not_found", step, f"link {name!r} is missing{where}")

    def wants_port(self, step: Relay) -> None:
        """Raise an error if the port that a step serves is not reserved."""
        if HostPort(step.proto, step.host, step.port).key not in self.state:
            raise StepError("not_found", step, f"port {step.port}/{step.proto} of [{step.host}] is not reserved")

    def raise_loopback(self, step: Loopback) -> Outcome:
        """Set a sandbox's loopback link up."""
        self.wants_sandbox(step, step.netns)
        if step.netns in self.looped:
            return Outcome.EQUAL
        self.looped.add(step.netns)
        return Outcome.ADJUSTED

    def plain(self, step: Step) -> Outcome:
        """Compare a step with the state: absent, equal or different."""
        before = self.state.get(step.key)
        if before is None:
            return Outcome.CREATED
        return Outcome.EQUAL if comparable(before) == comparable(step) else Outcome.ADJUSTED

    def sandbox_mtu(self, link: Veth | Macvlan) -> int:
        """Return the MTU of a link in its sandbox; of a veth, of its sandbox side."""
        found = self.state.get(link.key, link)
        return self.tuned.get(link.key, found.mtu if isinstance(found, Veth | Macvlan) else 0)

    def resize(self, step: Veth | Macvlan) -> bool:
        """Give the link of a step in a sandbox its MTU. Return whether it has a new one."""
        before = self.state.get(step.key)
        if not isinstance(before, Veth | Macvlan):
            return False
        current, away = self.sandbox_mtu(before), self.away.get(step.key)
        if away or step.tunable:
            former = before.mtu if isinstance(step, Veth) else step.former
            in_reach = not away or (away == step.moved and not self.is_gone(away, step.netns_id))
            new = step.mtu if in_reach and current == former else current
        else:
            new = step.mtu
        self.tuned.pop(step.key, None)
        if new != step.mtu:
            self.tuned[step.key] = new
        return new != current

    def loopback_drift(self, step: Loopback) -> str:
        """Return how a sandbox's loopback link differs; empty if it does not."""
        if self.is_gone(step.netns, step.netns_id):
            return MISSING
        return "" if step.netns in self.looped else "is down"

    def forwarding(self) -> tuple[int, ...]:
        """Return the IP versions that the host forwards."""
        names = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
        foreign = self.foreign.facts.forwarding
        return tuple(it for it, name in names.items() if self.sysctls.get(name, "1" if it in foreign else "0") == "1")

    def has_sysctl(self, step: Sysctl) -> bool:
        """Return whether the kernel has a sysctl."""
        match step.name.split("/"):
            case ["net", "ipv4" | "ipv6", "conf" | "neigh", link, _]:
                return link in self.names() | {"all", "default"}
        return step.name not in self.foreign.missing_sysctls

    def sysctl_drift(self, step: Sysctl) -> str:
        """Return how a sysctl differs from a step; empty if it does not."""
        if not self.has_sysctl(step):
            return MISSING
        value = self.sysctls.get(step.name)
        return "" if value == step.value else f"is {value}, not {step.value}"

    def reachable(self, step: Route | SourceRoute) -> bool:
        """Return whether a route's gateway is on its link."""
        mine = [
            a for a in self.state.values() if isinstance(a, Address) and (a.link, a.netns) == (step.link, step.netns)
        ]
        nets = [address.address.network for address in mine]
        nets += [address.network for link, address in self.foreign.addresses if link == step.link and not step.netns]
        nets += [
            route.destination
            for route in self.state.values()
            if isinstance(route, Route) and not route.gateway and (route.link, route.netns) == (step.link, step.netns)
        ]
        return any(step.gateway in net for net in nets if step.gateway)

    def port_problem(self, step: HostPort, make: Callable[[str, str, str], ports.Problem]) -> ports.Problem | None:
        """Return the error for a port that cannot be reserved, None if it can."""
        if step.proto in self.foreign.lacks:
            return ports.problem(OSError(93, ""), step.proto, step.address, step.port, make)  # EPROTONOSUPPORT
        used = self.foreign.ports.union(*self.foreign.reserved.values())
        if self.holds(step) or any(ports.overlap(step, HostPort(*other)) for other in used):
            return make(*ports.taken(step.proto, step.address, step.port))
        return None

    def holds(self, step: HostPort) -> bool:
        """Return whether the port is reserved by us."""
        return any(isinstance(other, HostPort) and ports.overlap(step, other) for other in self.state.values())

    def cascade(self, step: Step) -> None:
        """Delete the objects that the kernel deletes with an object."""
        self.away.pop(step.key, None)
        self.tuned.pop(step.key, None)
        for key in [key for key, other in self.state.items() if _depends_on(step, other)]:
            del self.state[key]


def _depends_on(step: Step, other: Step) -> bool:
    return _is_on_link(step, other) or _forwards_by_link(step, other) or _is_element_of(step, other)


def _is_element_of(step: Step, other: Step) -> bool:
    """Return whether the second step is in the first, a table or gate."""
    match step, other:
        case Table(), (Element() | Hook()):
            return other.table == f"{step.family} {step.name}"
        case Gate(), Passage():
            return (other.family, other.flavour) == (step.family, step.flavour)
    return False


def _is_on_link(step: Step, other: Step) -> bool:
    """Return whether the second step configures the first, a link."""
    match step, other:
        case ((Bridge() | Veth() | Macvlan() | Ifb()), (Address() | Route())) if other.netns is None:
            return other.link == step.name
        case Veth(), (Address() | Route() | SourceRoute()):
            return (other.netns, other.link) == (step.netns, step.peer)
        case Macvlan(), (Address() | Route() | SourceRoute()):
            return (other.netns, other.link) == (step.netns, step.ifname)
        case ((Bridge() | Veth()), Macvlan()):
            return other.parent == step.name
        case Veth(), (Hairpin() | Shape()):
            return other.link == step.name
        case Ifb(), Shape():
            return other.ifb == step.name
        case ((Bridge() | Veth() | Ifb()), Resolver()):
            return other.link == step.name
    return False


def _forwards_by_link(step: Step, other: Step) -> bool:
    """Return whether the second step is a forwarding entry of the first, a link."""
    match step, other:
        case Bridge(), Neighbour():
            return other.link == step.name
        case Vxlan(), Fdb():
            return other.link == step.name
        case ((Veth() | Vxlan()), Hook()):
            return other.link == step.name
        case ((Veth() | Vxlan()), Element()):
            return other.table.startswith("netdev ") and other.data == step.name
    return False


def comparable(step: Step) -> Step:
    """Return the step without the fields that the kernel does not store."""
    match step:
        case Bridge():
            return replace(step, adopt=False)
        case Macvlan():
            return replace(step, moved=None, mode="", parent="", netns_id="", former=0)
        case Veth():
            return replace(step, moved=None, netns_id="")
        case Address() | Route() | SourceRoute():
            return replace(step, netns_id="")
    return step
