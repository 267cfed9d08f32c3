"""Links, addresses and routes of the fake kernel. It refuses what the real kernel refuses."""

from ipaddress import ip_address

from netplug.drivers.steps import (
    Address,
    Announce,
    Bridge,
    Hairpin,
    Ifb,
    Macvlan,
    Proto,
    Resolver,
    Route,
    Shape,
    SourceRoute,
    Veth,
)
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.fake.world import World
from netplug.kernel.sandbox import resolvers


def ensure_shape(world: World, step: Shape) -> Outcome:
    """Limit links."""
    world.wants_link(step, step.link, None)
    if step.ifb:
        world.wants_link(step, step.ifb, None)
    return world.plain(step)


def ensure_announcement(world: World, step: Announce) -> Outcome:
    """Send nothing."""
    world.wants_link(step, step.link, None)
    return Outcome.EQUAL


def ensure_link(world: World, step: Bridge | Veth | Ifb) -> Outcome:
    """Make a link of the host."""
    kind = world.foreign.links.get(step.name)
    if isinstance(step, Veth):
        if step.master and step.master not in world.names():
            raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
        world.wants_sandbox(step, step.netns)
    elif isinstance(step, Bridge) and step.adopt and kind is not None:
        if kind == "bridge":
            return Outcome.USED
        raise StepError("invalid", step, f"link {step.name!r} is not a bridge but a {kind} link")
    if kind is not None:
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    if isinstance(step, Veth) and step.key not in world.state and not step.netns and step.peer in world.names():
        raise StepError("exists", step, f"link {step.peer!r}, wanted for the sandbox side of {step.name!r}, exists")
    if isinstance(step, Veth):
        world.resize(step)
    return world.plain(step)


def ensure_macvlan(world: World, step: Macvlan) -> Outcome:
    """Make a macvlan."""
    world.wants_sandbox(step, step.netns)
    if step.key not in world.state:
        if step.parent not in world.names():
            raise StepError("not_found", step, f"parent {step.parent!r} of link {step.name!r} is missing")
        name = step.ifname or step.name
        if name in world.names(step.netns):
            raise StepError("exists", step, f"link {name!r} exists and is not ours", hint="remove or rename it")
        siblings = [link for link in world.links() if isinstance(link, Macvlan) and link.parent == step.parent]
        if siblings and "passthru" in {step.mode, *(sibling.mode for sibling in siblings)}:
            words = f"parent {step.parent!r} is in use: with macvlan_mode=passthru a parent has one macvlan only"
            raise StepError("unavailable", step, words)
    resized, outcome = world.resize(step), world.plain(step)
    if outcome is Outcome.ADJUSTED and (step.tunable or step.key in world.away):
        return Outcome.ADJUSTED if resized else Outcome.EQUAL
    return outcome


def ensure_hairpin(world: World, step: Hairpin) -> Outcome:
    """Set hairpin mode."""
    world.wants_link(step, step.link, None)
    if not any(isinstance(link, Veth) and link.name == step.link for link in world.links()):
        raise StepError("invalid", step, f"link {step.link!r} is not a port of a bridge")
    return world.plain(step)


def ensure_address(world: World, step: Address) -> Outcome:
    """Add an address."""
    world.wants_link(step, step.link, step.netns)
    if not step.netns and (step.link, step.address) in world.foreign.addresses:
        return Outcome.USED
    return world.plain(step)


def ensure_route(world: World, step: Route) -> Outcome:
    """Add a route."""
    world.wants_link(step, step.link, step.netns)
    if step.gateway and not step.gateway.is_link_local and not world.reachable(step):
        raise StepError("invalid", step, f"gateway {step.gateway} is not reachable on link {step.link!r}")
    for route in world.foreign.routes if not step.netns else ():
        if route.destination == step.destination:
            if (route.link, route.gateway) == (step.link, step.gateway):
                return Outcome.USED
            raise StepError("exists", step, f"route {step.destination} exists with another next hop")
    for other in list(world.state.values()):
        if not isinstance(other, Route):
            continue
        same = (other.destination, other.netns, other.metric) == (step.destination, step.netns, step.metric)
        if same and other.key != step.key:
            del world.state[other.key]
            return Outcome.ADJUSTED
    return world.plain(step)


def ensure_source_route(world: World, step: SourceRoute) -> Outcome:
    """Add a default route by source address."""
    world.wants_link(step, step.link, step.netns)
    if not step.gateway.is_link_local and not world.reachable(step):
        raise StepError("invalid", step, f"gateway {step.gateway} is not reachable on link {step.link!r}")
    return world.plain(step)


def ensure_resolver(world: World, step: Resolver) -> Outcome:
    """Open sockets of a name server."""
    if step.link != "lo":
        world.wants_link(step, step.link, None)
    unspecified = ip_address("0.0.0.0" if step.address.version == 4 else "::")
    for proto in (Proto.UDP, Proto.TCP):
        if not world.foreign.ports.isdisjoint((proto, it, step.port) for it in (unspecified, step.address)):
            raise resolvers.taken(step)
    return world.plain(step)
