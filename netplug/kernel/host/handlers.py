"""Handlers of what this process holds for the host, and of the host's settings."""

from netplug.drivers.steps import HostPort, Relay, Sysctl
from netplug.kernel.api import Done, Outcome
from netplug.kernel.context import Context
from netplug.kernel.handlers import LoopHandler
from netplug.kernel.host import sysctl
from netplug.kernel.rtnetlink_lane import RequestHandler
from netplug.kernel.sandbox.netns import Sandboxes
from netplug.kernel.survey import Survey


class SysctlHandler(RequestHandler[Sysctl]):
    """Settings below /proc/sys; some wait for the mutex of rtnetlink."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._watch = context.sysctls

    def note_existing(self, step: Sysctl) -> None:
        """Have changes told."""
        self._watch.note(step)

    def ensure(self, step: Sysctl, sandboxes: Sandboxes) -> Outcome:  # noqa: ARG002
        """Write it."""
        outcome = sysctl.ensure(step)
        self._watch.note(step)
        return outcome

    def remove(self, step: Sysctl, sandboxes: Sandboxes) -> None:  # noqa: ARG002
        """Write what there was before."""
        self._watch.forget(step)
        sysctl.remove(step)

    def drift(self, step: Sysctl, survey: Survey) -> str:  # noqa: ARG002
        """Compare it."""
        return sysctl.drift(step)


class HostPortHandler(LoopHandler[HostPort]):
    """Ports reserved by sockets."""

    in_thread = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._ports = context.ports
        self._relays = context.relays

    def ensure(self, step: HostPort) -> Done:
        """Reserve them."""
        return self._ports.ensure(step)

    def remove(self, step: HostPort) -> None:
        """Release them. Whoever serves a socket ends before it does: its number may be another's at once."""
        self._relays.remove(Relay(step.proto, step.address, step.port, step.address, step.port, step.count))
        self._ports.remove(step)

    def drift(self, step: HostPort, survey: Survey) -> str:  # noqa: ARG002
        """Compare them."""
        return self._ports.drift(step)


class RelayHandler(LoopHandler[Relay]):
    """Relays of connections."""

    in_thread = False

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._relays = context.relays

    def ensure(self, step: Relay) -> Done:
        """Start it."""
        return self._relays.ensure(step)

    def remove(self, step: Relay) -> None:
        """End it."""
        self._relays.remove(step)

    def drift(self, step: Relay, survey: Survey) -> str:  # noqa: ARG002
        """Compare it."""
        return self._relays.drift(step)
