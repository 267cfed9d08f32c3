"""The default address spaces.

The IPv4 bases are in the upper part of 10.0.0.0/8, which Docker's own pools (172.16.0.0/12, 192.168.0.0/16) and the
usual home and cloud networks do not use. The IPv6 base is a unique local prefix of this host or cluster (RFC 4193), so
two sites can be connected later without renumbering.
"""

from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network

from .pool import EXTERNAL, GLOBAL, LOCAL, Base, Space

LOCAL_V4 = Base(IPv4Network("10.208.0.0/12"), 24)
GLOBAL_V4 = Base(IPv4Network("10.224.0.0/12"), 24)


def ula(seed: bytes) -> IPv6Network:
    """Return the unique local /48 whose 40-bit global id is derived from `seed` (RFC 4193 §3.2).

    The RFC requires a random id. Any seed that no other site has will do, such as a machine id or a cluster secret.

    >>> ula(b"a machine id")
    IPv6Network('fda7:de76:c210::/48')
    """
    return IPv6Network((b"\xfd" + sha256(seed).digest()[:5] + bytes(10), 48))


def default_spaces(
    ula48: IPv6Network,
    *,
    local_v4: tuple[Base, ...] = (LOCAL_V4,),
    global_v4: tuple[Base, ...] = (GLOBAL_V4,),
) -> tuple[Space, ...]:
    """Return the spaces `local`, `global` and `external`. The first two get one half of the prefix each.

    >>> [str(base.network) for space in default_spaces(IPv6Network("fd00::/48")) for base in space.bases]
    ['10.208.0.0/12', 'fd00::/49', '10.224.0.0/12', 'fd00:0:0:8000::/49']
    """
    lower, upper = ula48.subnets(prefixlen_diff=1)
    return (
        Space(LOCAL, (*local_v4, Base(lower, 64))),
        Space(GLOBAL, (*global_v4, Base(upper, 64))),
        Space(EXTERNAL),
    )
