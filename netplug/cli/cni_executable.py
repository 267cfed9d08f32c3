"""The CNI executable that `netplug cni install` writes.

A runtime waits for it at each command, so the time that it takes to start counts: 0.5 ms in C, 6 ms in Python. If the
program of packaging/cni/shim.c was built and runs on this host, the command writes that. Otherwise it writes a script
that calls `netplug.frontends.cni.shim`, with the same behaviour.
"""

import os
import struct
import sys
from pathlib import Path

from netplug.frontends.cni import shim

PROGRAM = Path(shim.__file__).with_name("cni-shim")
"""The built program (packaging/cni/build.py); a package that was built without a compiler has none."""
PYTHON = Path("/usr/bin/python3")
"""The system's Python starts faster than one in a virtual environment."""
_LEAST = (3, 8)
_SETTINGS = struct.Struct("32s32s4096s4096s")
"""`settings` of shim.c: a mark to find them, the version, the run directory, and the Python that has netplug."""
_MARK = b"netplug-cni-settings".ljust(32, b"\0")
_LONGEST_FIRST_LINE = 127
"""Some kernels read no more of a script's first line; the interpreter's path ends at a space (execve(2))."""


def executable(run_dir: Path) -> bytes:
    """Return the executable's content. `run_dir`: of the daemon."""
    return program(run_dir) or script(run_dir).encode(errors="surrogateescape")


def program(run_dir: Path, engine: str = "") -> bytes:
    """Return the built program with this installation's settings; empty if none runs on this host."""
    if not _runs(PROGRAM):
        return b""
    data = bytearray(PROGRAM.read_bytes())
    texts = [text.encode(errors="surrogateescape") for text in (shim.VERSION, str(run_dir), engine or sys.executable)]
    _SETTINGS.pack_into(data, data.index(_MARK), _MARK, *texts)
    return bytes(data)


def script(run_dir: Path) -> str:
    """Return the script in Python; it is short, since it is compiled at each start."""
    interpreter = _python()
    first = f"#!{interpreter} -IS\n"
    if len(first) > _LONGEST_FIRST_LINE or " " in interpreter:
        # To the shell this is a command, to Python a string.
        first = f"#!/bin/sh\n'''exec' \"{interpreter}\" -IS \"$0\" \"$@\"\n' '''\n"
    folder = str(Path(shim.__file__).parent)
    return (
        f"{first}# Written by 'netplug cni install'.\n"
        f"import sys; sys.path.insert(0, {folder!r}); import shim\n"
        f"shim.run({str(run_dir)!r}, {sys.executable!r})\n"
    )


def _runs(program: Path) -> bool:
    """Tell whether a program runs on this host; it may be for another machine, or need a newer C library."""
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    try:
        pid = os.posix_spawn(program, (program, "info"), {}, file_actions=silent)
    except OSError:
        return False
    return os.waitpid(pid, 0)[1] == 0


def _python() -> str:
    """Return the system's Python if it is new enough, otherwise this process's."""
    try:
        # Debian's /usr/bin/python3 is a link to python3.11.
        version = tuple(int(part) for part in PYTHON.resolve(strict=True).name.removeprefix("python").split("."))
    except (OSError, ValueError):
        version = ()
    return str(PYTHON) if version >= _LEAST else sys.executable
