"""The view of a client that is in no network and sees the names of all, but only below the domain: the host itself.

A network may be called ``com``, and a container ``intranet``: to the host, names mean what they mean without us, except
for those that end in the domain, and the reverse names of the networks' subnets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import wire
from .special_use import pool_zone
from .view import Node, View

if TYPE_CHECKING:
    from .zone import Index, Zones


class DomainView(View):
    """What the host can resolve. It is valid until a network is added, changed or removed."""

    __slots__ = ()

    def __init__(self, zones: "Zones", indexes: "Sequence[Index]") -> None:
        super().__init__(zones, indexes, "")
        # No name is found without `find`, and none is in the zone of a network.
        self.first = {}
        self.rest = tuple(index.names for index in indexes) or ({},)
        self.network_zones = ()
        for index in indexes:
            index.views.add(self)

    def find(self, name: bytes) -> Node | None:
        """Return the node of a lower-case name below the domain, or of a reverse name of an address in a subnet."""
        if not self.indexes:
            return None
        if not wire.below(name, self.domain) and not pool_zone(name, self.zones.pools):
            return None
        return super().find(name)

    def zone_of(self, name: bytes) -> bytes:
        """Return the domain for names below it; empty for all others."""
        return self.domain if wire.below(name, self.domain) else b""
