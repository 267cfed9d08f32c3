"""Chains and rules, by iptables-restore in as few processes as possible.

Docker and ufw use iptables, so only iptables rules can have a defined position among theirs. A process takes as long
for one rule as for a hundred. So all steps of a call are one transaction, and calls during a running transaction are
joined into the next one (group commit). The rules of our chains are cached, so a published port needs one process. The
cache is refreshed for built-in chains, at each `drift`, and after each failure. If a joined transaction fails, each
call is retried alone.

Foreign rules need not be valid text: a comment may have any bytes. They are kept unchanged (surrogateescape).
"""

import asyncio
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from netplug.drivers.steps import Chain, Jump
from netplug.kernel.api import Drift, Outcome, StepError
from netplug.kernel.firewall import iptables_rules
from netplug.kernel.firewall.iptables_rules import FirewallStep, Model, Transaction
from netplug.tasks.uncancellable import uncancellable

log = structlog.get_logger(__name__)

DEADLINE_S = 20
"""Of a process. 10000 rules take 0.1 s; other users of iptables-legacy may hold its lock for some seconds."""
LOCK_WAIT_S = 10
"""How long iptables-legacy waits for its lock."""

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_LINE = re.compile(r"\bline:? (\d+)")


@dataclass(slots=True, eq=False)
class _Request:
    """What one caller wants; `created`: keys of steps that a failed try may already have applied."""

    steps: Sequence[FirewallStep]
    remove: bool
    done: asyncio.Future[list[Outcome]]
    created: set[str] = field(default_factory=set)


class _UnavailableError(Exception):
    """There is no iptables of this family that can be used; says why."""


class _FailedError(_UnavailableError):
    """There is one, and it fails to read the tables: what is in them is not known."""


