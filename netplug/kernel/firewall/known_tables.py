"""What this process knows of its tables without asking: what it has put there, and whether others may have changed it.

Each commit makes a new generation of the ruleset. As long as all generations are our own, what is known is what there
is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from netplug.kernel.firewall.set_types import Content, SetType
from netplug.kernel.firewall.table_reader import Found, TableReader
from netplug.kernel.netlink.nf_tables import verdict_words


@dataclass(slots=True)
class KnownSet:
    """`elements`: those that this process has put there. `whole`: they are all, and there as put.

    `complete`: they were all at some time, those of a former process too.
    """

    kind: SetType
    elements: Content = field(default_factory=dict)
    whole: bool = False
    complete: bool = False


class KnownTables:
    """`right`: texts of the tables that are as their text makes them, by name ("inet netplug").

    `generation`: what is known is of this one. `generations`: those of our own commits. A notification of another one
    is a foreign change. `others`: how often it was seen that others had committed.
    """

    def __init__(self, reader: TableReader) -> None:
        self.right: dict[str, str] = {}
        self.generations: set[int] = set()
        self._reader = reader
        self.generation = -1
        self.others = 0
        self._types: dict[str, Mapping[str, SetType]] = {}
        self._sets: dict[tuple[str, str], KnownSet] = {}

    def refresh(self) -> None:
        """Doubt everything, if there was another commit than ours."""
        generation = self._reader.generation()
        if generation != self.generation:
            self.others += 1
            self.generation = generation
            self.doubt()

    def doubt(self) -> None:
        """Note that others may have changed everything. What this process has put there is remembered."""
        self.right.clear()
        self._types.clear()
        for known in self._sets.values():
            known.complete |= known.whole
            known.whole = False

    def adopt(self, found: Found) -> None:
        """Remember what a former process has put there, as if it were this one. `found`: what there is."""
        for table, sets in found.content.items():
            for name, elements in sets.items():
                kind = found.types[table][name]
                known = self._sets.setdefault((table, name), KnownSet(kind))
                if not (known.complete or known.whole) and known.kind == kind:
                    known.elements, known.complete = {**elements, **known.elements}, True

    def doubt_tables(self, tables: Iterable[str]) -> None:
        """Note that tables were not made after all."""
        for table in tables:
            self._types.pop(table, None)
            for at in self._sets:
                if at[0] == table:
                    self._sets[at].whole = False

    def note_commit(self) -> None:
        """Note that there was a commit of ours just now."""
        generation = self._reader.generation()
        if generation == self.generation + 1:
            self.generation = generation
        # Else another commit came between; `refresh` sees that. Notifications arrive soon, so a few are enough.
        self.generations = {generation, *sorted(self.generations)[-63:]}

    def types(self, table: str) -> Mapping[str, SetType]:
        """Return the types of a table's sets; none, if there is no such table."""
        found = self._types.get(table)
        if found is None:
            found = self._types[table] = self._reader.types(table)
        return found

    def set(self, table: str, name: str) -> KnownSet:
        """Return what is known of a set that there is."""
        kind = self.types(table)[name]
        known = self._sets.get((table, name))
        if known is None or known.kind != kind:
            known = self._sets[table, name] = KnownSet(kind)
        return known

    def former_type(self, table: str, name: str) -> SetType | None:
        """Return the type of a set that there was when it was last seen."""
        known = self._sets.get((table, name))
        return known.kind if known else None

    def read(self, table: str, name: str) -> KnownSet:
        """Read all elements of a set, unless they are known."""
        known = self.set(table, name)
        if not known.whole:
            known.elements, known.whole = self._reader.elements(table, name, self.types(table)[name]), True
        return known

    def begin_change(self, table: str, types: Mapping[str, SetType], remade: Iterable[str]) -> None:
        """Prepare for a change of a table's sets. `remade`: those that are made anew, with the elements they have."""
        before = self.types(table)
        for name in [name for of, name in self._sets if of == table and name not in types]:
            del self._sets[table, name]
        for name in remade:
            if before[name] == types[name]:
                self.read(table, name)
        for name, kind in types.items():
            if before.get(name) != kind:
                self._sets[table, name] = KnownSet(kind, whole=True)
        self._types[table] = types

    def leading_elsewhere(self, table: str, chains: AbstractSet[str]) -> Iterator[tuple[str, bytes]]:
        """Take out, and yield by name of their map, elements with verdicts that lead to no chain of a table."""
        for name, kind in self.types(table).items():
            if kind.verdicts:
                known = self.read(table, name)
                for key, data in list(known.elements.items()):
                    chain = verdict_words(data).partition(" ")[2]
                    if chain and chain not in chains:
                        del known.elements[key]
                        yield name, key

    def begin_anew(self, table: str, types: Mapping[str, SetType], *, there: bool) -> None:
        """Prepare for a table that is about to be made, in place of one of its name that is `there`.

        The elements of sets whose types stay are known afterwards. If there is no table, they are those that this
        process had put there: the table was deleted by others.
        """
        before = self.types(table) if there else {}
        for name in [name for of, name in self._sets if of == table and name not in types]:
            del self._sets[table, name]
        for name, kind in types.items():
            if there and before.get(name) == kind:
                self.read(table, name)
            elif there or self.former_type(table, name) != kind:
                self._sets[table, name] = KnownSet(kind)
            self._sets[table, name].whole = True
        self._types[table] = types

    def added(self, table: str, name: str, elements: Content) -> None:
        """Note that elements are in a set now."""
        self.set(table, name).elements.update(elements)

    def removed(self, table: str, name: str, keys: Sequence[bytes]) -> None:
        """Note that elements are not in a set any more."""
        if known := self._sets.get((table, name)):
            for key in keys:
                known.elements.pop(key, None)

    def forget(self, tables: Iterable[str]) -> None:
        """Forget tables that are gone."""
        gone = frozenset(tables)
        for at in [at for at in self._sets if at[0] in gone]:
            del self._sets[at]
        for table in gone:
            self.right.pop(table, None)
            self._types.pop(table, None)
