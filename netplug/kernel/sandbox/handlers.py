"""Handlers of what is in sandboxes, or is for them alone."""

from netplug.drivers.steps import Loopback, Resolver
from netplug.kernel.api import Outcome
from netplug.kernel.context import Context
from netplug.kernel.handlers import LoopHandler
from netplug.kernel.rtnetlink_lane import RequestHandler
from netplug.kernel.sandbox import loopback
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Netns, Survey


class LoopbackHandler(RequestHandler[Loopback]):
    """Loopback links; they stay up."""

    def ensure(self, step: Loopback, sandboxes: Sandboxes) -> Outcome:
        """Set it up."""
        return loopback.ensure(self.inside(step, sandboxes))

    def remove(self, step: Loopback, sandboxes: Sandboxes) -> None:
        """Leave it up."""

    def namespaces(self, step: Loopback) -> tuple[Netns, ...]:
        """Return where it is."""
        return ((step.netns, step.netns_id),)

    def drift(self, step: Loopback, survey: Survey) -> str:
        """Compare it."""
        view = survey.view(step.netns, step.netns_id)
        return loopback.drift(view.links if view else None)


class ResolverHandler(LoopHandler[Resolver]):
    """Sockets of name servers."""

    in_thread = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._resolvers = context.resolvers

    def ensure(self, step: Resolver) -> Outcome:
        """Open them."""
        return self._resolvers.ensure(step)

    def remove(self, step: Resolver) -> None:
        """Close them."""
        self._resolvers.remove(step)

    def drift(self, step: Resolver, survey: Survey) -> str:  # noqa: ARG002
        """Compare them."""
        return self._resolvers.drift(step)
