"""Sandboxes as files: which namespace a path means, and whether anybody lives in it."""

import fcntl
import os
from pathlib import Path

from netplug.errors import NetplugError

from .netns import path_of

_OWN = "/proc/thread-self/ns/net"


def find(ref: str) -> tuple[str, str]:
    """Return the absolute path of a network namespace and its identity (device and inode).

    Raises:
        NetplugError: "not_found"; "invalid" when it is no network namespace, or the daemon's own.
    """
    path = os.path.abspath(path_of(ref))  # noqa: PTH100 - resolve() would follow /proc/…/ns/net to nowhere
    try:
        ident = _identity(path)
    except OSError as exc:
        hint = "ip netns ls shows those that have a name"
        raise NetplugError("not_found", f"there is no network namespace {ref!r}: {exc.strerror}", hint=hint) from None
    if ident == _identity(_OWN):
        raise NetplugError("invalid", f"{ref!r} is the host's own network namespace")
    if not _is_network_namespace(path):
        raise NetplugError("invalid", f"{ref!r} is not a network namespace")
    return path, ident


def inhabited(path: str) -> bool:
    """Tell whether a process lives in the namespace of this path; blocks for some microseconds a process."""
    try:
        wanted = _identity(path)
    except OSError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if _identity(f"{process}/ns/net") == wanted and not _is_zombie(process):
                return True
        except OSError:
            continue
    return False


def _identity(path: str) -> str:
    status = os.stat(path)  # noqa: PTH116 - a Path for each process of the host is dear
    return f"{status.st_dev}:{status.st_ino}"


def _is_network_namespace(path: str) -> bool:
    """Whether a file of the kernel's nsfs, as setns(2) wants; it says the kind itself (ioctl_ns(2), NS_GET_NSTYPE)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return fcntl.ioctl(fd, 0xB703) == 0x40000000
    except OSError:
        return False
    finally:
        os.close(fd)


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(") ")[2][:1] in {"Z", "X"}
