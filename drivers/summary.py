"""What a plan makes, for those who know no steps. Records carry it, so that nobody else has to read plans."""

from dataclasses import dataclass

from .api import StaticRoute
from .checked_texts import LinkName, MacOrNone
from .plan import Plan
from .steps import Bridge, IPAddress, Resolver, Route, Veth


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the host, `mtu` in bytes. Without a `mac` it is the user's: the host knows its MAC and mtu."""

    name: LinkName
    mac: MacOrNone = ""
    mtu: int = 0


def host_link(plan: Plan) -> Link | None:
    """Return the host side of an endpoint's link; None where there is none, as with a macvlan."""
    found = next((step for step in plan if isinstance(step, Veth)), None)
    return Link(found.name, found.mac, found.mtu) if found else None


def bridge(plan: Plan, used: tuple[str, ...]) -> Link | None:
    """Return the bridge of a network; `used`: keys of steps that are not ours."""
    found = next((step for step in plan if isinstance(step, Bridge)), None)
    if found is None:
        return None
    return Link(found.name) if found.key in used else Link(found.name, found.mac, found.mtu)


def routes(plan: Plan) -> tuple[StaticRoute, ...]:
    """Return the routes in the sandbox, default routes too."""
    return tuple(StaticRoute(step.destination, step.gateway) for step in plan if isinstance(step, Route) and step.netns)


def resolvers(plan: Plan) -> tuple[IPAddress, ...]:
    """Return the addresses at which the name server answers."""
    return tuple(step.address for step in plan if isinstance(step, Resolver))
