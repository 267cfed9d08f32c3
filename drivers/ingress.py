"""The step for reverse path filtering on our links. It complements those of `steps`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ingress:
    """Reverse path filtering: packets on our links are accepted only from sources routed to that link (RFC 3704 2.2).

    Packets that arrive on a bridge port itself, VXLAN links included, are dropped. A bridge passes frames to some group
    addresses to the host by their port, without the checks of forwarded frames (IEEE 802.1D, table 7-10).
    """

    family: int

    @property
    def key(self) -> str:
        return f"ingress/{self.family}"
