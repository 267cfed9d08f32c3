"""Tables of the fake kernel: sets are read from a table's text, and elements must fit them, as in the real one."""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from netplug.drivers.steps import Element, Hook, Step, Table
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall.set_types import BadElementError, Field, SetType

if TYPE_CHECKING:
    from netplug.kernel.fake.world import World

_SET = re.compile(r"^(?:set|map) ([\w-]+) \{\s*type(?:of)? ([^;\n}]*)([^}]*)", re.MULTILINE)
_NAME = 41, 16
_FIELDS = {
    **dict.fromkeys(("ipv4_addr", "ip saddr", "ip daddr"), (7, 4)),
    **dict.fromkeys(("ipv6_addr", "ip6 saddr", "ip6 daddr"), (8, 16)),
    "ether_addr": (9, 6),
    "inet_proto": (12, 1),
    **dict.fromkeys(("inet_service", "udp dport", "tcp dport"), (13, 2)),
    # The index of a link is what its name stands for; here there are only names.
    **dict.fromkeys(("ifname", "iifname", "oifname", "iface_index"), _NAME),
}


@cache
def sets(text: str) -> dict[str, tuple[SetType, bool]]:
    """Return the sets and maps of a table, by name: their types, and whether data is a link that must be there."""
    found = {}
    for name, declared, more in _SET.findall(text):
        key, _, data = declared.partition(" : ")
        verdicts = data.strip() == "verdict"
        kind = SetType(_fields(key), () if verdicts else _fields(data), verdicts, "flags interval" in more)
        found[name] = kind, "iface_index" in data
    return found


def _fields(words: str) -> tuple[Field, ...]:
    return tuple(_field(word.strip()) for word in words.split(" . ") if word.strip())


def _field(word: str) -> Field:
    return (4, int(word.rpartition(",")[2]) // 8) if word.startswith("@") else _FIELDS[word]


def ensure_table(world: "World", step: Table) -> Outcome:
    """Make a table, with the elements of one that others deleted or that has another text, of sets whose types stay."""
    outcome, before, there = world.plain(step), world.state.get(step.key), list(_elements(world, step))
    if outcome is Outcome.CREATED:
        before, there = world.lost.pop(step.key, (None, []))
    kept = {
        name for name, of in sets(step.text).items() if isinstance(before, Table) and sets(before.text).get(name) == of
    }
    for element in there:
        world.state.pop(element.key, None)
        if element.set in kept and _leads(element, step):
            world.state[element.key] = element
    return outcome


def lose_table(world: "World", step: Table) -> None:
    """Let others delete a table. What was in it is remembered, if this process has put it there or has looked at it."""
    if not world.remembers:
        return
    world.lost[step.key] = step, list(_elements(world, step))


def _elements(world: "World", table: Table) -> Iterator[Element]:
    name = f"{table.family} {table.name}"
    return (step for step in world.state.values() if isinstance(step, Element) and step.table == name)


def ensure_element(world: "World", step: Element) -> Outcome:
    """Add an element, which must fit its set."""
    table = wanted_table(world, step, step.table)
    if step.set not in sets(table.text):
        raise StepError("not_found", step, f"table {step.table!r} has no set {step.set!r}")
    kind, by_link = sets(table.text)[step.set]
    if by_link and step.data not in world.names():
        raise StepError("not_found", step, f"link {step.data!r} is missing")
    try:
        kind.encode(step.item, step.data)
    except BadElementError as error:
        raise StepError("invalid", step, str(error)) from error
    if not _leads(step, table):
        raise StepError("not_found", step, f"table {step.table!r} has no chain of {step.data!r}")
    return world.plain(step)


def _leads(step: Element, table: Table) -> bool:
    """Return whether there is the chain to which an element leads, if it leads to one."""
    verdict, _, chain = step.data.partition(" ")
    return verdict not in {"goto", "jump"} or f"chain {chain} {{" in table.text


def wanted_table(world: "World", step: Step, name: str) -> Table:
    """Return a table, "inet netplug", that a step builds on."""
    found = world.state.get(f"table/{name}")
    if not isinstance(found, Table):
        raise StepError("not_found", step, f"table {name!r} is missing")
    return found


def remove_element(world: "World", step: Element) -> None:
    """Remove an element. If others deleted its table, it does not come back with that."""
    world.state.pop(step.key, None)
    for table, (former, elements) in world.lost.items():
        world.lost[table] = former, [it for it in elements if it.key != step.key]


def ensure_hook(world: "World", step: Hook) -> Outcome:
    """Add a base chain of a link."""
    wanted_table(world, step, step.table)
    world.wants_link(step, step.link, None)
    return world.plain(step)


def table_drift(world: "World", step: Table) -> str:
    """Compare a table."""
    found = world.find(step)
    return MISSING if found is None else "" if found == step else "its rules differ"


def element_drift(world: "World", step: Element) -> str:
    """Compare an element."""
    found = world.state.get(step.key)
    if not isinstance(found, Element):
        return MISSING
    return "" if found.data == step.data else f"is {found.data}, not {step.data}"


def hook_drift(world: "World", step: Hook) -> str:
    """Compare the base chain of a link."""
    found = world.state.get(step.key)
    if not isinstance(found, Hook):
        return MISSING
    return "" if found == step else f"leads to {found.chain}, not {step.chain}"
