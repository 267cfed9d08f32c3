"""Since when each host has its VTEP, as this host has seen it: a host that was taken over can say any time."""

from dataclasses import replace

from netplug.cluster.records import HostRecord
from netplug.drivers.steps import IPAddress

_MOST_GONE = 1000
"""Hosts that are remembered without a record: one whose record was deleted writes it again, as it was."""


class VtepClaims:
    """Revisions of the store since which hosts have their VTEPs.

    A host may say that it is later than seen, never that it is earlier. What it said before this host looked first is
    believed: nobody else knows it.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[IPAddress, int]] = {}

    def bounded(self, ident: str, host: HostRecord, revision: int) -> HostRecord:
        """Return a host's record with the earliest possible `since`. `revision`: of the record; 0: it is not new."""
        vtep, since = self._seen.pop(ident, (host.vtep, revision))
        since = max(host.since, since if vtep == host.vtep else revision)
        if len(self._seen) > _MOST_GONE:
            del self._seen[next(iter(self._seen))]
        self._seen[ident] = host.vtep, since  # as the last: the one that was not seen for longest goes first
        return replace(host, since=since)
