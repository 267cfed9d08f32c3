"""What steps are compared with: one dump of each kind of object, however many steps there are.

Sandboxes are looked at one after the other, and each is forgotten once its steps are compared: a thousand take as much
memory as one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from netplug.drivers.steps import FormerRules, SourceRoute, Step
from netplug.kernel.firewall.gate_rules import Filter
from netplug.kernel.firewall.table_reader import Found
from netplug.kernel.links.source_routes import Rule, rules
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.netlink.rtnl import Link, LinkAddress, LinkRoute
from netplug.kernel.sandbox.netns import Sandboxes, run_here

_T = TypeVar("_T")


@dataclass(slots=True)
class View:
    """A namespace. `moved`: routes of other tables than the main one; those of the host are not looked at.

    `rules`: those of ours, if any step is about them.
    """

    links: dict[str, Link]
    addresses: dict[int, list[LinkAddress]]
    routes: list[LinkRoute]
    moved: list[LinkRoute]
    rules: list[Rule]


Netns: TypeAlias = tuple[str, str]
"""Path and identity of a namespace, both empty for the host's."""
_HOST = ("", "")


class Survey:
    """One look at the kernel.

    `tables`: what our tables of nf_tables hold. `filters`: those of iptables, by IP version and flavour.
    `former`: what a former release has left.

    `steps`: all those that are compared.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        tables: Found,
        filters: Mapping[int, Mapping[str, Filter]],
        *,
        former: FormerRules | None = None,
    ) -> None:
        self.steps = steps
        self.tables = tables
        self.filters = filters
        self.former = former
        self._ruled = {(step.netns, step.netns_id) for step in self.of(SourceRoute)}
        self._views: dict[Netns, View | None] = {}
        self._dumps: dict[object, Any] = {}
        self._nl: Netlink

    def look(self, nl: Netlink) -> None:
        """Look at the host's namespace. Blocks: 60 µs a link."""
        self._nl = nl
        self._views[_HOST] = _view(nl)

    def look_inside(self, namespaces: Iterable[Netns]) -> None:
        """Look at sandboxes too. Blocks: 60 µs a link."""
        with Sandboxes(run_here) as sandboxes:
            for netns in namespaces:
                try:
                    self._views[netns] = _view(sandboxes.get(*netns)[1], table=0, ruled=netns in self._ruled)
                except FileNotFoundError:
                    self._views[netns] = None

    @contextmanager
    def inside(self, namespaces: Iterable[Netns]) -> Iterator[None]:
        """Look at sandboxes for as long as the block runs, unless they are looked at anyway. Blocks."""
        more = [netns for netns in namespaces if netns not in self._views]
        self.look_inside(more)
        try:
            yield
        finally:
            for netns in more:
                del self._views[netns]

    @property
    def host(self) -> View:
        """The host's namespace."""
        view = self._views[_HOST]
        assert view is not None  # noqa: S101 - it is always looked at
        return view

    def view(self, netns: str | None, netns_id: str = "") -> View | None:
        """Return a namespace that `Handler.namespaces` named, the host's for none; None, it is gone."""
        return self._views[(netns, netns_id) if netns else _HOST]

    def link(self, name: str) -> Link | None:
        """Return a link of the host, but none that is being deleted."""
        found = self.host.links.get(name)
        return found if found and not found.being_deleted else None

    def of(self, kind: type[_T]) -> list[_T]:
        """Return the steps of a type."""
        return [step for step in self.steps if isinstance(step, kind)]

    def dump(self, read: Callable[["Survey", Netlink], _T]) -> _T:
        """Return what `read` returns, which is called once and blocks. For handlers that compare in the thread."""
        if read not in self._dumps:
            self._dumps[read] = read(self, self._nl)
        return cast("_T", self._dumps[read])


def _view(nl: Netlink, table: int = rtnl.RT_TABLE_MAIN, *, ruled: bool = False) -> View:
    by_link: dict[int, list[LinkAddress]] = {}
    for item in rtnl.addresses(nl):
        by_link.setdefault(item.index, []).append(item)
    routes = rtnl.routes(nl, table)
    main = [route for route in routes if route.table == rtnl.RT_TABLE_MAIN]
    moved = [route for route in routes if route.table != rtnl.RT_TABLE_MAIN]
    return View({link.name: link for link in rtnl.links(nl)}, by_link, main, moved, rules(nl) if ruled else [])
