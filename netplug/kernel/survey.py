"""What drift is measured against: one dump of each kind of object, however many steps there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

from netplug.drivers.steps import (
    Address,
    Bridge,
    Chain,
    Hairpin,
    Ifb,
    IpSet,
    Jump,
    Loopback,
    Macvlan,
    Member,
    Route,
    Rule,
    Shape,
    Step,
    Sysctl,
    Veth,
)
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.kernel.api import MISSING, Owned
from netplug.kernel.firewall import iptables_rules as rules
from netplug.kernel.firewall.entries import Snapshot
from netplug.kernel.firewall.ipset import Found
from netplug.kernel.firewall.iptables_rules import Model
from netplug.kernel.host import sysctl
from netplug.kernel.links import addresses, macvlan, neighbours, shaping, vxlan
from netplug.kernel.links import bridges as links
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.netlink.rtnl import Link, LinkAddress, LinkRoute
from netplug.kernel.sandbox import loopback
from netplug.kernel.sandbox.netns import Sandboxes


@dataclass(slots=True)
class View:
    """A namespace. `moved`: routes of other tables than the main one; those of the host are not looked at."""

    links: dict[str, Link]
    addresses: dict[int, list[LinkAddress]]
    routes: list[LinkRoute]
    moved: list[LinkRoute]


Netns: TypeAlias = tuple[str, str]
"""Path and identity of a namespace, both empty for the host's."""
_HOST = ("", "")


@dataclass(slots=True)
class Survey:
    """The namespaces that a plan speaks of; one that is gone is None."""

    views: dict[Netns, View | None]
    shapes: shaping.Found
    forwarding_entries: neighbours.Found
    static_macs: Mapping[int, set[str]]

    @classmethod
    def of(cls, steps: Sequence[Step], nl: Netlink) -> Self:
        """Look at the host's namespace, and at the sandboxes that the steps name. Blocks: 60 µs a link."""
        views: dict[Netns, View | None] = {}
        with Sandboxes() as sandboxes:
            for netns in {netns for step in steps for netns in _sandboxes(step)}:
                try:
                    views[netns] = _view(sandboxes.get(*netns)[1], table=0)
                except FileNotFoundError:
                    views[netns] = None
        host = views[_HOST] = _view(nl)
        shapes = [step for step in steps if isinstance(step, Shape)]
        shaped, forwarding_entries = (
            shaping.Found.of(nl, shapes, host.links),
            neighbours.Found.of(nl, host.links.values()),
        )
        bridges = {step.master for step in steps if isinstance(step, Veth)} & host.links.keys()
        static_macs: dict[int, set[str]] = {}
        for port, mac in (entry for name in bridges for entry in neighbours.static_entries(nl, host.links[name].index)):
            static_macs.setdefault(port, set()).add(mac)
        return cls(views, shaped, forwarding_entries, static_macs)

    @property
    def host(self) -> View:
        """The host's namespace."""
        view = self.views[_HOST]
        assert view is not None  # noqa: S101 - it is always looked at
        return view

    def drift(self, step: Step, sets: Mapping[str, Found], models: Mapping[int, Model]) -> str:
        """Say what is wrong with a step; empty when nothing."""
        match step:
            case Chain() | Rule() | Jump():
                return rules.drift(models[step.family], step)
            case Member() | IpSet():
                return _set_drift(step, sets)
            case Sysctl():
                return sysctl.drift(step)
            case Bridge() | Veth() | Macvlan() | Vxlan():
                return self._link_drift(step)
            case Fdb() | Neighbour():
                return self.forwarding_entries.drift(step, self._link(step.link))
            case Ifb():
                return shaping.ifb_drift(step, self._link(step.name))
            case Shape():
                return self.shapes.drift(step, self.host.links)
            case Hairpin():
                found = self._link(step.link)
                return "" if found and found.hairpin else MISSING
            case Address() | Route() | Loopback():
                return self._placed(step)
        return ""

    def _link_drift(self, step: Bridge | Veth | Macvlan | Vxlan) -> str:
        match step:
            case Vxlan():
                return self._vxlan(step)
            case Bridge():
                return self._bridge(step)
            case Veth():
                return self._veth(step)
        return self._macvlan(step)

    def _placed(self, step: Address | Route | Loopback) -> str:
        view = self._inside(step)
        if isinstance(step, Loopback):
            return loopback.drift(view.links if view else None)
        link = view.links.get(step.link) if view else None
        if isinstance(step, Route):
            found = view.routes + (view.moved if step.tunable else []) if view else []
            return addresses.route_drift(step, link, found)
        return addresses.address_drift(step, link, view.addresses.get(link.index, []) if view and link else [])

    def _inside(self, step: Veth | Macvlan | Address | Route | Loopback) -> View | None:
        return self.views[(step.netns, step.netns_id) if step.netns else _HOST]

    def _link(self, name: str) -> Link | None:
        found = self.host.links.get(name)
        return found if found and not found.being_deleted else None

    def _bridge(self, step: Bridge) -> str:
        found = self._link(step.name)
        if found is None:
            return MISSING
        if found.is_ours(step.name):
            return _words(links.bridge_differences(step, found))
        if step.adopt and found.kind == "bridge":
            return ""
        return "is not ours"

    def _vxlan(self, step: Vxlan) -> str:
        found = self._link(step.name)
        if found is None or not found.is_ours(step.name):
            return "is not ours" if found else MISSING
        master = self._link(step.master)
        return _words(vxlan.differences(step, found, master.index if master else 0))

    def _macvlan(self, step: Macvlan) -> str:
        view = self._inside(step)
        if found := macvlan.find(step, view.links.values()) if view else None:
            return _words(macvlan.differences(step, found))
        away = self.views[step.moved, step.netns_id] if step.moved else None
        return "" if away and macvlan.find(step, away.links.values()) else MISSING

    def _veth(self, step: Veth) -> str:
        found = self._link(step.name)
        if found is None:
            return MISSING
        if not found.is_ours(step.name):
            return "is not ours"
        master = self._link(step.master) if step.master else None
        view = self._inside(step)
        peer = links.peer_of(step, found, view.links if view else {})
        differences = links.veth_differences(
            step,
            found,
            master.index if master else 0,
            peer,
            self.static_macs.get(found.index, ()),
        )
        return _words(differences + links.peer_differences(step, peer))


