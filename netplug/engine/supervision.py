"""Background work of the daemon: restarted after each failure.

A full store, a Docker that answers nonsense or a kernel that refuses concerns only the task that works with it. So a
task that fails is retried with a growing delay, and the daemon goes on. The log has the first failure, each new reason,
and the recovery. Meanwhile `netplug diff` shows the fault. Only cancellation, and what is no `Exception`, ends a task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from netplug.engine.conditions import Conditions, Difference
from netplug.errors import Reportable
from netplug.store.api import StoreError, Unreachable

log = structlog.get_logger(__name__)

FIRST_S = 0.2
LAST_S = 10.0
"""Delay of the first and of late retries."""
STEADY_S = 5.0
"""A task that has run so long since its last failure has recovered."""
_MOST_LOGGED = 20
"""Different reasons that are logged until the task recovers."""
_SHOWN_AFTER = 2
"""Failures in a row: a single one is over before anybody could look."""


@dataclass(slots=True)
class _Trouble:
    """A task that fails. `logged`: the reasons that were logged; `since`: time of the loop."""

    since: float
    failures: int = 0
    logged: set[str] = field(default_factory=set)


class Supervisor:
    """Runs background tasks, each under its own name.

    No failure of a task reaches another one. A task that goes on failing is shown by `netplug diff`.
    """

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._troubles: dict[str, _Trouble] = {}

    async def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task, and restart it after each failure, until it ends by itself or is cancelled."""
        while True:
            steady = asyncio.get_running_loop().call_later(STEADY_S, self._succeeded, name)
            try:
                delay_s = await self.attempt(name, work())
            finally:
                steady.cancel()
            if not delay_s:
                return
            await asyncio.sleep(delay_s)

    async def attempt(self, name: str, work: Awaitable[object]) -> float:
        """Run a task once. Return 0 if it succeeded, else the delay of the next try in seconds."""
        try:
            await work
        except Exception as exc:  # noqa: BLE001 - that nothing gets past here is what this is for
            return self._failed(name, exc)
        self._succeeded(name)
        return 0.0

    def _failed(self, name: str, exc: Exception) -> float:
        trouble = self._troubles.setdefault(name, _Trouble(asyncio.get_running_loop().time()))
        delay_s = min(FIRST_S * 2.0 ** min(trouble.failures, 16), LAST_S)
        trouble.failures += 1
        text = _text(exc)
        if text not in trouble.logged and len(trouble.logged) < _MOST_LOGGED:
            trouble.logged.add(text)
            expected = isinstance(exc, StoreError | Reportable | OSError)
            log.warning("task.failed", task=name, error=text, retry_s=delay_s, exc_info=None if expected else exc)
        else:
            log.debug("task.failed", task=name, error=text, retry_s=delay_s)
        # An unreachable store is reported by its own watcher.
        shown = trouble.failures >= _SHOWN_AFTER and not isinstance(exc, Unreachable)
        found = [Difference("host", f"task {name}", f"fails: {text}")] if shown else []
        self._conditions.report(f"task {name}", found)
        return delay_s

    def _succeeded(self, name: str) -> None:
        if trouble := self._troubles.pop(name, None):
            lasted_s = round(asyncio.get_running_loop().time() - trouble.since, 1)
            log.info("task.recovered", task=name, failures=trouble.failures, after_s=lasted_s)
            self._conditions.report(f"task {name}", ())


def _text(exc: Exception) -> str:
    """Return the reason of a failure, in one line."""
    causes = exc.exceptions if isinstance(exc, ExceptionGroup) else (exc,)
    known = (StoreError, Reportable, OSError)
    words = (str(one) if isinstance(one, known) and str(one) else repr(one) for one in causes)
    return " ".join("; ".join(words).split())[:500]
