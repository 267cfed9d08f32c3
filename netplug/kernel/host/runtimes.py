"""Finds the runtime that called a plugin, and the container, by the processes of the host.

Two runtimes on one network know nothing of each other's containers, so each endpoint's runtime must be known.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_BUFFER = 1 << 16
_MOST_PLUGINS = 8
"""How many plugins may call each other in a chain."""
_MIN_ID_LENGTH = 32
"""Characters of a container's id, as the name of its bundle's directory."""


def calling_runtime(pid: int) -> str:
    """Return the runtime that started a process: program, process id and start time; empty if it is unknown.

    Plugins that call other plugins are skipped. They have CNI_COMMAND in their environment.
    """
    with suppress(OSError, ValueError, IndexError):
        for _ in range(_MOST_PLUGINS):
            pid = int(_stat(pid)[1])
            if pid == 0:
                break
            if not any(word.startswith(b"CNI_COMMAND=") for word in _read(pid, "environ").split(b"\0")):
                program = os.readlink(f"{_PROC}/{pid}/exe").removesuffix(" (deleted)")  # noqa: PTH115
                return f"{program} {process_identity(pid)}"
    return ""


def process_identity(pid: int) -> str:
    """Return a string that identifies a process during this boot: its id and start time.

    Raises:
        OSError: there is no such process.
    """
    return f"{pid} {_stat(pid)[19].decode()}"


def annotations(pid: int, container: str) -> Mapping[str, str]:
    """Return the annotations of a container if the plugin runs in its bundle, else nothing.

    OCI runtimes start hooks in the bundle, and nerdctl calls plugins from a hook. The directory's name is the
    container's id. nerdctl prefixes the id that it passes to plugins with containerd's namespace.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        bundle = _PROC / str(pid) / "cwd"
        ident = bundle.readlink().name
        if len(ident) >= _MIN_ID_LENGTH and (container == ident or container.endswith(f"-{ident}")):
            found = json.loads((bundle / "config.json").read_bytes())["annotations"]
            return {key: value for key, value in found.items() if isinstance(value, str)}
    return {}


def same_runtime(one: str, other: str) -> bool:
    """Return whether two calls came from one runtime, which may have been restarted in between.

    Two running processes of one program are two runtimes.
    """
    if one == other:
        return True
    (program, *process), (other_program, *_) = one.rsplit(" ", 2), other.rsplit(" ", 2)
    return program == other_program and not _runs(*process)


def _runs(pid: str = "", started: str = "") -> bool:
    with suppress(OSError, ValueError, IndexError):
        return _stat(int(pid))[19].decode() == started
    return False


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) from the state on: field 1 is the parent, 19 the start time."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    """Return the content of a file in /proc/PID. It uses os.open(), since each attach reads several."""
    fd = os.open(f"{_PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _BUFFER), b""))
    finally:
        os.close(fd)