def _sandboxes(step: Step) -> tuple[Netns, ...]:
    match step:
        case Veth() | Address() | Route() | Loopback() if step.netns:
            return ((step.netns, step.netns_id),)
        case Macvlan():
            return tuple((netns, step.netns_id) for netns in (step.netns, step.moved) if netns)
    return ()


def _view(nl: Netlink, table: int = rtnl.RT_TABLE_MAIN) -> View:
    by_link: dict[int, list[LinkAddress]] = {}
    for item in rtnl.addresses(nl):
        by_link.setdefault(item.index, []).append(item)
    routes = rtnl.routes(nl, table)
    main = [route for route in routes if route.table == rtnl.RT_TABLE_MAIN]
    moved = [route for route in routes if route.table != rtnl.RT_TABLE_MAIN]
    return View({link.name: link for link in rtnl.links(nl)}, by_link, main, moved)


def _words(differences: list[links.Difference]) -> str:
    return ", ".join(item.what for item in differences)


def _set_drift(step: Member | IpSet, sets: Mapping[str, Found]) -> str:
    if isinstance(step, Member):
        return "" if step.set in sets and step in sets[step.set].members else MISSING
    found = sets.get(step.name)
    if found is None:
        return MISSING
    same = (found.type, found.family) == (step.type, step.family)
    return "" if same else f"is a {found.type} of IPv{found.family}, not {step.type}"


def owned(survey: Survey, sets: Mapping[str, Found], models: Mapping[int, Model], look: Snapshot) -> Owned:
    """Return what bears our mark."""
    found = list(survey.host.links.values())
    ours = [(family, *chain) for family, model in models.items() for chain in model.ours()]
    return Owned(
        links=frozenset(links.owned(found)),
        sets=frozenset(sets),
        chains=frozenset((family, table, name) for family, table, name, _ in ours),
        rules=frozenset((family, table, name, rule) for family, table, name, rules in ours for rule in rules),
        members=frozenset(member for found in sets.values() for member in found.members),
        tables=look.tables(),
        entries=look.owned(),
        forwarding_entries=survey.forwarding_entries.owned(found),
    )
