"""Which runtime started a plugin, and for which container, as far as its processes tell.

Two runtimes on one network know nothing of each other's containers, so what belongs to whom has to be told apart.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_BUFFER = 1 << 16
_MOST_PLUGINS = 8
"""How deep plugins may call each other."""
_LEAST_ID = 32
"""Signs of an id that a folder may be known by."""


def calling_runtime(pid: int) -> str:
    """Return which runtime a process was started by: program, process and its start; empty when that cannot be told.

    Plugins that call each other are passed over: they have a command in their environment.
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
    """Return what tells a process from all others of this boot: its id and its start.

    Raises:
        OSError: there is none.
    """
    return f"{pid} {_stat(pid)[19].decode()}"


def annotations(pid: int, container: str) -> Mapping[str, str]:
    """Return the annotations of a container in whose bundle a plugin runs; nothing where it does not.

    OCI runtimes start hooks in the bundle, and nerdctl calls plugins from a hook. The folder has the container's id for
    a name, before which nerdctl puts containerd's namespace when it calls.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        bundle = _PROC / str(pid) / "cwd"
        ident = bundle.readlink().name
        if len(ident) >= _LEAST_ID and (container == ident or container.endswith(f"-{ident}")):
            said = json.loads((bundle / "config.json").read_bytes())["annotations"]
            return {key: value for key, value in said.items() if isinstance(value, str)}
    return {}


def same_runtime(one: str, other: str) -> bool:
    """Tell whether two calls are of one runtime; it may have been started anew between them.

    Of two processes of one program that both live, each is a runtime of its own.
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
    """Return the fields of proc(5)'s stat from the state on: 1 is the parent, 19 the start."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    """Return what a file of a process says; not by a `Path`, since each attachment does it several times."""
    fd = os.open(f"{_PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _BUFFER), b""))
    finally:
        os.close(fd)
