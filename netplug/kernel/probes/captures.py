"""Captures for other hosts: each is a process of its own (`capture_worker`), which this daemon asks for packets."""

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from netplug.errors import NetplugError
from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes import spawning
from netplug.kernel.probes.capture import Place

MOST_AT_ONCE = 8
"""Captures for other hosts; each has a process of 25 MB."""
_LONGEST_LINE = 1 << 21
_START_S, _ANSWER_S = 15.0, 5.0


@dataclass(slots=True)
class _Running:
    process: asyncio.subprocess.Process
    lock: asyncio.Lock

    async def ask(self, message: dict[str, Any], patience_s: float) -> dict[str, Any]:
        """Send a line, and return what is answered."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise ConnectionResetError
        async with self.lock, asyncio.timeout(patience_s):
            stdin.write(json.dumps(message).encode() + b"\n")
            await stdin.drain()
            line = await stdout.readline()
        if not line:
            raise ConnectionResetError
        found: dict[str, Any] = await asyncio.to_thread(json.loads, line)
        return found


class Captures:
    """The running captures by id. Those that nobody asks any more end by themselves, and are forgotten."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}

    async def start(self, place: Place, code: Sequence[Instruction]) -> dict[str, Any]:
        """Start a capture; returns its id, the link, and the time on this host.

        Raises:
            NetplugError: "unavailable": it cannot be started, or there are too many.
        """
        for ident in [ident for ident, it in self._running.items() if it.process.returncode is not None]:
            await self.stop(ident)
        if len(self._running) >= MOST_AT_ONCE:
            words = f"this host captures {MOST_AT_ONCE} links for others already"
            raise NetplugError("unavailable", words, hint="end one of these captures")
        ident = secrets.token_hex(6)
        try:
            process = await spawning.spawned("capture_worker", _LONGEST_LINE)
        except OSError as error:
            raise NetplugError("unavailable", f"no process can be started: {error.strerror}") from error
        self._running[ident] = running = _Running(process, asyncio.Lock())
        try:
            found = await running.ask({"place": asdict(place), "code": [list(it) for it in code]}, _START_S)
        except (OSError, TimeoutError, ValueError) as error:
            await self.stop(ident)
            raise NetplugError("unavailable", "the process that captures did not start") from error
        except BaseException:
            await self.stop(ident)
            raise
        if why := found.get("error"):
            await self.stop(ident)
            raise NetplugError("unavailable", str(why))
        return {"capture": ident, **found}

    async def fetch(self, ident: str) -> dict[str, Any]:
        """Take packets out of a capture.

        Raises:
            NetplugError: "not_found": it has ended.
        """
        running = self._running.get(ident)
        try:
            if running is None:
                raise ConnectionResetError
            return await running.ask({}, _ANSWER_S)
        except (OSError, TimeoutError, ValueError) as error:
            await self.stop(ident)
            raise NetplugError("not_found", f"capture {ident[:20]!r} has ended") from error

    async def stop(self, ident: str) -> None:
        """End a capture. One that is not there is none any more."""
        if running := self._running.pop(ident, None):
            await spawning.end(running.process)
