"""Handlers of steps of a fake kernel: each knows one type, and this registry alone tells which.

One line is enough for a type that is there or not, and needs nothing else: `FakeHandler()`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from netplug.drivers import firewalld
from netplug.drivers.steps import (
    Address,
    Announce,
    Bridge,
    Element,
    Flows,
    FormerRules,
    Gate,
    Hairpin,
    Hook,
    HostPort,
    Ifb,
    Loopback,
    Macvlan,
    Passage,
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
from netplug.kernel.fake import links, tables, tunnels
from netplug.kernel.fake.world import World, comparable

_LONGEST_NAME = 15
"""Bytes of the name of a link (IFNAMSIZ, with the final zero)."""


def _differs(world: World, step: Step) -> str:
    found = world.find(step)
    if found is None:
        return MISSING
    return "" if comparable(found) == comparable(step) else f"is {comparable(found)}, not {comparable(step)}"


def _forget(world: World, step: Step) -> None:
    world.state.pop(step.key, None)


def _never(_world: World, _step: Step) -> str:
    return ""


def _nothing(_world: World) -> Iterable[Step]:
    return ()


@dataclass(frozen=True, slots=True)
class FakeHandler:
    """What knows one type of step; by default an object that needs nothing else.

    `keeps`: it is an object, found again by its key. `puts_back`: what there was before an adjustment is told.
    """

    ensure: Callable[[World, Any], Outcome] = World.plain
    remove: Callable[[World, Any], None] = _forget
    drift: Callable[[World, Any], str] = _differs
    owned: Callable[[World], Iterable[Step]] = _nothing
    keeps: bool = True
    puts_back: bool = False


def _all(*kinds: type[Step]) -> Callable[[World], Iterable[Step]]:
    return lambda world: [step for step in world.state.values() if isinstance(step, kinds)]


def _with_all(world: World, step: Step) -> None:
    """Remove an object with all that depends on it."""
    if step.key in world.state:
        world.cascade(world.state[step.key])
    _forget(world, step)


def _ensure_relay(world: World, step: Relay) -> Outcome:
    world.wants_port(step)
    return world.plain(step)


# Links


def _link_drift(world: World, step: Bridge | Veth | Ifb | Vxlan) -> str:
    if isinstance(step, Bridge) and step.adopt and world.foreign.links.get(step.name) == "bridge":
        return ""
    if step.name in world.foreign.links:
        return "is not ours"
    there = world.find(step) is not None
    if there and isinstance(step, Veth | Vxlan) and step.master and step.master not in world.names():
        return f"is not a port of {step.master!r}"
    return _differs(world, step)


def _macvlan_drift(world: World, step: Macvlan) -> str:
    found = world.find(step)
    if isinstance(found, Macvlan) and (step.tunable or step.key in world.away):
        return _differs(world, replace(step, mtu=found.mtu))
    return _differs(world, step)


def _links(world: World) -> Iterable[Step]:
    return (Bridge(step.name, "", 0) for step in world.links())


def _remove_inside(world: World, step: Address | Route | SourceRoute) -> None:
    if not (step.netns and world.is_gone(step.netns, step.netns_id)):
        _forget(world, step)


def _address_drift(world: World, step: Address) -> str:
    foreign = not step.netns and (step.link, step.address) in world.foreign.addresses
    return "" if foreign else _differs(world, step)


def _route_drift(world: World, step: Route) -> str:
    return "" if not step.netns and step in world.foreign.routes else _differs(world, step)


# Firewall


def _ensure_passage(world: World, step: Passage) -> Outcome:
    gate = Gate(step.family, step.flavour)
    world.state.setdefault(gate.key, gate)
    return world.plain(step)


# The host


def _ensure_sysctl(world: World, step: Sysctl) -> Outcome:
    if not world.has_sysctl(step):
        raise StepError("not_found", step, f"sysctl {step.name} is missing")
    same = world.sysctls.get(step.name) == step.value
    world.sysctls[step.name] = step.value
    if same:
        return Outcome.USED if step.restore else Outcome.EQUAL
    return Outcome.CREATED if step.restore else Outcome.ADJUSTED


def _remove_sysctl(world: World, step: Sysctl) -> None:
    if step.restore and (step.restore == step.value or not world.sysctl_drift(step)):
        world.sysctls[step.name] = step.restore


def _ensure_port(world: World, step: HostPort) -> Outcome:
    if step.key in world.state:
        world.state[step.key] = step
        return Outcome.EQUAL
    problem = world.port_problem(step, lambda kind, words, hint: StepError(kind, step, words, hint=hint))
    if problem and not step.shared:
        raise problem
    return Outcome.CREATED


def _ensure_zone(world: World, step: Zone) -> Outcome:
    if not _zone_drift(world, step):
        return Outcome.EQUAL
    if "message bus" in world.foreign.lacks:
        return Outcome.EQUAL
    if len(step.link) > _LONGEST_NAME:
        words = f"firewalld does not take {step.link} into its zone {ZONE!r}: INVALID_INTERFACE: {step.link}"
        raise StepError("unavailable", step, words, hint=firewalld.command(step.link))
    world.state[step.key] = step
    return Outcome.CREATED


def _zone_drift(world: World, step: Zone) -> str:
    found = world.firewalld()
    if found is None or found.zone(step.link):
        return ""
    if "message bus" in world.foreign.lacks:
        return f"{MISSING}: there is no message bus: {firewalld.command(step.link)}"
    return MISSING


HANDLERS: Mapping[type[Step], FakeHandler] = {
    Table: FakeHandler(tables.ensure_table, _with_all, tables.table_drift, _all(Table)),
    FormerRules: FakeHandler(owned=_all(FormerRules)),
    Gate: FakeHandler(remove=_with_all, owned=_all(Gate)),
    Passage: FakeHandler(_ensure_passage, owned=_all(Passage)),
    Sysctl: FakeHandler(_ensure_sysctl, _remove_sysctl, World.sysctl_drift, keeps=False),
    Bridge: FakeHandler(links.ensure_link, _with_all, _link_drift, _links),
    Vxlan: FakeHandler(tunnels.ensure_vxlan, _with_all, _link_drift),
    Veth: FakeHandler(links.ensure_link, _with_all, _link_drift),
    Macvlan: FakeHandler(links.ensure_macvlan, _with_all, _macvlan_drift),
    Ifb: FakeHandler(links.ensure_link, _with_all, _link_drift),
    Hairpin: FakeHandler(links.ensure_hairpin),
    Shape: FakeHandler(links.ensure_shape),
    Address: FakeHandler(links.ensure_address, _remove_inside, _address_drift),
    Route: FakeHandler(links.ensure_route, _remove_inside, _route_drift),
    SourceRoute: FakeHandler(links.ensure_source_route, _remove_inside),
    Announce: FakeHandler(links.ensure_announcement, drift=_never, keeps=False),
    Fdb: FakeHandler(tunnels.ensure_fdb, owned=_all(Fdb), puts_back=True),
    Neighbour: FakeHandler(tunnels.ensure_neighbour, owned=_all(Neighbour), puts_back=True),
    Loopback: FakeHandler(World.raise_loopback, drift=World.loopback_drift, keeps=False),
    Resolver: FakeHandler(links.ensure_resolver),
    Element: FakeHandler(
        tables.ensure_element, tables.remove_element, tables.element_drift, _all(Element), puts_back=True
    ),
    Hook: FakeHandler(tables.ensure_hook, drift=tables.hook_drift, owned=_all(Hook), puts_back=True),
    HostPort: FakeHandler(_ensure_port, puts_back=True),
    Relay: FakeHandler(_ensure_relay, puts_back=True),
    Flows: FakeHandler(drift=_never),
    Zone: FakeHandler(_ensure_zone, drift=_zone_drift, keeps=False),
}
"""The handlers of our own types, in an order in which what they know can be made."""
