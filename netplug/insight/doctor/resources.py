"""Checks of what runs out: disk, file descriptors."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from netplug.insight.doctor.findings import Finding, failure, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.kernel.host.descriptors import ENOUGH, WANTED
from netplug.tasks.apart import apart

_FULL_BYTES, _NEARLY_BYTES = 10 << 20, 200 << 20
"""A database of a thousand endpoints has some MB, and SQLite needs as much again for its log."""
_INODES = 100
_NEARLY = 0.8


async def disk(host: HostSubject) -> Iterable[Finding]:
    """Find a file system that has no room for records or sockets."""
    folders = {"state": host.settings.state_dir, "sockets": host.settings.run_dir}
    found: list[Finding] = []
    for what, folder in folders.items():
        found += await apart(partial(_room, what, folder))
    return found


def _room(what: str, folder: Path) -> list[Finding]:
    there = next(it for it in (folder, *folder.parents) if it.exists())
    room = os.statvfs(there)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail if room.f_files else _INODES
    words = f"{free >> 20} MB are free at {folder} ({what})"
    mend = f"free some space: du -xh {there} | sort -h | tail"
    if room.f_flag & os.ST_RDONLY:
        return [failure(f"{folder} ({what}) is on a read-only file system", f"mount -o remount,rw {there}")]
    if free < _FULL_BYTES or inodes < _INODES:
        words = words if free < _FULL_BYTES else f"{inodes} inodes are free at {folder} ({what})"
        return [failure(f"{words}: no container can be connected", mend)]
    return [warning(words, mend)] if free < _NEARLY_BYTES else [ok(words)]


async def descriptors(host: HostSubject) -> Iterable[Finding]:
    """Find that the daemon has too few file descriptors for its endpoints and ports."""
    found = await apart(host.kernel.inspection.descriptors)
    service = "docker" if host.settings.managed else "netplug"
    mend = f"set LimitNOFILE={WANTED} in {service}.service (systemctl edit {service}), and restart the daemon"
    words = f"{found.open} of {found.limit} open files of the daemon are in use"
    if not host.daemon:
        return [ok("the daemon raises its limit itself")]
    if found.open >= found.limit * _NEARLY:
        return [failure(f"{words}: published ports and names of new containers are refused", mend)]
    if found.limit < ENOUGH:
        return [warning(f"{words}: a published port takes up to two, a container with names three", mend)]
    return [note(words, mend)] if found.open >= found.limit / 2 else [ok(words)]
