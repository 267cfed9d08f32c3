"""The forwarder: many concurrent queries to upstreams, without a task for each; equal ones are sent once.

If an upstream does not answer within `SECOND_S`, the next one is asked too. The first answer counts, and its server is
preferred for a while. Source ports are random, chosen anew for each query, and change from time to time. Together with
the message id and the mixed case of the name, an attacker has to guess about 32 bits (RFC 5452). An answer must come
from the address and port that were asked, and repeat the question in the same case. If the case differs, the query is
repeated over TCP, which an off-path attacker cannot forge. If the case differs there too, the upstream does not
preserve it, which is remembered.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from itertools import takewhile
from time import monotonic

from . import cache, extended_errors, queries, wire
from .cache import Answer
from .durations import UPSTREAM_BOUNDS_S, Durations
from .extended_errors import Why
from .forward_rules import Rules, Server
from .pending import Client, Counts, Query
from .question import Question
from .slow_path import relay, reply
from .sockets import Opener, Pool, Slot, exchange, open_here

SECOND_S = 0.3
"""A resolver with a cached answer takes far less; one that has to resolve the name rarely takes more."""
_SLACK_S = 0.03
"""How much later than due a query may be checked, so that several are checked together."""
_SENDING_TICKS = frozenset({1, 2, 4, 8})
"""Multiples of `SECOND_S` at which the query is sent again: 0.3, 0.6, 1.2, 2.4 s."""
_STALE_TICK = 6
"""After 1.8 s a stale answer is used (RFC 8767 §5.5)."""
_LAST_TICK = 14
"""The query fails after 4.2 to 4.7 s, before libc's timeout of 5 s."""
PREFERENCE_S = 30.0
CASELESS_S = 600.0
"""How long it is remembered that an upstream does not preserve the case of names."""
TCP_TIMEOUT_S = 3.0
MAX_PER_CLIENT = 512
MAX_PER_NETWORK = 2048
IDLE_S = 10.0
_FLAGS = {0: b"\0", 1: b"\x80", 0x10: b"\x10", 0x11: b"\x90"}
"""The last octet of a cache key, for DO and CD: by CD as in the header, plus 1 if DO is set."""
_ANSWERS = frozenset({wire.NOERROR, wire.NXDOMAIN})


