"""Handlers of links, and of what is on them: addresses and routes."""

from abc import abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import TypeVar

from netplug.drivers.naming import mark
from netplug.drivers.steps import (
    Address,
    Bridge,
    Hairpin,
    Ifb,
    IPNetwork,
    Macvlan,
    Route,
    SourceRoute,
    Step,
    Veth,
)
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import MISSING, Outcome
from netplug.kernel.context import Context
from netplug.kernel.links import (
    addresses,
    bridges,
    macvlan,
    neighbours,
    ports,
    router_advertisements,
    source_routes,
    veths,
    vxlan,
)
from netplug.kernel.links.differences import Difference
from netplug.kernel.links.rollback import LinkRenamedError
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.rtnetlink_lane import RequestHandler, Rest
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Netns, Survey

_L = TypeVar("_L", Bridge, Veth, Macvlan, Ifb, Vxlan)


class LinkHandler(RequestHandler[_L]):
    """A link of the host: it is unusable at once when it is removed, and gone soon after."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._requests = context.requests
        self._reaper = context.reaper

    def link(self, step: _L) -> str:
        """Return its name."""
        return step.name

    def note_existing(self, step: _L) -> None:
        """Have its loss told."""
        self._requests.note(step)

    def ensure(self, step: _L, sandboxes: Sandboxes) -> Outcome:
        """Apply the step. A link that others have renamed gets its name back."""
        try:
            return self.make(step, sandboxes)
        except LinkRenamedError as renamed:
            bridges.rename(self.nl, step, renamed.found)
        self.make(step, sandboxes)
        return Outcome.ADJUSTED

    @abstractmethod
    def make(self, step: _L, sandboxes: Sandboxes) -> Outcome:
        """Apply the step.

        Raises:
            LinkRenamedError: the link has another name.
        """

    def remove(self, step: _L, sandboxes: Sandboxes) -> Rest | None:
        """Have it deleted."""
        group = self._reaper.group
        if not bridges.schedule_delete(self.nl, step, group):
            return self.remove_elsewhere(step, sandboxes)
        self._requests.schedule_delete(step.name, group)
        return None

    def remove_elsewhere(self, step: _L, sandboxes: Sandboxes) -> Rest | None:  # noqa: ARG002
        """Return how to remove it where the host has no such link."""
        return None


class BridgeHandler(LinkHandler[Bridge]):
    """Bridges. All links of ours are told of as such: that is enough to delete them."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._watch = context.sysctls

    def note_existing(self, step: Bridge) -> None:
        """Have its loss told, and foreign writes to its settings."""
        super().note_existing(step)
        self._note_settings(step)

    def make(self, step: Bridge, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Apply the step."""
        outcome = bridges.ensure_bridge(self.nl, step)
        self._note_settings(step)
        return outcome

    def remove(self, step: Bridge, sandboxes: Sandboxes) -> Rest | None:
        """Have it deleted."""
        for setting in router_advertisements.written(step.name):
            self._watch.forget(setting)
        return super().remove(step, sandboxes)

    def _note_settings(self, step: Bridge) -> None:
        for setting in () if step.adopt else router_advertisements.written(step.name):
            self._watch.note(setting)

    def drift(self, step: Bridge, survey: Survey) -> str:
        """Compare it."""
        found = survey.link(step.name)
        if found is None:
            return _absent(survey, step.name)
        if found.is_ours(step.name):
            return _words(bridges.bridge_differences(step, found, survey.host.addresses.get(found.index, ())))
        return "" if step.adopt and found.kind == "bridge" else "is not ours"

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all links of ours."""
        return (Bridge(name, "", 0) for name in bridges.owned(list(survey.host.links.values())))


class VethHandler(LinkHandler[Veth]):
    """veth pairs."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._entries = context.forwarding

    def note_existing(self, step: Veth) -> None:
        """Have its loss told, and that of its static FDB entry."""
        super().note_existing(step)
        self._entries.pin(step)

    def remove(self, step: Veth, sandboxes: Sandboxes) -> Rest | None:
        """Have it deleted."""
        self._entries.unpin(step)
        return super().remove(step, sandboxes)

    def make(self, step: Veth, sandboxes: Sandboxes) -> Outcome:
        """Apply the step."""
        self._entries.pin(step)
        hairpin = step.name in self._requests.hairpins
        outcome = veths.ensure_veth(self.nl, step, sandboxes.get, hairpin=hairpin)
        if step.netns and outcome is Outcome.CREATED:
            sandboxes.new_links.add((step.netns, step.peer))
        return outcome

    def namespaces(self, step: Veth) -> tuple[Netns, ...]:
        """Return where its other end is."""
        return ((step.netns, step.netns_id),) if step.netns else ()

    def drift(self, step: Veth, survey: Survey) -> str:
        """Compare both ends."""
        found = survey.link(step.name)
        if found is None:
            return _absent(survey, step.name)
        if not found.is_ours(step.name):
            return "is not ours"
        master = survey.link(step.master) if step.master else None
        view = survey.view(step.netns, step.netns_id)
        peer = veths.peer_of(step, found, view.links if view else {})
        static_macs = survey.dump(_static_macs).get(found.index, ())
        differences = veths.veth_differences(step, found, master.index if master else 0, peer, static_macs)
        differences += ports.blocking_differences(found, master)
        differences += ports.hairpin_differences(found, wanted=step.name in self._requests.hairpins)
        return _words(differences + veths.peer_differences(step, peer))


def _absent(survey: Survey, name: str) -> str:
    """Return how a link differs that is not found by the name that we gave it."""
    found = survey.dump(_marked).get(mark(name))
    return f"is called {found!r}" if found else MISSING


def _marked(survey: Survey, nl: Netlink) -> dict[str, str]:  # noqa: ARG001 - as `Survey.dump` calls it
    """Return the names of links by their altnames."""
    links = survey.host.links.values()
    return {altname: it.name for it in links if not it.being_deleted for altname in it.altnames}


def _static_macs(survey: Survey, nl: Netlink) -> dict[int, set[str]]:
    """Return the MACs that bridges were told to be at a port, by its index."""
    links = survey.host.links
    found: dict[int, set[str]] = {}
    for name in {step.master for step in survey.of(Veth)} & links.keys():
        for port, mac in neighbours.static_entries(nl, links[name].index):
            found.setdefault(port, set()).add(mac)
    return found


class MacvlanHandler(LinkHandler[Macvlan]):
    """macvlans, on the host or in a sandbox."""

    def make(self, step: Macvlan, sandboxes: Sandboxes) -> Outcome:
        """Apply the step."""
        return macvlan.ensure_macvlan(self.nl, step, sandboxes.get)

    def remove_elsewhere(self, step: Macvlan, sandboxes: Sandboxes) -> Rest | None:
        """Look for it in its sandbox, where deleting it blocks for 15 to 20 ms."""
        return partial(macvlan.remove_moved, step, sandboxes.get)

    def namespaces(self, step: Macvlan) -> tuple[Netns, ...]:
        """Return where it may be."""
        return tuple((netns, step.netns_id) for netns in (step.netns, step.moved) if netns)

    def drift(self, step: Macvlan, survey: Survey) -> str:
        """Compare it."""
        view = survey.view(step.netns, step.netns_id)
        if found := macvlan.find(step, view.links.values()) if view else None:
            return _words(macvlan.differences(step, found))
        away = survey.view(step.moved, step.netns_id) if step.moved else None
        return "" if away and macvlan.find(step, away.links.values()) else MISSING


class VxlanHandler(LinkHandler[Vxlan]):
    """VXLAN links."""

    def make(self, step: Vxlan, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Apply the step."""
        return vxlan.ensure(self.nl, step, self._reaper.group)

    def drift(self, step: Vxlan, survey: Survey) -> str:
        """Compare it."""
        found = survey.link(step.name)
        if found is None or not found.is_ours(step.name):
            return "is not ours" if found else _absent(survey, step.name)
        master = survey.link(step.master)
        return _words(vxlan.differences(step, found, master))


class HairpinHandler(RequestHandler[Hairpin]):
    """Hairpin mode of bridge ports."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._requests = context.requests

    def note_existing(self, step: Hairpin) -> None:
        """Have its loss told."""
        self._requests.note(step)

    def ensure(self, step: Hairpin, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Apply the step."""
        return bridges.ensure_hairpin(self.nl, step)

    def remove(self, step: Hairpin, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        """Remove it."""
        bridges.remove_hairpin(self.nl, step)

    def drift(self, step: Hairpin, survey: Survey) -> str:
        """Compare it."""
        found = survey.link(step.link)
        return "" if found and found.hairpin else MISSING


def _routed(survey: Survey, _: Netlink) -> set[tuple[int, IPNetwork]]:
    return {(it.index, it.destination) for it in survey.host.routes}


class AddressHandler(RequestHandler[Address]):
    """Addresses of links."""

    def ensure(self, step: Address, sandboxes: Sandboxes) -> Outcome:
        """Apply the step."""
        return addresses.ensure_address(self.inside(step, sandboxes), step)

    def remove(self, step: Address, sandboxes: Sandboxes) -> None:
        """Remove it."""
        try:
            nl = self.inside(step, sandboxes)
        except FileNotFoundError:
            return  # and the address with it
        addresses.remove_address(nl, step)

    def namespaces(self, step: Address) -> tuple[Netns, ...]:
        """Return where it is."""
        return ((step.netns, step.netns_id),) if step.netns else ()

    def drift(self, step: Address, survey: Survey) -> str:
        """Compare it."""
        view = survey.view(step.netns, step.netns_id)
        link = view.links.get(step.link) if view else None
        found = view.addresses.get(link.index, []) if view and link else []
        return addresses.address_drift(step, link, found, () if step.netns else survey.dump(_routed))


class RouteHandler(RequestHandler[Route]):
    """Routes."""

    def ensure(self, step: Route, sandboxes: Sandboxes) -> Outcome:
        """Apply the step."""
        new_link = (step.netns or "", step.link) in sandboxes.new_links
        return addresses.ensure_route(self.inside(step, sandboxes), step, new_link=new_link)

    def remove(self, step: Route, sandboxes: Sandboxes) -> None:
        """Remove it."""
        try:
            nl = self.inside(step, sandboxes)
        except FileNotFoundError:
            return  # and the route with it
        addresses.remove_route(nl, step)

    def namespaces(self, step: Route) -> tuple[Netns, ...]:
        """Return where it is."""
        return ((step.netns, step.netns_id),) if step.netns else ()

    def drift(self, step: Route, survey: Survey) -> str:
        """Compare it."""
        view = survey.view(step.netns, step.netns_id)
        found = view.routes + (source_routes.others(view.moved) if step.tunable else []) if view else []
        return addresses.route_drift(step, view.links.get(step.link) if view else None, found)


class SourceRouteHandler(RequestHandler[SourceRoute]):
    """Default routes by source address."""

    def ensure(self, step: SourceRoute, sandboxes: Sandboxes) -> Outcome:
        """Apply the step."""
        return source_routes.ensure(self.inside(step, sandboxes), step)

    def remove(self, step: SourceRoute, sandboxes: Sandboxes) -> None:
        """Remove it."""
        try:
            nl = self.inside(step, sandboxes)
        except FileNotFoundError:
            return  # and the route with it
        source_routes.remove(nl, step)

    def namespaces(self, step: SourceRoute) -> tuple[Netns, ...]:
        """Return where it is."""
        return ((step.netns, step.netns_id),)

    def drift(self, step: SourceRoute, survey: Survey) -> str:
        """Compare it."""
        view = survey.view(step.netns, step.netns_id)
        if view is None:
            return MISSING
        return source_routes.drift(step, view.links.get(step.link), view.moved, view.rules)


def _words(differences: list[Difference]) -> str:
    return ", ".join(item.what for item in differences)
