"""Folders of the daemon: made with the rights that they shall have, and refused where others could change them.

Whoever may write to a folder can replace its files: listen in the daemon's place, or hold its lock so that none starts.
The folders above count as well, since who may rename one of them replaces all below (as for sshd(8), StrictModes). Of
world-writable ones with the sticky bit, such as /tmp, only a folder's owner renames it.
"""

import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from netplug.errors import NetplugError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def own_folder(path: Path, mode: int) -> None:
    """Make a folder, unless it is there, with those above it. No mask applies, and those above get mode 0755.

    Raises:
        NetplugError: "forbidden": users other than root and the daemon's may change what is in it.
        OSError: it cannot be made.
    """
    there = next(it for it in (path, *path.parents) if it.exists())
    _refuse(path, writable_by_others(there, inside=there == path))
    for folder in reversed(path.parents[: path.parents.index(there) if there != path else 0]):
        _make(folder, 0o755)
    _make(path, mode)
    _refuse(path, writable_by_others(path))


def writable_by_others(path: Path, *, inside: bool = True) -> str:
    """Return why others than root and this process's user may change what is in a folder; empty if they may not.

    `inside`: whether nobody else may make files in it; else it only matters that nobody replaces those of others.
    """
    for lexical in dict.fromkeys((path.absolute(), path.resolve())):
        for at in (lexical, *lexical.parents):
            if reason := _reason(at, last=inside and at == lexical):
                return reason
    return ""


def _refuse(path: Path, reason: str) -> None:
    if reason:
        raise NetplugError(
            "forbidden",
            f"folder {path} is not safe: {reason}, so others than root could answer in the daemon's place, or stop it",
            hint="choose a folder of root's",
        )


def _make(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    path.chmod(mode)  # whatever the mask is


def _reason(path: Path, *, last: bool) -> str:
    status = path.lstat()
    if status.st_uid not in trusted():
        return f"{path} belongs to user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return ""
    writable = status.st_mode & _OTHERS
    if status.st_gid in {0, os.getegid()}:
        writable &= ~stat.S_IWGRP
    if not writable or (status.st_mode & stat.S_ISVTX and not last):
        return ""
    who = "everybody" if writable & stat.S_IWOTH else f"group {status.st_gid}"
    return f"{who} may write to {path}"


@cache
def trusted() -> frozenset[int]:
    """Return the users whose files are as good as root's: root, this process's own, and what lies outside.

    In a user namespace, root of the host has no number of its own (user_namespaces(7)).
    """
    return frozenset({0, os.geteuid(), *_unmapped()})


def _unmapped() -> Iterator[int]:
    try:
        first, _, size = Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:3]
        if (first, size) != ("0", "4294967295"):
            yield int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
