"""Runs the process that probes (`worker`), and speaks with it: one JSON object a line, answers in any order."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from netplug.errors import NetplugError
from netplug.kernel.probes import spawning
from netplug.kernel.probes.api import Facts, Job, Look, Neighbours, Report
from netplug.kernel.probes.codec import from_json, to_json

_LONGEST_LINE = 1 << 24
_PATIENCE_S = 20.0
"""For an answer, beside the time that the work itself takes. A host under load starts a process in some seconds."""


class WorkerProbes:
    """Starts a process for each trace; see `api.Probes`."""

    @asynccontextmanager
    async def start(self) -> AsyncIterator["WorkerProber"]:
        """Start one; it inherits the network namespace of this thread."""
        try:
            process = await spawning.spawned("worker", _LONGEST_LINE)
        except OSError as error:
            raise NetplugError("unavailable", f"no process can be started for probes: {error.strerror}") from error
        prober = WorkerProber(process)
        reading = asyncio.create_task(prober.read())
        try:
            yield prober
        finally:
            reading.cancel()
            await spawning.end(process)
            await asyncio.gather(reading, return_exceptions=True)


@dataclass(slots=True)
class _Pending:
    """A request. `ready`: a watch is open."""

    answer: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class WorkerProber:
    """The running process; see `api.Prober`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}

    async def run(self, job: Job) -> Report:
        """Send, watch, and return what was seen."""
        return from_json(Report, await self._ask("run", to_json(job), job.wait_ms))

    @asynccontextmanager
    async def watch(self, job: Job) -> AsyncIterator["WorkerWatch"]:
        """Watch what another host sends."""
        number, pending = self._send("watch", to_json(job))
        try:
            await self._until_ready(pending)
            yield WorkerWatch(self, number, pending)
        finally:
            self._pending.pop(number, None)
            with suppress(NetplugError):
                self._write({"id": number, "do": "end"})

    async def who_has(self, netns: str, link: str, address: Any, wait_ms: int = 300) -> Neighbours:
        """Ask a segment who has an address."""
        body = {"netns": netns, "link": link, "address": str(address), "wait_ms": wait_ms}
        return from_json(Neighbours, await self._ask("who_has", body, wait_ms))

    async def look(self, look: Look) -> Facts:
        """Read what there is in a namespace."""
        # A host with a thousand links takes 40 ms, during which the loop has to answer others.
        return await asyncio.to_thread(from_json, Facts, await self._ask("look", to_json(look)))

    async def read(self) -> None:
        """Read answers until the process ends."""
        answers = self._process.stdout
        try:
            while answers and (line := await answers.readline()):
                self._take(json.loads(line))
        finally:
            for pending in self._pending.values():
                _fail(pending, "the process that probes ended")

    async def end(self, number: int, pending: _Pending) -> Any:
        """End a watch and return its report as JSON."""
        self._write({"id": number, "do": "end"})
        return await self._answer(pending)

    async def _ask(self, do: str, body: Any, wait_ms: int = 0) -> Any:
        number, pending = self._send(do, body)
        try:
            return await self._answer(pending, wait_ms)
        finally:
            self._pending.pop(number, None)

    def _send(self, do: str, body: Any) -> tuple[int, _Pending]:
        number, pending = next(self._numbers), _Pending()
        self._write({"id": number, "do": do, "body": body})
        self._pending[number] = pending
        return number, pending

    def _write(self, message: Any) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing() or self._process.returncode is not None:
            raise NetplugError("unavailable", "the process that probes ended")
        stdin.write(json.dumps(message).encode() + b"\n")

    @staticmethod
    async def _answer(pending: _Pending, wait_ms: int = 0) -> Any:
        try:
            async with asyncio.timeout(_PATIENCE_S + wait_ms / 1000):
                return await pending.answer
        except TimeoutError as error:
            raise NetplugError("unavailable", f"the process that probes did not answer in {_PATIENCE_S:g} s") from error

    async def _until_ready(self, pending: _Pending) -> None:
        ready = asyncio.ensure_future(pending.ready.wait())
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.wait((ready, pending.answer), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            raise NetplugError("unavailable", f"no watch was open in {_PATIENCE_S:g} s") from error
        finally:
            ready.cancel()
        if pending.answer.done():
            await pending.answer

    def _take(self, message: Any) -> None:
        pending = self._pending.get(message["id"])
        if pending is None or pending.answer.done():
            return
        if message.get("ready"):
            pending.ready.set()
        elif error := message.get("error"):
            _fail(pending, error)
        else:
            pending.answer.set_result(message["result"])


@dataclass(frozen=True, slots=True)
class WorkerWatch:
    """A watch; see `api.Watch`."""

    prober: WorkerProber
    number: int
    pending: _Pending

    async def report(self) -> Report:
        """End it, and return what was seen."""
        return from_json(Report, await self.prober.end(self.number, self.pending))


def _fail(pending: _Pending, words: str) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(NetplugError("unavailable", words))
        pending.answer.exception()  # it may be that nobody waits for it
