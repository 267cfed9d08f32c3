"""What may come by links of ours at all, whatever network they belong to. Part of the vocabulary of `steps`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ingress:
    """Packets of an IP version come by links of ours only as they can: from where their source is (RFC 3704 2.2).

    By no port of a bridge, VXLAN links included, comes one to the host itself: a bridge hands frames for some group
    addresses to the host by the port, past all that is checked on the way through (IEEE 802.1D, table 7-10).
    """

    family: int

    @property
    def key(self) -> str:
        return f"ingress/{self.family}"
