"""Starts and ends the processes that probe and capture."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

_END_S = 2.0


async def spawned(module: str, longest_line: int) -> Process:
    """Start a module of this package as a process; it inherits the network namespace of this thread.

    Raises:
        OSError: no process can be started.
    """
    command = sys.executable, "-m", f"netplug.kernel.probes.{module}"
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=longest_line)


async def end(process: Process) -> None:
    """Kill a process, and wait until it has ended; the kernel takes away all that it made."""
    with suppress(ProcessLookupError):
        process.kill()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _END_S)
    finally:
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no other way
