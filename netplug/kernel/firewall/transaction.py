"""A transaction of nf_tables in the making."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from netplug.drivers.steps import Step
from netplug.kernel.api import Outcome
from netplug.kernel.firewall.set_types import SetType
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NLM_F_CREATE
from netplug.kernel.netlink.nf_tables import Message

CHUNK = 256
"""Elements in a message. An attribute holds at most 64 kB."""


@dataclass(slots=True)
class Transaction:
    """Messages, each with the step that it is for (`origins`), or the first of several.

    `chunk`: elements in a message. `at`: the generation that it builds on, if it must. `careful`: what is in a set is
    read, not tried. `made`: outcomes of tables. `hooks`: base chains of new tables.
    """

    chunk: int = CHUNK
    at: int = 0
    careful: bool = False
    messages: list[Message] = field(default_factory=list)
    origins: list[Step] = field(default_factory=list)
    made: dict[str, Outcome] = field(default_factory=dict)
    hooks: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def add(self, step: Step, messages: Iterable[Message]) -> None:
        """Add messages for a step."""
        for message in messages:
            self.messages.append(message)
            self.origins.append(step)

    def add_elements(
        self, table: str, name: str, kind: SetType, items: Mapping[bytes, tuple[bytes, Step]], flags: int = 0
    ) -> None:
        """Add the messages that create elements of a set. `items`: data and step by key."""
        for part in self._chunks(list(items)):
            elements = [it for key in part for it in kind.attributes(key, items[key][0])]
            message = _message(nft.NEWSETELEM, table, name, elements, NLM_F_CREATE | flags)
            self.add(items[part[0]][1], (message,))

    def delete_elements(self, table: str, name: str, kind: SetType, items: Mapping[bytes, Step]) -> None:
        """Add the messages that delete elements of a set. `items`: steps by key."""
        for part in self._chunks(list(items)):
            elements = [it for key in part for it in kind.attributes(key, b"")]
            self.add(items[part[0]], (_message(nft.DELSETELEM, table, name, elements, 0),))

    def _chunks(self, keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        return (keys[i : i + self.chunk] for i in range(0, len(keys), self.chunk))


def _message(kind: int, table: str, name: str, items: list[bytes], flags: int) -> Message:
    return nft.elements(kind, *nft.numbered(table), name, items, flags)
