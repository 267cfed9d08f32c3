"""What may be the name of a link. Only this module decides it, for all that users, runtimes and records say."""

LONGEST = 15
"""Octets: IFNAMSIZ with its final 0."""
_TAKEN = frozenset({".", "..", "all", "default"})
"""Folders of /proc/sys/net/ipv4/conf that are no link's. The kernel refuses them too (`sysctl_dev_name_is_allowed`)."""
READ_BY_OTHERS = frozenset("\"'`$&|;<>()[]{}*?!\\#")
"""Characters that a shell, nft(8) or iptables(8) takes for something else than a part of a name."""


def is_link_name(text: str) -> bool:
    r"""Return whether a link can have this name.

    It is that of files in /proc/sys and /sys, so neither a way out of a folder nor a setting of all links is one. The
    kernel refuses spaces, ``/`` and ``:`` (`dev_valid_name`), and replaces ``%d``. It takes what others read: control
    characters, on which a terminal acts, a ``-`` at the beginning (an option), a ``+`` at the end (to iptables, all
    links that begin so), and `READ_BY_OTHERS`. We do not.

    >>> [is_link_name(name) for name in ("eth0", "x" * 15, "x" * 16, "..", "all", "a/b", "a%d", "a\0b", "")]
    [True, True, False, False, False, False, False, False, False]
    >>> [is_link_name(name) for name in ("a+b", "br+", "-j", "$(reboot)", "eth*", "\x1b[2J", "büro")]
    [True, False, False, False, False, False, True]
    """
    return (
        text.isprintable()
        and 1 <= len(text.encode()) <= LONGEST
        and text not in _TAKEN
        and text[0] != "-"
        and text[-1] != "+"
        and not any(char in "/:%" or char.isspace() for char in text)
        and READ_BY_OTHERS.isdisjoint(text)
    )


def is_link_prefix(text: str) -> bool:
    """Return whether a link can have this name with a number behind it.

    >>> [is_link_prefix(text) for text in ("eth", "all", "-j", "x" * 15, "a/", "..")]
    [True, True, False, False, False, False]
    """
    return text not in {".", ".."} and is_link_name(f"{text}0")
