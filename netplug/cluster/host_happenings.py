"""Tells which hosts join, leave, are lost and come back."""

from netplug.cluster.records import describe
from netplug.cluster.view import View
from netplug.engine.happenings import Happenings, Kind

LOST = "no sign of life for 15 s: host, network or daemon is down"
STOPPED = "its daemon was stopped"
FORGOTTEN = "its records were removed"


class HostHappenings:
    """Compares the hosts with those of the last time. The first time tells nothing."""

    def __init__(self, view: View, happenings: Happenings, me: str) -> None:
        self._view = view
        self._happenings = happenings
        self._me = me
        self._known: dict[str, tuple[str, bool]] | None = None

    def compare(self) -> None:
        """Tell what has changed."""
        alive, hosts = self._view.all_alive(), self._view.hosts()
        before = self._known
        self._known = {ident: (one.name, ident in alive) for ident, one in hosts.items() if ident != self._me}
        if before is None:
            return
        for ident, (name, lives) in self._known.items():
            if ident not in before:
                self._tell(Kind.HOST_JOINED, ident, name, "")
            elif lives and not before[ident][1]:
                self._tell(Kind.HOST_RETURNED, ident, name, "")
            elif before[ident][1] and not lives:
                left = ident in self._view.stopped
                self._tell(Kind.HOST_LEFT if left else Kind.HOST_LOST, ident, name, STOPPED if left else LOST)
        for ident in before.keys() - self._known.keys():
            self._tell(Kind.HOST_LEFT, ident, before[ident][0], FORGOTTEN)

    def _tell(self, kind: Kind, ident: str, name: str, cause: str) -> None:
        known = self._view.hosts().get(ident)
        what = f"VTEP {known.vtep}" if known else ""
        self._happenings.tell(kind, f"host {describe(ident, name)}", what, cause=cause, host=ident, host_name=name)
