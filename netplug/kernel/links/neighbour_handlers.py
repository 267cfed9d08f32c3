"""Handlers of what says where addresses and MACs are: FDB entries, neighbours, announcements."""

from collections.abc import Iterable

from netplug.drivers.steps import Announce, Step
from netplug.drivers.tunnel import Fdb, Neighbour
from netplug.kernel.api import Done, Outcome
from netplug.kernel.context import Context
from netplug.kernel.links import neighbours
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.rtnetlink_lane import RequestHandler
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Survey


class ForwardingHandler(RequestHandler[Fdb | Neighbour]):
    """FDB entries of VXLAN links, and permanent neighbours of bridges."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._entries = context.forwarding

    def ensure(self, step: Fdb | Neighbour, sandboxes: Sandboxes) -> Done:  # noqa: ARG002
        """Apply the step."""
        self._entries.add(step)
        return neighbours.ensure(self.nl, step)

    def remove(self, step: Fdb | Neighbour, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        """Remove it."""
        self._entries.forget(step)
        neighbours.remove(self.nl, step)

    def note_existing(self, step: Fdb | Neighbour) -> None:
        """Have its loss told."""
        self._entries.add(step)

    def drift(self, step: Fdb | Neighbour, survey: Survey) -> str:
        """Compare it."""
        return survey.dump(_forwarding).drift(step, survey.link(step.link))

    def owned(self, survey: Survey) -> Iterable[Step]:
        """Return all entries of ours."""
        return survey.dump(_forwarding).owned(survey.host.links.values())


def _forwarding(survey: Survey, nl: Netlink) -> neighbours.Found:
    return neighbours.Found.of(nl, survey.host.links.values())


class AnnounceHandler(RequestHandler[Announce]):
    """Announcements of addresses: they are never missing."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._announcements = context.announcements

    def ensure(self, step: Announce, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Send it."""
        return self._announcements.ensure(step)

    def remove(self, step: Announce, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        """Send it no more."""
        self._announcements.cancel(step)

    def drift(self, step: Announce, survey: Survey) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""
