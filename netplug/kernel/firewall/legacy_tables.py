"""The tables of iptables-legacy that there are. Its programs would make tables, or load modules, by looking at them."""

from pathlib import Path

_FILES = {4: "ip_tables_names", 6: "ip6_tables_names"}


def names(family: int) -> frozenset[str]:
    """Return the names of those of an IP version, in the namespace of this thread."""
    try:
        return frozenset(Path(f"/proc/thread-self/net/{_FILES[family]}").read_text().split())
    except OSError:  # the kernel has none
        return frozenset()
