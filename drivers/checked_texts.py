"""Types of texts in plans and records that come into the kernel, or are a path. The codec checks them as it reads.

What a plan says was computed here, or by an earlier version. A store may say anything: a disk was damaged, a copy of
another host was restored, or somebody wrote to it. So a text that cannot be what it stands for is refused before
anything is done with it, as users' texts are.
"""

import re
from collections.abc import Callable
from typing import Annotated, TypeAlias

from .link_names import READ_BY_OTHERS, is_link_name, is_link_prefix

MOST = 4095
"""Octets of a path (PATH_MAX with its final 0)."""


def _is_mac(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{2}(:[0-9a-f]{2}){5}", text.lower(), re.ASCII) is not None


def _is_pattern(text: str) -> bool:
    return is_link_name(text.removesuffix("+"))


def is_namespace(text: str) -> bool:
    r"""Return whether a text is the absolute path of a network namespace, or its name below /run/netns.

    It is opened as a namespace, and nothing else is done with it.

    >>> [is_namespace(it) for it in ("/run/netns/a", "a", "", "a\nb", "/proc/1/ns/net", "run/netns/a")]
    [True, True, False, False, True, False]
    """
    return text.isprintable() and 1 <= len(text.encode()) <= MOST and ("/" not in text or text.startswith("/"))


def is_sysctl(text: str) -> bool:
    """Return whether a text is the path of a setting of the network, below /proc/sys.

    >>> [is_sysctl(it) for it in ("net/ipv4/conf/eth0.5/rp_filter", "net/../kernel/core_pattern", "/etc/passwd")]
    [True, False, False]
    """
    head, *parts = text.split("/")
    return (
        head == "net"
        and bool(parts)
        and len(text) <= 300
        and text.isprintable()
        and not any(it in {"", ".", ".."} for it in parts)
        and READ_BY_OTHERS.isdisjoint(text)
    )


def _is_value(text: str) -> bool:
    return re.fullmatch(r"[\w. -]{0,200}", text, re.ASCII) is not None


def _is_identifier(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z][\w-]{0,63}", text, re.ASCII) is not None


def _is_table(text: str) -> bool:
    family, _, name = text.partition(" ")
    return family in _FAMILIES and _is_identifier(name)


def is_element(text: str) -> bool:
    """Return whether a text is what nft(8) prints of an element: words between which there is a space or `` . ``.

    >>> [is_element(it) for it in ("np-1 . 10.0.0.0/8 . 80", "goto from_open", "*", "../../etc", "a $(reboot)", "a  b")]
    [True, True, True, False, False, False]
    """
    words = text.split(" ")
    return text in {"", "*"} or (
        len(text) <= 300
        and text.isprintable()
        and READ_BY_OTHERS.isdisjoint(text)
        and not any(part in {"", ".."} for word in words for part in word.split("/"))
    )


def is_table_text(text: str) -> bool:
    r"""Return whether a text stays within the braces that it is put between, and reads no other file.

    >>> [is_table_text(it) for it in ("chain a { accept; }", "} table ip x {", 'include "/etc/x"', "a\0", 'a "{"')]
    [True, False, False, False, True]
    """
    bare = re.sub(r'"[^"\n]*"|#[^\n]*', "", text)
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    lines = text.replace("\t", " ").split("\n")
    return not depth and '"' not in bare and "include" not in bare.split() and all(map(str.isprintable, lines))


_FAMILIES = frozenset({"inet", "bridge", "netdev", "ip", "ip6"})


def _checked(is_good: Callable[[str], bool], what: str, *, empty: bool = False) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not (empty and not text) and not is_good(text):
            raise ValueError(f"{text[:80]!r} is not {what}")
        return text

    return check


_LINK, _MAC, _PATH = "the name of a link", "a MAC address", "the path or name of a namespace"
LinkName: TypeAlias = Annotated[str, _checked(is_link_name, _LINK)]
LinkOrNone: TypeAlias = Annotated[str, _checked(is_link_name, _LINK, empty=True)]
"""Empty: none."""
LinkPrefix: TypeAlias = Annotated[str, _checked(is_link_prefix, "the beginning of names of links")]
LinkPattern: TypeAlias = Annotated[str, _checked(_is_pattern, _LINK)]
"""The name of a link; ``+`` at its end stands for any rest."""
Mac: TypeAlias = Annotated[str, _checked(_is_mac, _MAC)]
MacOrNone: TypeAlias = Annotated[str, _checked(_is_mac, _MAC, empty=True)]
Namespace: TypeAlias = Annotated[str, _checked(is_namespace, _PATH)]
"""Path of a network namespace, or its name below /run/netns."""
NamespaceOrNone: TypeAlias = Annotated[str, _checked(is_namespace, _PATH, empty=True)]
SysctlName: TypeAlias = Annotated[str, _checked(is_sysctl, "a setting of the network")]
SysctlValue: TypeAlias = Annotated[str, _checked(_is_value, "the value of a setting")]
Family: TypeAlias = Annotated[str, _checked(_FAMILIES.__contains__, "a family of nf_tables")]
Identifier: TypeAlias = Annotated[str, _checked(_is_identifier, "a name of nf_tables")]
TableName: TypeAlias = Annotated[str, _checked(_is_table, "family and name of a table")]
TableText: TypeAlias = Annotated[str, _checked(is_table_text, "the text of a table")]
ElementText: TypeAlias = Annotated[str, _checked(is_element, "an element of a set")]
Flavour: TypeAlias = Annotated[str, _checked({"nft", "legacy"}.__contains__, "a flavour of iptables")]
