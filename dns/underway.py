"""Who asks an upstream, and a question that is under way."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .question import Question
from .rules import Rules, Server
from .sockets import Slot


@dataclass(slots=True)
class Asker:
    """Who asks: `source` and `network` are counted against the limits. `tell`: is called once, with the answer.

    `twin`: the same for a question that is sent again; empty for none.
    """

    question: Question
    source: Hashable
    network: Hashable
    tell: Callable[[bytes], None]
    twin: Hashable = None


@dataclass(slots=True)
class Counts:
    """What became of the questions, and of the messages that came."""

    asked: int = 0
    joined: int = 0
    answered: int = 0
    failed: int = 0
    stale: int = 0
    refused: int = 0
    strange: int = 0
    truncated: int = 0


class Query:
    """A question under way, by `key`, its name as `spelled`.

    `due`: when to look after it; `waiting`, `failed`: servers that were asked.
    """

    __slots__ = (
        *("askers", "attempts", "done", "due", "failed", "key", "question"),
        *("rules", "servers", "spelled", "tick", "turn", "waiting"),
    )

    def __init__(
        self,
        question: Question,
        spelled: bytes,
        key: bytes,
        rules: Rules,
        servers: tuple[Server, ...],
        asker: Asker,
        due: float,
    ) -> None:
        self.question = question
        self.spelled = spelled
        self.key = key
        self.rules = rules
        self.servers = servers
        self.askers: list[Asker] = [asker]
        self.due = due
        self.attempts: tuple[tuple[Slot, int], ...] = ()
        self.waiting: tuple[Server, ...] = ()
        self.failed: tuple[Server, ...] = ()
        self.turn = 0
        self.tick = 0
        self.done = False
