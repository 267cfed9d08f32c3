"""Who asks an upstream, and a question that is under way."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .forward_rules import Rules, Server
from .question import Question
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
    """A question under way, `asked` with its name as it is spelled, type and class.

    `place`: by which rules and for what, of which there is one at a time; `key`: of what is remembered. `due`: when to
    look after it; `waiting`, `failed`: servers that were asked.
    """

    attempts: tuple[tuple[Slot, int], ...] = ()
    waiting: tuple[Server, ...] = ()
    failed: tuple[Server, ...] = ()
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
        asker: Asker,
        due: float,
    ) -> None:
        self.question = question
        self.asked = asked
        self.place = place
        self.key = place[1]
        self.rules = rules
        self.servers = servers
        self.askers = [asker]
        self.due = due
