"""Handlers of limits of links, and of the blocks with which they limit what comes from sandboxes."""

from netplug.drivers.steps import Ifb, Shape
from netplug.kernel.api import Outcome
from netplug.kernel.context import Context
from netplug.kernel.links import shaping
from netplug.kernel.links.handlers import LinkHandler
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.rtnetlink_lane import RequestHandler
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Survey


class IfbHandler(LinkHandler[Ifb]):
    """Intermediate functional blocks."""

    def make(self, step: Ifb, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Apply the step."""
        return shaping.ensure_ifb(self.nl, step)

    def drift(self, step: Ifb, survey: Survey) -> str:
        """Compare it."""
        return shaping.ifb_drift(step, survey.link(step.name))


class ShapeHandler(RequestHandler[Shape]):
    """Limits of links."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._requests = context.requests

    def note_existing(self, step: Shape) -> None:
        """Have its loss told."""
        self._requests.note(step)

    def ensure(self, step: Shape, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Apply the step."""
        return shaping.ensure(self.nl, step)

    def remove(self, step: Shape, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        """Remove it."""
        shaping.remove(self.nl, step)

    def drift(self, step: Shape, survey: Survey) -> str:
        """Compare it."""
        return survey.dump(_shapes).drift(step, survey.host.links)


def _shapes(survey: Survey, nl: Netlink) -> shaping.Found:
    return shaping.Found.of(nl, survey.of(Shape), survey.host.links)
