"""What may be the name of a link. Only this module decides it, for all that users and runtimes write."""

LONGEST = 15
"""Octets: IFNAMSIZ with its final 0."""
_TAKEN = frozenset({".", "..", "all", "default"})
"""Folders of /proc/sys/net/ipv4/conf that are no link's. The kernel refuses them too (`sysctl_dev_name_is_allowed`)."""


def is_link_name(text: str) -> bool:
    r"""Return whether a link can have this name.

    It is that of files in /proc/sys and /sys, so neither a way out of a folder nor a setting of all links is one. The
    kernel refuses spaces, ``/`` and ``:`` (`dev_valid_name`), and replaces ``%d``. It takes control characters; we do
    not, as a terminal acts on them.

    >>> [is_link_name(name) for name in ("eth0", "x" * 15, "x" * 16, "..", "all", "a/b", "a%d", "a\0b", "")]
    [True, True, False, False, False, False, False, False, False]
    """
    return (
        text.isprintable()
        and 1 <= len(text.encode()) <= LONGEST
        and text not in _TAKEN
        and not any(char in "/:%" or char.isspace() for char in text)
    )
