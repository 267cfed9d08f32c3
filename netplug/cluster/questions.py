"""Questions to the daemons of other hosts, by the shared store: no daemon listens for another one.

A question is a record below the host that is asked, its answer a record below the host that asked. Each host watches
what is below it, and nothing else, so daemons that know no questions are not disturbed. Both records are under the
lease of the host that asked: they vanish with it. An answer replaces its question in one transaction, so nobody answers
what nobody waits for any more. Times are durations: clocks of hosts differ.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import structlog

from netplug import __version__
from netplug.cluster.answer_size import fit
from netplug.cluster.claims import CircuitBreaker
from netplug.cluster.identity import AdmissionGate
from netplug.cluster.membership import Membership
from netplug.cluster.records import ALIVE, HOSTS
from netplug.cluster.view import View, name_of
from netplug.drivers.codec import JsonObject
from netplug.drivers.naming import short
from netplug.engine.supervision import Supervisor
from netplug.errors import NetplugError, Reportable
from netplug.store.api import Compacted, Compare, Delete, Event, Put, Record, StoreError, Unreachable

log = structlog.get_logger(__name__)

BOXES = "questions/"
"""Not in `cluster/`, which all hosts watch. Key: the host it is for, "ask" or "answer", the other host, a number."""
MOST_BYTES = 512 * 1024
"""Of an answer: etcd takes requests of 1.5 MB."""
MOST_ASKED_BYTES = 64 * 1024
MOST_AT_ONCE = 16
"""Questions that a host answers at the same time."""
_RETRY_S = 1.0
_MOMENT_S = 1.0
"""In which a store that has failed answers again: the heartbeat asks it at once."""
_WITHDRAW_S = 2.0
_POLL_S = 0.05
_LONGEST_S = 600.0
_NO_STORE = "the shared store does not answer"

Handler = Callable[[JsonObject], Awaitable[JsonObject]]


class Reason(Enum):
    """Why there is no answer."""

    NO_HOST = "no such host"
    NOT_ALIVE = "not alive"
    SILENT = "no answer"
    UNKNOWN_KIND = "unknown kind"
    STORE = "store"
    REFUSED = "refused"


class Unanswered(NetplugError):  # noqa: N818 - reads well where it is caught
    """A question got no answer. `reason`: why; `host`: the name of the host that was asked."""

    def __init__(self, reason: Reason, host: str, kind: str, message: str, *, hint: str = "") -> None:
        super().__init__(kind, message, hint=hint)
        self.reason = reason
        self.host = host


@dataclass(frozen=True, slots=True)
class _Question:
    """A question of another host. `lease`: of that host; `answer_key`: where it waits for the answer."""

    asker: str
    kind: str
    body: JsonObject
    deadline_s: float
    lease: int
    answer_key: str


class Questions:
    """Asks other hosts (`ask`), and answers them (`answer`)."""

    def __init__(
        self,
        store: AdmissionGate,
        view: View,
        membership: Membership,
        breaker: CircuitBreaker,
        supervisor: Supervisor,
    ) -> None:
        self._gate = store
        # Also in a store with older data: questions are about the present.
        self._store = store.store.unguarded
        self._view = view
        self._membership = membership
        self._breaker = breaker
        self._supervisor = supervisor
        self._me = membership.me
        self._box = f"{BOXES}{self._me}/"
        self._handlers: dict[str, Handler] = {}
        self._awaited: dict[str, asyncio.Future[JsonObject]] = {}
        self._answering: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def answer(self, kind: str, handler: Handler) -> None:
        """Answer questions of a kind. The handler returns the answer, or raises what the other host is to be told.

        It is cancelled when the other host does not wait any more.
        """
        self._handlers[kind] = handler

    # Asking

    async def ask(self, host: str, kind: str, body: JsonObject, deadline_s: float) -> JsonObject:
        """Ask another host a question, and return its answer.

        A store that has failed for a moment is asked again.

        Args:
            host: its id or its name.
            kind: what the other daemon has a handler for.
            body: of `MOST_ASKED_BYTES` at most.
            deadline_s: how long to wait in all. The other daemon does not work on it longer.

        Raises:
            Unanswered: there is no answer; `reason` says why.
        """
        ident = self._find(host)
        name = name_of(self._view, ident)
        self._check(ident, name, body)
        number = secrets.token_hex(8)
        key = f"{BOXES}{ident}/ask/{self._me}/{number}"
        self._awaited[number] = found = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline_s):
                question: JsonObject = {"kind": kind, "body": body, "deadline_s": deadline_s}
                await self._send(ident, name, key, question, min(_MOMENT_S, deadline_s / 2))
                return self._opened(name, kind, await found)
        except TimeoutError:
            await self._withdraw(name, key)
            words = f"host {name} did not answer within {deadline_s:g} s"
            hint = "see whether netplug runs there, and reaches the store"
            raise Unanswered(Reason.SILENT, name, "unavailable", words, hint=hint) from None
        except asyncio.CancelledError:
            self._spawn(self._delete(key))
            raise
        finally:
            del self._awaited[number]

    def _find(self, ref: str) -> str:
        """Return the id of a host."""
        hosts = self._view.hosts()
        found = [ref] if ref in hosts else [ident for ident, host in hosts.items() if host.name == ref]
        if not found and not self._view.synced.is_set():
            raise self._no_store(ref, "the hosts of the cluster have not been read from it yet")
        if not found:
            names = ", ".join(sorted(host.name for host in hosts.values()))
            words = f"there is no host {ref!r}"
            raise Unanswered(Reason.NO_HOST, ref, "not_found", words, hint=f"there are {names}")
        if len(found) > 1:
            ids = ", ".join(map(short, found))
            words = f"several hosts are called {ref!r}"
            raise Unanswered(Reason.NO_HOST, ref, "invalid", words, hint=f"give an id: {ids}")
        return found[0]

    def _check(self, ident: str, name: str, body: JsonObject) -> None:
        """Raise an error if this question is not sent, whatever the store does."""
        if ident == self._me:
            raise NetplugError("invalid", f"host {name} is this host: it is not asked by the store")
        if (size := len(json.dumps(body))) > MOST_ASKED_BYTES:
            raise NetplugError("invalid", f"a question of {size} bytes is too long (at most {MOST_ASKED_BYTES})")
        if self._gate.refusal:
            raise self._no_store(name, self._gate.refusal)
        if self._group is None:
            raise self._no_store(name, _NO_STORE)

    async def _send(self, ident: str, name: str, key: str, question: JsonObject, patience_s: float) -> None:
        """Send a question, once the store answers."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while True:
            try:
                return await self._put(ident, name, key, question)
            except Unreachable as exc:
                if loop.time() >= until:
                    raise self._no_store(name, str(exc)) from exc
            except StoreError as exc:
                raise self._no_store(name, str(exc)) from exc
            await asyncio.sleep(_POLL_S)

    async def _put(self, ident: str, name: str, key: str, question: JsonObject) -> None:
        lease = self._membership.lease
        if not self._breaker.answers or lease is None:
            raise Unreachable(_NO_STORE)
        host = self._view.hosts().get(ident)
        if host is None or not self._view.alive(ident):
            raise self._not_alive(name)
        if not host.answers:
            raise self._unable(name, str(question["kind"]), "")
        with self._breaker.request():
            put = Put(key, {**question, "lease": lease}, lease)
            sent = await self._store.txn([Compare(ALIVE + ident, 1, at_least=True)], [put])
        if sent is None:
            raise self._not_alive(name)

    def _opened(self, name: str, kind: str, answer: JsonObject) -> JsonObject:
        body, error = answer.get("body"), answer.get("error")
        if isinstance(body, dict):
            return body
        if isinstance(error, dict):
            words, said, hint = (str(error.get(key, "")) for key in ("message", "kind", "hint"))
            if said == "unknown_kind":
                raise self._unable(name, kind, str(error.get("version", "")))
            raise Unanswered(Reason.REFUSED, name, said, f"host {name}: {words}", hint=hint)
        words = f"host {name} gave an answer that cannot be read"
        raise Unanswered(Reason.REFUSED, name, "internal", words, hint="see whether its netplug has the same version")

    async def _withdraw(self, name: str, key: str) -> None:
        """Delete a question without an answer. Raise `Unanswered` if it is the store that does not answer."""
        try:
            async with asyncio.timeout(_WITHDRAW_S):
                await self._store.txn([], [Delete(key)])
        except (TimeoutError, Unreachable) as exc:
            self._spawn(self._delete(key))
            raise self._no_store(name, str(exc) or _NO_STORE) from exc

    @staticmethod
    def _no_store(name: str, why: str) -> Unanswered:
        words = f"host {name} cannot be asked, since questions go by the shared store: {why}"
        return Unanswered(Reason.STORE, name, "unavailable", words, hint="see netplug doctor")

    @staticmethod
    def _not_alive(name: str) -> Unanswered:
        words = f"host {name} is not alive: its netplug does not run, or does not reach the store"
        return Unanswered(Reason.NOT_ALIVE, name, "unavailable", words, hint="see netplug host ls, and start it there")

    @staticmethod
    def _unable(name: str, kind: str, version: str) -> Unanswered:
        its = f"netplug {version}" if version else "its netplug, an older one,"
        words = f"host {name} cannot answer a question of kind {kind!r}: {its} does not know it"
        return Unanswered(Reason.UNKNOWN_KIND, name, "unavailable", words, hint="update netplug there")

    # Following

    async def run(self) -> None:
        """Answer questions, and take answers, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._follow()
        finally:
            self._group = None
            self._answering.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        if self._group is None:  # the daemon stops, and the lease ends
            work.close()
            return None
        return self._group.create_task(work)

    async def _follow(self) -> None:
        while True:
            try:
                records, revision = await self._gate.range(self._box)
                for key in self._answering.keys() - {record.key for record in records}:
                    self._cancel(key)
                for record in records:
                    self._on_event(Event(record.key, record, record.revision))
                async for event in self._gate.watch(self._box, revision):
                    self._on_event(event)
                break  # the store is closed
            except Compacted as exc:
                log.debug("questions.read_anew", reason=str(exc))
            except StoreError as exc:
                log.debug("questions.unreachable", reason=str(exc))
                await asyncio.sleep(_RETRY_S)

    def _on_event(self, event: Event) -> None:
        parts = event.key.removeprefix(self._box).split("/")
        if event.record is None:
            self._cancel(event.key)
        elif len(parts) != 3 or parts[0] not in {"ask", "answer"}:
            log.warning("record.poisoned", key=event.key)
        elif parts[0] == "answer":
            self._on_answer(parts[2], event.record)
        elif self._membership.admitted and event.key not in self._answering:  # a copy of a host has its id
            self._on_question(parts[1], parts[2], event.record)

    def _on_answer(self, number: str, record: Record) -> None:
        if (found := self._awaited.get(number)) and not found.done():
            found.set_result(record.value)
        self._spawn(self._delete(record.key))

    async def _delete(self, key: str) -> None:
        while True:
            try:
                await self._store.txn([], [Delete(key)])
            except Unreachable:  # else it would stay as long as this daemon lives
                await asyncio.sleep(_RETRY_S)
            except StoreError as exc:
                log.debug("question.left", key=key, reason=str(exc))
                return
            else:
                return

    # Answering

    def _cancel(self, key: str) -> None:
        if task := self._answering.pop(key, None):
            task.cancel()

    def _on_question(self, asker: str, number: str, record: Record) -> None:
        try:
            question = _read(asker, f"{BOXES}{asker}/answer/{self._me}/{number}", record)
        except (ValueError, TypeError, KeyError) as exc:
            log.warning("record.poisoned", key=record.key, error=str(exc))
            return
        if task := self._spawn(self._work_on(question, record)):
            self._answering[record.key] = task

    async def _work_on(self, question: _Question, record: Record) -> None:
        try:
            if not await self._is_admitted(question.asker):
                log.debug("question.ignored", host=short(question.asker), reason="it is not admitted")
                return
            with suppress(TimeoutError):  # the other host does not wait any more
                async with asyncio.timeout(question.deadline_s):
                    answer = await self._answer_to(question)
                    # From here on the end of the record is the own doing.
                    self._answering.pop(record.key, None)
                    await self._write(question, record, answer)
        except StoreError as exc:
            log.debug("question.unanswered", host=short(question.asker), kind=question.kind, reason=str(exc))
        finally:
            self._answering.pop(record.key, None)

    async def _is_admitted(self, host: str) -> bool:
        if host in self._view.hosts() and self._view.alive(host):
            return True
        # It may have come just now: other records arrive separately.
        return host != self._me and None not in [await self._store.get(it + host) for it in (HOSTS, ALIVE)]

    async def _answer_to(self, question: _Question) -> JsonObject:
        """Return the answer, or the error, as the other host reads it."""
        if (handler := self._handlers.get(question.kind)) is None:
            return {"error": {"kind": "unknown_kind", "version": __version__}}
        if len(self._answering) > MOST_AT_ONCE:
            return _error("unavailable", f"it answers {MOST_AT_ONCE} questions already", "try again")
        answer: JsonObject = {}

        async def work() -> None:
            try:
                answer["body"] = await asyncio.to_thread(fit, await handler(question.body), MOST_BYTES)
            except Exception as exc:
                if isinstance(exc, Reportable) and exc.kind != "internal":
                    answer.update(_error(exc.kind, exc.message, exc.hint))
                    return
                words = f"the question {question.kind!r} cannot be answered, since {exc!r}"
                answer.update(_error("internal", words, "see the log of netplug there"))
                raise

        await self._supervisor.attempt(f"question {question.kind}", work())
        return answer

    async def _write(self, question: _Question, record: Record, answer: JsonObject) -> None:
        ops: list[Put | Delete] = [Delete(record.key), Put(question.answer_key, answer, question.lease)]
        await self._store.txn([Compare(record.key, record.revision)], ops)


def _read(asker: str, answer_key: str, record: Record) -> _Question:
    kind, body, lease, deadline_s = (record.value[key] for key in ("kind", "body", "lease", "deadline_s"))
    if not isinstance(kind, str) or not isinstance(body, dict) or not isinstance(lease, int):
        raise TypeError("it is not a question")
    if not isinstance(deadline_s, int | float):
        raise TypeError("its deadline is no number")
    return _Question(asker, kind, body, min(deadline_s, _LONGEST_S), lease, answer_key)


def _error(kind: str, message: str, hint: str) -> JsonObject:
    return {"error": {"kind": kind, "message": message, "hint": hint}}
