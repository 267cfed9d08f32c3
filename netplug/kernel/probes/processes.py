"""Processes of a namespace: whether they are frozen, and which sockets they have."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from netplug.kernel.host import port_holders
from netplug.kernel.probes.api import Listener

_PROC = "/proc"
_CGROUPS = Path("/sys/fs/cgroup")


def of_namespace(inode: int) -> list[int]:
    """Return the ids of the processes in the network namespace with this inode. Zombies have none."""
    found = []
    for pid in port_holders.processes():
        with suppress(OSError):
            if os.stat(f"{_PROC}/{pid}/ns/net").st_ino == inode:  # noqa: PTH116 - a Path for each process is slow
                found.append(pid)
    return found


def is_frozen(pid: int) -> bool:
    """Tell whether a process is stopped by a signal, or its cgroup is frozen."""
    with suppress(OSError):
        if Path(f"{_PROC}/{pid}/stat").read_text().rpartition(") ")[2][:1] in {"T", "t"}:
            return True
        for line in Path(f"{_PROC}/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if _is_frozen_group(controllers, path.lstrip("/")):
                return True
    return False


def _is_frozen_group(controllers: str, path: str) -> bool:
    """Tell whether a cgroup is frozen, or one above it. Beside those of v1, the tree of v2 has a place of its own."""
    if "freezer" in controllers.split(","):
        return _line("freezer", path, "freezer.state", "FROZEN")
    return not controllers and any(_line(tree, path, "cgroup.events", "frozen 1") for tree in ("", "unified"))


def _line(tree: str, path: str, file: str, wanted: str) -> bool:
    try:
        return wanted in (_CGROUPS / tree / path / file).read_text().splitlines()
    except OSError:
        return False


def owners(pids: Sequence[int], found: Iterable[tuple[int, Listener]]) -> Iterable[Listener]:
    """Yield the sockets, given by inode, with the process that has each, if it is one of these."""
    wanted = dict(found)
    holder: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError):
            for inode in {inode for _, inode in port_holders.sockets_of(pid)} & wanted.keys():
                holder.setdefault(inode, pid)
    for inode, listener in wanted.items():
        if pid := holder.get(inode, 0):
            with suppress(OSError):
                name = Path(f"{_PROC}/{pid}/comm").read_text().strip()
                yield replace(listener, process=name, pid=pid, frozen=is_frozen(pid))
                continue
        yield listener
