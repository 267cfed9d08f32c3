"""Which subnets a network can have, whatever the host has."""

from ipaddress import ip_network

from .errors import DriverError, Kind
from .steps import IPNetwork

_UNUSABLE = {
    "loopback": ("127.0.0.0/8", "::1/128"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "unspecified": ("0.0.0.0/8", "::/128"),
}
"""Addresses that no endpoint can have (RFC 6890)."""
_LINK_LOCAL = ("169.254.0.0/16", "fe80::/10")
"""Addresses that no router forwards (RFC 3927 §2.6.2, RFC 4291 §2.5.6); clouds serve metadata at one."""
SHORTEST_PREFIX = {4: 8, 6: 16}
"""By IP version. A larger subnet would take great parts of the Internet."""
_HINT = "choose another --subnet"


def check_range(pool: IPNetwork, *, routed: bool) -> None:
    """Refuse a subnet with addresses that no endpoint can have. `routed`: also with some that cannot be routed.

    Raises:
        DriverError: invalid.
    """
    kinds = {**_UNUSABLE, "link-local": _LINK_LOCAL} if routed else _UNUSABLE
    for kind, texts in kinds.items():
        if any(pool.overlaps(other) for other in map(ip_network, texts) if other.version == pool.version):
            raise DriverError(Kind.INVALID, f"subnet {pool} has {kind} addresses", hint=_HINT)
    if pool.is_reserved:
        raise DriverError(Kind.INVALID, f"subnet {pool} has reserved addresses", hint=_HINT)
    if pool.prefixlen < (shortest := SHORTEST_PREFIX[pool.version]):
        raise DriverError(Kind.INVALID, f"subnet {pool} is larger than a /{shortest}", hint=_HINT)
