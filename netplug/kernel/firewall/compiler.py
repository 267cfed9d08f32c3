"""Compiles the text of a table: nft's language to netlink messages.

The kernel itself is the compiler. libnftables loads the text into a namespace made for this, and what the kernel then
tells of the table is what creates it elsewhere: in one transaction with its elements, in any namespace, by a socket of
ours, without a process. The same makes a table comparable: it is as wanted if the kernel tells the same of it.

Our own tables were compiled beforehand (`compiled_tables`). They are loaded in the same way, since kernels differ in
what they tell. libnftables compiles those of others, and prints tables for `difference`.
"""

import difflib
import os
from collections.abc import Callable
from typing import TypeVar

from netplug.kernel import libc
from netplug.kernel.firewall import compiled_tables
from netplug.kernel.firewall.libnftables import MissingError, Nft, NftError
from netplug.kernel.firewall.table_image import MARK, Image, image
from netplug.kernel.netlink import nf_tables
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, NetlinkError
from netplug.kernel.threads import in_new_thread

_T = TypeVar("_T")
_CLONE_FILES, _CLONE_NEWNET = 0x400, 0x40000000
_NAME = "netplug"
"""Of the table in the namespace that it is compiled in."""
_MOST_LINES = 6
"""Of a difference that are told."""


class CompileError(Exception):
    """A text cannot be compiled on this host. `missing`: as there is no libnftables, not for what the text says."""

    def __init__(self, words: str, *, missing: bool = False) -> None:
        super().__init__(words)
        self.missing = missing


_compiled: dict[tuple[str, str], Image] = {}
"""By family and text. A process has some constant texts, and one table's text for all overlays."""


def is_compiled(family: str, text: str) -> bool:
    """Return whether `compiled` answers at once."""
    return (family, text) in _compiled


def forget() -> None:
    """Forget what was compiled."""
    _compiled.clear()


def compiled(family: str, text: str) -> Image:
    """Compile the text of a table. Blocks for some 10 ms, once for each text; for long, while others change links.

    Raises:
        CompileError: nft, or the kernel, refuses it.
    """
    if found := _compiled.get((family, text)):
        return found
    _compiled[family, text] = made = _translating(lambda: _load(family, text, compiled_tables.find(family, text)))
    return made


def by_nft(family: str, text: str) -> Image:
    """Compile the text of a table by libnftables, whatever was compiled beforehand.

    Raises:
        CompileError: as `compiled`.
    """
    return _translating(lambda: _load(family, text, None))


def difference(family: str, name: str, text: str) -> str:
    """Say in which lines a table of this namespace differs from what it should be; empty, if nft lists no difference.

    Raises:
        CompileError: as `compiled`; also as there is no libnftables to print tables.
    """

    def wanted() -> str:
        _load(family, text, compiled_tables.find(family, text))
        return _listed(family, _NAME)

    before, after = _lines(_translating(wanted)), _lines(_translating(lambda: _listed(family, name)))
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    told = [f"{line[0]} {line[2:]}" for line in changed[:_MOST_LINES]]
    more = len(changed) - len(told)
    return "; ".join([*told, *([f"and {more} more lines"] if more else [])])


def _load(family: str, text: str, beforehand: Image | None) -> Image:
    """Make a table in a new namespace of this thread, and return what the kernel tells of it."""
    libc.call("unshare", _CLONE_NEWNET)
    with Netlink.open(NETLINK_NETFILTER) as netlink:
        if beforehand is None or not _is_made(netlink, beforehand):
            with Nft() as nft:
                nft.run(f"table {family} {_NAME} {{\n{text}\n}}\n")
        found = image(netlink, family, _NAME)
    if found is None:
        raise NftError("the kernel does not show the table")
    return found


def _is_made(netlink: Netlink, beforehand: Image) -> bool:
    """Make a table that was compiled beforehand, and return whether this kernel takes it."""
    try:
        netlink.batch(nf_tables.batch([nf_tables.new_table(beforehand.family, _NAME, 0), *beforehand.messages(_NAME)]))
    except NetlinkError:
        return False
    return True


def _listed(family: str, name: str) -> str:
    with Nft() as nft:
        return nft.run(f"list table {family} {name}\n")


def _translating(work: Callable[[], _T]) -> _T:
    """Do something in a thread of its own, and translate errors of libnftables."""

    def run() -> _T:
        _forget_descriptors()
        return work()

    try:
        return in_new_thread("netplug-nft", run)
    except MissingError as error:
        raise CompileError(str(error), missing=True) from error
    except NftError as error:
        raise CompileError(str(error)) from error


def _lines(printed: str) -> list[str]:
    """Return the lines between the braces: sets and chains by name, without the mark that only loaded tables have."""
    parts: list[list[str]] = []
    inside = False
    for line in filter(None, (line.strip() for line in printed.splitlines()[1:-1])):
        if inside:
            parts[-1].append(line)
        else:
            parts.append([line])
        inside = line != "}" and (inside or line.endswith("{"))
    ordered = sorted((it for it in parts if it[0] != f"chain {MARK} {{"), key=lambda it: it[0])
    return [line for part in ordered for line in part]


def _forget_descriptors() -> None:
    """Give this thread a table of file descriptors of its own, without the process's.

    libnftables waits for its socket by select(2), and the C library aborts a process that has this do so for a
    descriptor above 1023. A daemon with 1 000 published ports has as many: their sockets.
    """
    libc.call("unshare", _CLONE_FILES)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