class Forwarder:
    """Asks upstreams. Belongs to one event loop.

    Args:
        opener: opens the sockets.
        slots: the number of sockets to each upstream; 0: the default, enough against port guessing.
        mixed_case: whether names are sent in mixed case.
        clock: returns seconds, monotonic.

    Attributes:
        durations: from a query to the answer of an upstream.
    """

    def __init__(
        self,
        *,
        opener: Opener = open_here,
        slots: int = 0,
        mixed_case: bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.counts = Counts()
        self.durations = Durations(UPSTREAM_BOUNDS_S)
        self._opener, self._slots = opener, slots
        self._clock = clock
        # Sorted by `due`, as all wait equally long.
        self._queries: dict[tuple[int, bytes], Query] = {}
        self._pools: dict[Server, Pool] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._load: dict[Hashable, int] = {}
        self._preferred: dict[Server, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = queries.numbers()
        self._case_tables = queries.case_tables() if mixed_case else ()
        self._caseless: dict[Server, float] = {}

    @property
    def pending(self) -> int:
        """The number of pending queries."""
        return len(self._queries)

    def ask(self, rules: Rules, client: Client) -> None:
        """Answer from the cache, or ask an upstream."""
        question, now = client.question, self._clock()
        key = question.name + question.kind + _FLAGS[question.data[3] & 0x10 | question.dnssec]
        known = rules.cache.get(key)
        if known is not None and known.at(now) is not None:
            client.answer(self._answer_to(question, known))
            return
        servers = rules.servers(question.name)
        if not servers:
            code, why = (
                (wire.SERVFAIL, extended_errors.NO_UPSTREAM)
                if rules.forward
                else (wire.REFUSED, extended_errors.INTERNAL)
            )
            client.answer(reply(question, code, why=why))
            return
        place = id(rules), key
        query = self._queries.get(place)
        if query is not None and client.retry_key is not None and _replaces(query, client):
            return
        load, source, network = self._load, client.source, client.network
        of_source, of_network = load.get(source, 0), load.get(network, 0)
        if of_source >= MAX_PER_CLIENT or of_network >= MAX_PER_NETWORK:
            self.counts.refused += 1
            client.answer(reply(question, wire.SERVFAIL, why=extended_errors.TOO_MANY))
            return
        load[source], load[network] = of_source + 1, of_network + 1
        if query is not None:
            self.counts.joined += 1
            query.clients.append(client)
            return
        self.counts.asked += 1
        if self._preferred and len(servers) > 1:
            servers = self._order(servers)
        asked = self._mixed_case(question.name, servers, now) + question.kind
        query = self._queries[place] = Query(question, asked, place, rules, servers, client, now + SECOND_S)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SECOND_S + _SLACK_S, self._check)
        query.since, query.turn = now, 1
        if not self._send(query, servers[0]):
            query.failed = servers[:1]
            self._next(query)

    def take(self, rules: Rules) -> list[Client]:
        """Cancel the pending queries under these rules, and return the clients that wait for them."""
        found: list[Client] = []
        for query in [query for query in self._queries.values() if query.rules is rules]:
            found += query.clients
            self._finish(query)
        return found

    # Sending

    def _mixed_case(self, name: bytes, servers: tuple[Server, ...], now: float) -> bytes:
        if not self._case_tables or (self._caseless and any(self._caseless.get(it, 0) > now for it in servers)):
            return name
        return name.translate(self._case_tables[next(self._numbers) % queries.CASE_TABLES])

    def _order(self, servers: tuple[Server, ...]) -> tuple[Server, ...]:
        """Return the servers, preferred ones first."""
        now = self._clock()
        return tuple(sorted(servers, key=lambda server: self._preferred.get(server, 0) < now))

    def _next(self, query: Query, *, again: bool = False) -> None:
        """Ask the next server that has not failed; fail if there is none.

        `again`: also a server that was asked and has not answered.
        """
        for _ in query.servers:
            server = query.servers[query.turn % len(query.servers)]
            query.turn += 1
            if server not in query.failed and (again or server not in query.waiting):
                if self._send(query, server):
                    return
                query.failed += (server,)
        if not query.waiting:
            self._give_up(query)

    def _send(self, query: Query, server: Server) -> bool:
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = Pool(
                server, self._take, self._unreachable, self._unsent, self._opener, self._slots
            )
        numbers = self._numbers
        try:
            slot = pool.slot(numbers)
        except OSError:
            return False
        ident = next(numbers)
        while ident in slot.pending:
            ident = next(numbers)
        pool.send(slot, queries.message(query.question, query.asked, ident))
        slot.pending[ident] = query
        query.attempts += ((slot, ident),)
        query.waiting += (server,)
        return True

    def _check(self) -> None:
        """Check the queries that are due, and schedule the next check."""
        now = self._clock()
        overdue = list(takewhile(lambda query: query.due <= now, self._queries.values()))
        for query in overdue:
            if not query.done:
                self._overdue(query, now)
        self._timer = None
        first = next(iter(self._queries.values()), None)
        if first is not None:
            self._timer = asyncio.get_running_loop().call_later(max(first.due - now, 0) + _SLACK_S, self._check)
        elif self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._close_idle)

    def _overdue(self, query: Query, now: float) -> None:
        query.tick += 1
        if query.tick >= _LAST_TICK:
            self._give_up(query)
            return
        known = query.rules.cache.get(query.key)
        if query.tick == _STALE_TICK and known is not None and (old := known.revive(now)):
            self.counts.stale += 1
            self._answer_clients(query, old, why=extended_errors.STALE_ANSWER)
        for server in query.waiting:
            if (pool := self._pools.get(server)) is not None:
                pool.renew(now)
        query.due = now + SECOND_S
        self._queries[query.place] = self._queries.pop(query.place)
        if query.tick in _SENDING_TICKS:
            self._next(query, again=True)

    def _close_idle(self) -> None:
        """Close all sockets if no query is pending."""
        self._idle = None
        if not self._queries:
            self._close_pools()

    # Receiving

    def _take(self, slot: Slot, message: bytes) -> None:
        """Process a message received on a socket."""
        query = slot.pending.get((message[0] << 8) + message[1]) if len(message) >= wire.HEADER else None
        if not isinstance(query, Query):
            self.counts.strange += 1
        elif message.startswith(query.asked, wire.HEADER) and message[2] & 0xFA == 0x80 and message[4:6] == b"\0\1":
            self._answered(query, slot.server, message)
        elif not cache.matches(message, query.question.name, query.question.kind):
            self.counts.strange += 1
        else:  # truncated, or in another case
            self.counts.truncated += 1
            ident = int.from_bytes(message[:2])
            slot.forget(ident)
            query.attempts = tuple(attempt for attempt in query.attempts if attempt != (slot, ident))
            self._start(self._by_tcp(query, slot.server, message))

    def _answered(self, query: Query, server: Server, message: bytes) -> None:
        if message[3] & 0xF in _ANSWERS:
            now = self._clock()
            try:
                found = cache.read(message, query.question.name, now, dnssec=query.question.dnssec)
            except ValueError:
                self.counts.strange += 1
            else:
                if server is not query.servers[0]:
                    self._preferred[server] = now + PREFERENCE_S
                    self._preferred.pop(query.servers[0], None)
                self.counts.answered += 1
                self.durations.note(now - query.since)
                refused = query.rules.refuse(query.question.name, found)
                if not refused:  # what is refused is asked again each time, so that each client is told why
                    query.rules.cache.put(query.key, found)
                clients = query.clients
                self._finish(query)
                for client in clients:
                    if refused:
                        client.answer(reply(client.question, why=extended_errors.REBINDING))
                        continue
                    client.answer(relay(client.question, found.code, found.counts, found.body))
                return
        self._lost(query, server)

    def _unreachable(self, slot: Slot) -> None:
        """Handle an ICMP error: ask the next server at once."""
        for query in list(slot.pending.values()):
            if isinstance(query, Query) and not query.done:
                self._lost(query, slot.server)

    def _unsent(self, slot: Slot, ident: int) -> None:
        query = slot.pending[ident]
        if isinstance(query, Query) and not query.done:
            self._lost(query, slot.server)

    def _lost(self, query: Query, server: Server) -> None:
        query.failed += (server,)
        query.waiting = tuple(other for other in query.waiting if other != server)
        self._next(query)

    async def _by_tcp(self, query: Query, server: Server, datagram: bytes) -> None:
        """Repeat over TCP a query whose answer was truncated, or had the name in another case.

        If TCP fails, the datagram counts: a truncated answer is passed on as truncated. One in another case is
        accepted, as this server can be asked in no safer way; the check is off for a while.
        """
        asked = queries.message(query.question, query.asked, next(self._numbers))
        try:
            async with asyncio.timeout(TCP_TIMEOUT_S):
                message = await exchange(self._opener, server, asked)
        except (OSError, TimeoutError, EOFError):
            message = datagram
        answers = cache.matches(message, query.question.name, query.question.kind)
        truncated = answers and message[2] & 0x02
        if answers and not truncated and not message.startswith(query.asked, wire.HEADER):
            self._caseless[server] = self._clock() + CASELESS_S
        if query.done:
            return
        if not answers:
            self._lost(query, server)
        elif truncated:
            clients = query.clients
            self._finish(query)
            for client in clients:
                client.answer(queries.truncated(client.question))
        else:
            self._answered(query, server, message)

    # Answering

    def _give_up(self, query: Query) -> None:
        now = self._clock()
        known = query.rules.cache.get(query.key)
        if known is not None and (old := known.revive(now)):
            self.counts.stale += 1
            self._answer_clients(query, old, why=extended_errors.STALE_ANSWER)
        else:
            self.counts.failed += 1
            self._answer_clients(
                query,
                cache.failure(now),
                why=extended_errors.TIMED_OUT if query.waiting else extended_errors.UNREACHABLE,
            )
            query.rules.cache.put(query.key, cache.failure(now))
        self._finish(query)

    def _answer_clients(self, query: Query, found: Answer, why: Why | None = None) -> None:
        clients, query.clients = query.clients, []
        self._release(clients)
        for client in clients:
            client.answer(self._answer_to(client.question, found, why))

    def _answer_to(self, question: Question, found: Answer, why: Why | None = None) -> bytes:
        code, counts, records = found.at(self._clock()) or (found.code, found.counts, found.body)
        return relay(question, code, counts, records, why)

    def _release(self, clients: list[Client]) -> None:
        load = self._load
        for client in clients:
            source, network = client.source, client.network
            if load[source] > 1:
                load[source] -= 1
            else:
                del load[source]
            if load[network] > 1:
                load[network] -= 1
            else:
                del load[network]

    def _finish(self, query: Query) -> None:
        query.done = True
        self._queries.pop(query.place, None)
        if query.clients:
            self._release(query.clients)
        for slot, ident in query.attempts:
            slot.pending.pop(ident, None)
            if slot.retired and not slot.pending:
                slot.close()
        query.attempts = ()

    # Life

    def _start(self, work: Coroutine[object, object, None]) -> None:
        # Not in a TaskGroup: it ends within `TCP_TIMEOUT_S`, or at `close`.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _close_pools(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def close(self) -> None:
        """Cancel all pending queries, without answers to their clients."""
        for handle in (self._timer, self._idle):
            if handle is not None:
                handle.cancel()
        self._timer = self._idle = None
        for query in list(self._queries.values()):
            self._finish(query)
        for task in self._tasks:
            task.cancel()
        self._close_pools()


def _replaces(query: Query, client: Client) -> bool:
    """Return whether this is a retransmission by a client that already waits; if so, replace the earlier one."""
    for number, other in enumerate(query.clients):
        if other.retry_key == client.retry_key:
            query.clients[number] = client
            return True
    return False
