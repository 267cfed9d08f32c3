"""A pending query to an upstream, and the clients that wait for its answer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .forward_rules import Rules, Server
from .question import Question
from .sockets import Slot


@dataclass(slots=True)
class Client:
    """A client's question for an upstream.

    Attributes:
        question: the question.
        source, network: the client and its network, to which the limits apply.
        answer: called once with the answer.
        retry_key: equal for retransmissions of the same query; None if there are none.
    """

    question: Question
    source: Hashable
    network: Hashable
    answer: Callable[[bytes], None]
    retry_key: Hashable = None


@dataclass(slots=True)
class Counts:
    """Counters of a forwarder.

    Attributes:
        asked: queries sent to upstreams, without retransmissions.
        joined: questions that waited for the answer to the same pending query.
        answered: queries that an upstream answered.
        failed: queries that no upstream answered.
        stale: queries that got an expired answer from the cache.
        refused: questions above a client's or a network's limit.
        strange: messages that match no pending query.
        truncated: answers that were requested again over TCP.
        blocked: answers with a private address for a public name, which were not passed on.
    """

    asked: int = 0
    joined: int = 0
    answered: int = 0
    failed: int = 0
    stale: int = 0
    refused: int = 0
    strange: int = 0
    truncated: int = 0
    blocked: int = 0


class Query:
    """A pending query.

    Attributes:
        question: that of the first client.
        asked: name in mixed case, type and class.
        place: identifies rules and question; there is one pending query for each.
        key: of the answer in the cache.
        servers: the upstreams, in order.
        clients: the clients that wait.
        since: when it was asked first.
        due: when to check it next.
        attempts: sockets and message ids by which an answer may come.
        waiting, failed: servers that were asked and may still answer, and those that failed.
        turn: how often a server was chosen.
        tick: how often the query was checked.
        done: it is no longer pending.
    """

    attempts: tuple[tuple[Slot, int], ...] = ()
    waiting: tuple[Server, ...] = ()
    failed: tuple[Server, ...] = ()
    since = 0.0
    turn = 0
    tick = 0
    done = False

    def __init__(
        self,
        question: Question,
        asked: bytes,
        place: tuple[int, bytes],
        rules: Rules,
        servers: tuple[Server, ...],
        client: Client,
        due: float,
    ) -> None:
        self.question = question
        self.asked = asked
        self.place = place
        self.key = place[1]
        self.rules = rules
        self.servers = servers
        self.clients = [client]
        self.due = due
