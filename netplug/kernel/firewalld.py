"""Whether firewalld is in the way: its table drops what comes by a link of no zone, whatever rules of others say."""

from .nftables import Tables

_INET = 1
"""NFPROTO_INET (linux/netfilter.h)."""
_TABLE = "firewalld"
_OURS = b"np-"
"""How the names of our links begin, as a rule about ``np-+`` has it."""


def blocks(tables: Tables) -> bool:
    """Return whether there is a table of firewalld's that knows nothing of our links."""
    return _TABLE in tables.named(_INET) and not tables.mentions(_INET, _TABLE, _OURS)
