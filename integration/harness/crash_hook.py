"""Points at which a netplug process can be made to die by SIGKILL: after each change of kernel, firewall and store.

`install` wraps the few functions through which all changes go. The product knows nothing of it: `crash_server` calls it
before netplug begins. A harness says by a small shared file (`Control`) whether points are counted, and at which one
the process dies. The kernel ends a process that kills itself before the call returns.
"""

import functools
import mmap
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LAYOUT = struct.Struct("=qq")
COUNT_ALL = 0
OFF = -1


class Control:
    """What a harness and a process share.

    `limit`: the point to die at, `COUNT_ALL` or `OFF`. `count`: points passed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, _LAYOUT.size)
            self._map = mmap.mmap(fd, _LAYOUT.size)
        finally:
            os.close(fd)

    def arm(self, limit: int) -> None:
        """Count from now on, and die at the point of this number; the first is 1."""
        self._names.unlink(missing_ok=True)
        _LAYOUT.pack_into(self._map, 0, limit, 0)

    def disarm(self) -> None:
        """Count no more."""
        _LAYOUT.pack_into(self._map, 0, OFF, self.count)

    @property
    def limit(self) -> int:
        return int(_LAYOUT.unpack_from(self._map)[0])

    @property
    def count(self) -> int:
        return int(_LAYOUT.unpack_from(self._map)[1])

    @property
    def _names(self) -> Path:
        return self._path.with_suffix(".names")

    def names(self) -> list[str]:
        """Return what was done before each point."""
        return self._names.read_text().splitlines() if self._names.exists() else []

    def passed(self, name: str) -> None:
        """Count a point; may not return."""
        limit, count = _LAYOUT.unpack_from(self._map)
        if limit == OFF:
            return
        _LAYOUT.pack_into(self._map, 0, limit, count + 1)
        with self._names.open("a") as out:
            out.write(f"{name}\n")
        if count + 1 == limit:
            os.kill(os.getpid(), signal.SIGKILL)


class Points:
    """Wraps functions so that a point follows each call of them."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        with self._lock:
            self._control.passed(name)

    def after(self, owner: Any, attribute: str, name: Callable[..., str]) -> None:
        """Have a point follow each call that ends well; `name`: its name by the arguments, "" for none."""
        wrapped = getattr(owner, attribute)

        @functools.wraps(wrapped)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            if said := name(*args, **kwargs):
                self.passed(said)
            return result

        setattr(owner, attribute, call)

    def after_awaiting(self, owner: Any, attribute: str, name: Callable[..., str]) -> None:
        """As `after`, for a coroutine function."""
        wrapped = getattr(owner, attribute)

        @functools.wraps(wrapped)
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await wrapped(*args, **kwargs)
            if said := name(*args, **kwargs):
                self.passed(said)
            return result

        setattr(owner, attribute, call)


def install(control: Control) -> None:
    """Wrap what changes kernel, firewall and store, in this process."""
    from netplug.kernel.host.ports import Ports  # noqa: PLC0415 - the harness itself has no need of them
    from netplug.kernel.netlink.connection import Netlink  # noqa: PLC0415
    from netplug.store.database import Database  # noqa: PLC0415
    from netplug.store.etcd import EtcdStore  # noqa: PLC0415

    points = Points(control)
    points.after(Database, "txn", lambda _, __, writes, **___: _keys("store", [it.key.decode() for it in writes]))
    points.after_awaiting(EtcdStore, "txn", lambda _, __, ops, **___: _keys("etcd", [it.key for it in ops]))
    points.after_awaiting(EtcdStore, "lease", lambda *_: "etcd lease")
    points.after_awaiting(EtcdStore, "revoke", lambda *_: "etcd lease revoked")
    points.after(Netlink, "request", lambda _, kind, *__: f"netlink {_MESSAGES.get(kind, kind)}")
    points.after(Netlink, "batch", lambda *_: "firewall commit")
    points.after(Ports, "_bind", lambda _, step, *__: f"port {step.port} bound")
    points.after(Ports, "_remove", lambda _, step: f"port {step.port} released")
    points.after(Path, "write_text", lambda path, *_, **__: f"file {_brief(path)}")
    points.after(os, "write", lambda fd, _: _sysctl(fd))
    points.after(subprocess, "run", lambda command, *_, **__: _program(command))
    for name in ("replace", "unlink", "mkdir", "rmdir", "rename"):
        points.after(os, name, lambda path, *_, name=name, **__: f"{name} {_brief(path)}")  # type: ignore[misc]


_MESSAGES = {
    16: "RTM_NEWLINK",
    17: "RTM_DELLINK",
    19: "RTM_SETLINK",
    20: "RTM_NEWADDR",
    21: "RTM_DELADDR",
    24: "RTM_NEWROUTE",
    25: "RTM_DELROUTE",
    28: "RTM_NEWNEIGH",
    29: "RTM_DELNEIGH",
    32: "RTM_NEWRULE",
    33: "RTM_DELRULE",
    36: "RTM_NEWQDISC",
    37: "RTM_DELQDISC",
    44: "RTM_NEWTFILTER",
    108: "RTM_NEWLINKPROP",
}


def _keys(store: str, keys: list[str]) -> str:
    if not keys:
        return ""
    kinds = sorted({key.rpartition("/")[0] or key for key in keys})
    return f"{store} {' '.join('journal' if it == 'journal' else it.partition('/')[0] for it in kinds)}"


def _brief(path: Any) -> str:
    return str(path).removeprefix("/proc/sys/")


def _sysctl(fd: int) -> str:
    try:
        target = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return ""
    return f"file {_brief(target)}" if target.startswith("/proc/sys/") else ""


def _program(command: Any) -> str:
    words = [command] if isinstance(command, str) else [str(it) for it in command]
    name = words[0].rpartition("/")[2]
    return "" if name.endswith("-save") or "-V" in words else f"program {name}"
