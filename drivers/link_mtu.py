"""The smallest MTU that IP versions need."""

from .api import Network
from .errors import DriverError, Kind

SMALLEST = {4: 68, 6: 1280}
"""RFC 791 3.1, RFC 8200 5."""


def check(net: Network, hint: str = "choose at least 1280, or leave the IPv6 subnet out") -> None:
    """Refuse an MTU that is too small for a subnet of a network: the kernel would remove addresses of IPv6."""
    mtu = net.options.mtu
    for family in net.families():
        if mtu and mtu < SMALLEST[family]:
            raise DriverError(Kind.INVALID, f"option mtu={mtu}: IPv{family} needs {SMALLEST[family]}", hint=hint)