class Firewall:
    """The tables of one IP version in this namespace.

    Args:
        family: 4 or 6.
        backend: "" for the host's default, else "nft" or "legacy".

    `lack`: why the program could not be used when it was last tried; empty when it could.
    """

    def __init__(self, family: int, backend: str = "") -> None:
        self._program = _PROGRAMS[family] + (f"-{backend}" if backend else "")
        self._family = family
        self._model = Model()
        self._queue: list[_Request] = []
        self._lock = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self.lack = ""

    @property
    def busy(self) -> bool:
        """Whether a process of ours is at work."""
        return self._worker is not None and not self._worker.done()

    async def open(self) -> None:
        """Read our chains; a host without iptables fails only when there is something to be done, and is told now."""
        try:
            await self.read()
        except OSError as error:  # it hangs: it may not, when there is something to be done
            self.lack = str(error)
        if self.lack:
            log.warning("firewall.unavailable", program=self._program, reason=self.lack)

    async def ensure(self, steps: Sequence[FirewallStep], outcomes: list[Outcome]) -> None:
        """Apply steps in one transaction: all or none."""
        await self._submit(steps, outcomes, remove=False)

    async def remove(self, steps: Sequence[FirewallStep]) -> list[StepError]:
        """Remove steps, in one transaction if possible, and return what failed.

        Without iptables there is nothing: what is left of a time when there was goes with a sweep, once it is back.
        Where it is there and fails, what is to be removed may be there too.
        """
        try:
            await self._submit(steps, [], remove=True)
        except StepError as error:
            if error.kind == "unavailable":
                return []
            if len(steps) == 1:
                return [error]
            return [failure for step in steps for failure in await self.remove((step,))]
        return []

    async def read(self) -> Model:
        """Read the tables, renewing what we remember, and return them. Empty where there is no iptables."""
        async with self._lock:
            try:
                await self._read()
            except _UnavailableError as error:
                self.lack = str(error)
                self._model = Model()
            return self._model

    async def drift(self, steps: Sequence[FirewallStep]) -> list[Drift]:
        """Compare steps with the tables."""
        model = await self.read()
        return [Drift(step, what) for step in steps if (what := iptables_rules.drift(model, step))]

    async def close(self) -> None:
        """Let what is running come to its end."""
        if self._worker:
            await asyncio.wait([self._worker])

    async def _submit(self, steps: Sequence[FirewallStep], outcomes: list[Outcome], *, remove: bool) -> None:
        request = _Request(steps, remove, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        if self._worker is None or self._worker.done():
            # Outside a TaskGroup: it serves several callers, and ends with the queue.
            self._worker = asyncio.get_running_loop().create_task(self._work(), name="netplug-firewall")
        try:
            await asyncio.wait([request.done])
        except asyncio.CancelledError:
            if request in self._queue:
                self._queue.remove(request)
                request.done.cancel()
            else:
                # A running process cannot be stopped; its deadline bounds the wait.
                with suppress(StepError):
                    await uncancellable(request.done, outcomes.extend)
            raise
        outcomes += request.done.result()

    async def _work(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                if len(batch) > 1 and not await self._try(batch):
                    for request in batch:
                        await self._alone(request)
                elif len(batch) == 1:
                    await self._alone(batch[0])
            except BaseException as error:
                # Nobody may wait for ever, whatever it was.
                for request in batch:
                    if not request.done.done():
                        self._fail(request, error)
                if not isinstance(error, Exception):
                    raise

    async def _try(self, batch: list[_Request]) -> bool:
        try:
            await self._commit(batch, fresh=False)
        except Exception:  # noqa: BLE001 - each is tried alone, and then it counts
            return False
        return True

    async def _alone(self, request: _Request) -> None:
        try:
            if not await self._try([request]):
                await self._commit([request], fresh=True)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            if not request.remove:
                await self._undo(request)
            self._fail(request, error)

    def _fail(self, request: _Request, error: BaseException) -> None:
        if not isinstance(error, StepError):
            error = StepError("internal", request.steps[0], f"{self._program}: {str(error) or type(error).__name__}")
        request.done.set_exception(error)
        # Whoever was cancelled does not look.
        request.done.exception()

    async def _commit(self, batch: list[_Request], *, fresh: bool) -> None:
        async with self._lock:
            # Built-in chains belong to all; content that is replaced or emptied must be known exactly.
            if fresh or self.lack or any(isinstance(step, Jump | Chain) for request in batch for step in request.steps):
                try:
                    await self._read()
                except _UnavailableError as error:
                    raise self._unavailable(batch[0].steps[0], error) from error
            transaction = Transaction(self._model.copy())
            results = [self._plan(transaction, request) for request in batch]
            await self._restore(transaction)
            self._model = transaction.model
        for request, outcomes in zip(batch, results, strict=True):
            request.done.set_result(outcomes)

    @staticmethod
    def _plan(transaction: Transaction, request: _Request) -> list[Outcome]:
        outcomes: list[Outcome] = []
        if request.remove:
            transaction.empty(request.steps)
        for step in request.steps:
            if request.remove:
                transaction.remove(step)
                continue
            outcome = transaction.ensure(step)
            if outcome is Outcome.CREATED:
                request.created.add(step.key)
            outcomes.append(Outcome.CREATED if step.key in request.created else outcome)
        return outcomes

    async def _undo(self, request: _Request) -> None:
        """Take back what a failed transaction left: each table is committed by itself."""
        created = [step for step in reversed(request.steps) if step.key in request.created]
        if created:
            async with self._lock:
                try:
                    await self._read()
                    transaction = Transaction(self._model.copy())
                    transaction.empty(created)
                    for step in created:
                        transaction.remove(step)
                    await self._restore(transaction)
                    self._model = transaction.model
                except Exception:  # noqa: BLE001
                    return  # the first error is the one to report; drift() will show the rest

    async def _restore(self, transaction: Transaction) -> None:
        if not transaction.lines:
            return
        text, origin = transaction.render()
        try:
            code, _, errors = await self._run(
                f"{self._program}-restore", "--noflush", "-w", str(LOCK_WAIT_S), text=text
            )
        except _UnavailableError as error:
            raise self._unavailable(origin[0], error) from error
        if code:
            match = _LINE.search(errors)
            step = origin[min(int(match[1]), len(origin)) - 1] if match else origin[0]
            lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("Try `")]
            raise StepError("internal", step, f"{self._program} refused {step.key!r}: {' '.join(lines)}")

    async def _read(self) -> None:
        code, saved, errors = await self._run(f"{self._program}-save")
        if code:
            raise _FailedError(" ".join(errors.split()) or f"{self._program}-save ends with {code}")
        self._model = Model.parse(saved, self._model.opened)
        self.lack = ""

    async def _run(self, *command: str, text: str = "") -> tuple[int, str, str]:
        def run() -> subprocess.CompletedProcess[bytes]:
            # In a thread: asyncio's own subprocesses cost as much, and need a watcher for each child.
            sent = text.encode(errors="surrogateescape")
            return subprocess.run(command, input=sent, capture_output=True, timeout=DEADLINE_S, check=False)

        try:
            done = await asyncio.to_thread(run)
        except FileNotFoundError as error:
            raise _UnavailableError(f"{command[0]} is missing") from error
        except OSError as error:  # it may not be executed, or is of another machine
            raise _UnavailableError(f"{command[0]} cannot be started: {error.strerror or error}") from error
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{command[0]} did not end within {DEADLINE_S} s") from error
        return done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="replace")

    def _unavailable(self, step: FirewallStep, reason: _UnavailableError) -> StepError:
        self.lack = str(reason)
        words = f"{self._program} does not work on this host: {reason}"
        if isinstance(reason, _FailedError):
            return StepError("internal", step, words, hint=f"see what {self._program}-save says")
        return StepError("unavailable", step, words, hint="install iptables, which networks with a gateway need")
