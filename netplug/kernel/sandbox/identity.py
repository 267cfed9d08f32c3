"""Network namespaces as files: which namespace a path refers to, and whether it has processes."""

import fcntl
import os
from pathlib import Path

from netplug.errors import NetplugError
from netplug.kernel.sandbox.netns import identity, path_of

_OWN = "/proc/thread-self/ns/net"


def find(ref: str) -> tuple[str, str]:
    """Return the absolute path of a network namespace and its identity.

    Raises:
        NetplugError: "not_found"; "invalid" if it is not a network namespace, or is the daemon's own.
    """
    path = os.path.abspath(path_of(ref))  # noqa: PTH100 - resolve() would follow the magic link /proc/…/ns/net
    try:
        number = _number(path)
    except OSError as exc:
        hint = "ip netns list shows the named ones"
        raise NetplugError("not_found", f"there is no network namespace {ref!r}: {exc.strerror}", hint=hint) from None
    if number == _number(_OWN):
        raise NetplugError("invalid", f"{ref!r} is the host's own network namespace")
    if (ident := _identity(path)) is None:
        raise NetplugError("invalid", f"{ref!r} is not a network namespace")
    return path, ident


def has_processes(path: str, netns_id: str = "") -> bool:
    """Return whether any process is in the namespace of this identity or, without one, of this path.

    Blocks for some microseconds for each process of the host.
    """
    try:
        wanted = netns_id.rsplit(":", 2)[0] if netns_id else _number(path)
    except OSError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if _number(netns := f"{process}/ns/net") != wanted or _is_zombie(process):
                continue
            if not netns_id or _identity(netns) == netns_id:
                return True
        except OSError:
            continue
    return False


def _number(path: str) -> str:
    """Return device and inode. The kernel reuses them for later namespaces."""
    status = os.stat(path)  # noqa: PTH116 - a Path for each process of the host is slow
    return f"{status.st_dev}:{status.st_ino}"


def _identity(path: str) -> str | None:
    """Return the identity of a network namespace; None if the file is something else.

    A namespace file of the kernel's nsfs tells its type by NS_GET_NSTYPE (ioctl_ns(2)).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return identity(fd) if fcntl.ioctl(fd, 0xB703) == 0x40000000 else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(") ")[2][:1] in {"Z", "X"}
