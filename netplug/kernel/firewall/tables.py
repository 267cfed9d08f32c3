"""Tables of ours in nf_tables, and what they hold: steps `Table`, `Element` and `Hook`.

What is asked for at once is one transaction: all of it comes about, or nothing. A lookup in a set takes the same time
for any number of elements, and adding one takes a netlink message instead of a process.

A table that differs from its text is changed in one transaction, and its elements stay. A table that others deleted
comes back with the elements that this process had put there. So no packet meets a table without its elements.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias, TypeVar

from netplug.drivers import port_ranges
from netplug.drivers.steps import Element, Hook, Step, Table
from netplug.kernel.api import Done, Outcome, StepError
from netplug.kernel.firewall import compiler
from netplug.kernel.firewall.known_tables import KnownTables
from netplug.kernel.firewall.set_types import BadElementError, SetType
from netplug.kernel.firewall.table_image import Image, hooks, image, mark_of, marked
from netplug.kernel.firewall.table_marks import MARKED, compiled, is_right, mark_for, of
from netplug.kernel.firewall.table_reader import Found, TableReader
from netplug.kernel.firewall.transaction import Transaction
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NLM_F_EXCL, BatchError, Netlink

FirewallStep: TypeAlias = Table | Element | Hook
_Wanted: TypeAlias = dict[tuple[str, str], dict[bytes, tuple[bytes, Element]]]
"""By table and set: data and step by key."""

_WITHOUT_HOOK = frozenset(kind for kind, _, _ in nft.without_hook("", ""))
_THERE_OR_NOT = frozenset((errno.EEXIST, errno.ENOENT))
_PATIENCE = 3.0
"""Seconds within which a transaction is tried again, while others commit: one in ten may then succeed."""
_T = TypeVar("_T")


class Tables:
    """The tables of this namespace, or of that of `netlink`.

    Args:
        netlink: a socket of a namespace, owned by this object from now on.
        flags: of tables that are created, see `nf_tables.OWNED`. A table with flags is always made anew.
    """

    def __init__(self, netlink: Netlink | None = None, flags: int = 0) -> None:
        self._reader = TableReader(netlink)
        self._known = KnownTables(self._reader)
        self._flags = flags

    def is_ours(self, generation: int) -> bool:
        """Return whether a generation of the ruleset is of a commit of ours."""
        return generation in self._known.generations

    def generation(self) -> int:
        """Return the number of the ruleset's generation."""
        return self._reader.generation()

    def changes_by_others(self) -> int:
        """Return a number that grows when others have changed the ruleset."""
        self._known.refresh()
        return self._known.others

    def adopt(self, found: Found, generation: int) -> None:
        """Remember what a former process has put there. `found`: what there was in this generation, if it is still."""
        if self._reader.generation() == generation:
            self._known.adopt(found)

    def close(self) -> None:
        """Close the socket."""
        self._reader.close()

    def uncompiled(self, steps: Sequence[FirewallStep]) -> list[Table]:
        """Return the tables that `ensure` would compile. That blocks for long while others change links."""
        self._known.refresh()
        return [step for step in steps if isinstance(step, Table) and self._wants_compiling(step)]

    def _wants_compiling(self, step: Table) -> bool:
        if self._known.right.get(of(step)) == step.text or compiler.is_compiled(step.family, step.text):
            return False
        mark, found = self._look(step)
        return not mark or found is None or not mark.startswith(MARKED) or not is_right(step, mark, found)

    def _look(self, step: Table) -> tuple[str | None, Image | None]:
        """Return the mark of a table, and what it is; None, if there is none. One with flags is always made anew."""
        mark = mark_of(self._reader.netlink, nft.FAMILIES[step.family], step.name)
        return mark, None if mark is None or self._flags else image(self._reader.netlink, step.family, step.name)

    # Bringing about

    def ensure(self, steps: Sequence[FirewallStep]) -> list[Done]:
        """Bring steps about in one transaction, all or none, and return what was found of each.

        Raises:
            StepError: "not_found", a table, set or link is missing; "unavailable", the kernel or this host lacks
                something; "invalid", an element does not fit its set; "internal", the kernel refused a step.
        """
        return self._again(steps, self._try_to_ensure)

    def _try_to_ensure(self, steps: Sequence[FirewallStep], work: Transaction) -> list[Done] | None:
        self._make_tables(steps, work)
        wanted = self._wanted(steps, work)
        before = self._add_elements(wanted, work)
        chains = self._make_hooks(steps, work)
        if work.messages and not self._commit(work):
            return None
        self._remember(steps, wanted)
        return [self._done(step, work, before, chains) for step in steps]

    def _make_tables(self, steps: Sequence[FirewallStep], work: Transaction) -> None:
        for step in (step for step in steps if isinstance(step, Table)):
            table = of(step)
            work.made[table] = Outcome.EQUAL
            if self._known.right.get(table) == step.text:
                continue
            mark, found = self._look(step)
            if mark is not None and found is not None and is_right(step, mark, found):
                self._known.right[table] = step.text
                continue
            new = compiled(step)
            if found is not None and found.becomes(new) and _has_only_hooks(self._reader.netlink, step):
                self._change(step, found, new, work)
            else:
                self._make_anew(step, new, work, there=mark is not None)
            work.made[table] = Outcome.CREATED if mark is None else Outcome.ADJUSTED

    def _change(self, step: Table, found: Image, new: Image, work: Transaction) -> None:
        """Change a table: its rules, at once, and what sets and chains differ.

        Others stay, so a packet that is in the former rules finds in them what it has to find. In those of a deleted
        table it would find nothing from the commit on (nft_map_deactivate), and be dropped.
        """
        table, family, remade = of(step), nft.FAMILIES[step.family], found.remade(new)
        if found.led_to - new.led_to:
            work.at = self._known.generation
            for name, key in list(self._known.leading_elsewhere(table, new.led_to)):
                self._delete(work, table, name, {key: step})
        if remade:
            work.at = self._known.generation
        self._known.begin_change(table, new.types, remade)
        work.add(step, found.without(new, step.name))
        work.add(step, marked(family, step.name, mark_for(step, new)))
        work.add(step, new.messages(step.name, found))
        self._add_known(step, remade, work)

    def _make_anew(self, step: Table, new: Image, work: Transaction, *, there: bool) -> None:
        """Make a table, instead of the one that is there.

        Its elements must be those that it has when it goes, and it must not be there twice.
        """
        table, family = of(step), nft.FAMILIES[step.family]
        work.at = self._known.generation
        self._known.begin_anew(table, new.types, there=there)
        list(self._known.leading_elsewhere(table, new.led_to))
        if there:
            found = hooks(self._reader.netlink, step.name) if family == nft.NETDEV else {}
            work.hooks[table] = {link: chain for link, chain in found.items() if chain}
            work.add(step, nft.without_table(family, step.name))
        work.add(step, [nft.new_table(family, step.name, self._flags), *new.messages(step.name)])
        work.add(step, marked(family, step.name, mark_for(step, new)))
        self._add_known(step, new.types, work)
        for link, chain in work.hooks.get(table, {}).items():
            work.add(step, nft.hook(step.name, link, chain))

    def _add_known(self, step: Table, names: Iterable[str], work: Transaction) -> None:
        for name in names:
            known = self._known.set(of(step), name).elements
            self._add(work, of(step), name, {key: (data, step) for key, data in known.items()})

    def _wanted(self, steps: Sequence[FirewallStep], work: Transaction) -> _Wanted:
        wanted: _Wanted = {}
        for step in (step for step in steps if isinstance(step, Element)):
            kind = self._type(step, work)
            into = wanted.setdefault((step.table, step.set), {})
            for part in parts(step):
                key, data = encoded(part, kind, step)
                into[key] = data, step
        return wanted

    def _type(self, step: Element, work: Transaction) -> SetType:
        types = self._known.types(step.table)
        if step.set in types:
            return types[step.set]
        if types or step.table in work.made:
            raise StepError("not_found", step, f"table {step.table!r} has no set {step.set!r}")
        raise StepError("not_found", step, f"table {step.table!r} is missing")

    def _add_elements(self, wanted: _Wanted, work: Transaction) -> dict[str, dict[bytes, bytes | None]]:
        """Add what brings elements about. Return of each step what there was of it: by key, None for nothing."""
        before: dict[str, dict[bytes, bytes | None]] = {}
        for (table, name), items in wanted.items():
            # What comes with its table is nearly always there already.
            careful = work.careful or table in work.made
            known = self._known.read(table, name) if careful else self._known.set(table, name)
            for key, (_, step) in items.items():
                before.setdefault(step.key, {})[key] = known.elements.get(key) if known.whole else None
            if not known.whole:
                # Nearly always they are new. If not, the kernel says so, and the next attempt is careful.
                self._add(work, table, name, items, NLM_F_EXCL)
                continue
            new = {key: of for key, of in items.items() if known.elements.get(key) != of[0]}
            self._delete(work, table, name, {key: step for key, (_, step) in new.items() if key in known.elements})
            self._add(work, table, name, new)
        return before

    def _make_hooks(self, steps: Sequence[FirewallStep], work: Transaction) -> dict[str, str | None]:
        """Add what brings base chains about. Return of each step where its chain led; None, there was none."""
        before: dict[str, str | None] = {}
        there = dict(work.hooks)
        for step in (step for step in steps if isinstance(step, Hook)):
            _, bare = nft.numbered(step.table)
            if step.table not in there:
                if step.table not in work.made and mark_of(self._reader.netlink, nft.NETDEV, bare) is None:
                    raise StepError("not_found", step, f"table {step.table!r} is missing")
                there[step.table] = hooks(self._reader.netlink, bare)
            _want_link(step)
            found = before[step.key] = there[step.table].get(step.link)
            if found == step.chain:
                continue
            if found is not None:
                work.add(step, nft.without_hook(bare, step.link))
            work.add(step, nft.hook(bare, step.link, step.chain))
        return before

    def _add(
        self, work: Transaction, table: str, name: str, items: Mapping[bytes, tuple[bytes, Step]], flags: int = 0
    ) -> None:
        work.add_elements(table, name, self._known.types(table)[name], items, flags)

    def _delete(self, work: Transaction, table: str, name: str, items: Mapping[bytes, Step]) -> None:
        work.delete_elements(table, name, self._known.types(table)[name], items)

    # Removing

    def remove(self, steps: Sequence[FirewallStep]) -> None:
        """Remove what steps name, in one transaction; absent is success.

        Raises:
            StepError: "internal", the kernel refused a step.
        """
        self._again(steps, self._try_to_remove)

    def _try_to_remove(self, steps: Sequence[FirewallStep], work: Transaction) -> bool | None:
        gone = {of(step) for step in steps if isinstance(step, Table)}
        left = [step for step in steps if not isinstance(step, Table) and step.table not in gone]
        self._remove_tables(steps, work)
        self._remove_hooks([step for step in left if isinstance(step, Hook)], work)
        removed = self._remove_elements([step for step in left if isinstance(step, Element)], work)
        if work.messages and not self._commit(work):
            return None
        self._known.forget(gone)
        for (table, name), keys in removed.items():
            self._known.removed(table, name, keys)
        return True

    def _remove_tables(self, steps: Sequence[FirewallStep], work: Transaction) -> None:
        for step in (step for step in steps if isinstance(step, Table)):
            family = nft.FAMILIES[step.family]
            if mark_of(self._reader.netlink, family, step.name) is not None:
                work.add(step, nft.without_table(family, step.name))

    def _remove_hooks(self, steps: Sequence[Hook], work: Transaction) -> None:
        there: dict[str, Mapping[str, str]] = {}
        for step in steps:
            _, bare = nft.numbered(step.table)
            if step.table not in there:
                there[step.table] = hooks(self._reader.netlink, bare)
            if step.link in there[step.table]:
                work.add(step, nft.without_hook(bare, step.link))

    def _remove_elements(self, steps: Sequence[Element], work: Transaction) -> dict[tuple[str, str], list[bytes]]:
        """Add what removes elements. Return their keys."""
        unwanted: dict[tuple[str, str], dict[bytes, Step]] = {}
        for step in steps:
            # What others deleted with its table must not come back with it.
            if kind := self._known.types(step.table).get(step.set) or self._known.former_type(step.table, step.set):
                into = unwanted.setdefault((step.table, step.set), {})
                for part in parts(step):
                    with suppress(BadElementError):  # by a link that is gone, for example
                        into[kind.key_of(part.item)] = step
        for (table, name), items in unwanted.items():
            if name in self._known.types(table):
                known = self._known.read(table, name) if work.careful else self._known.set(table, name)
                there = {key: step for key, step in items.items() if not known.whole or key in known.elements}
                self._delete(work, table, name, there)
        return {at: list(items) for at, items in unwanted.items()}

    # Transactions

    def _again(
        self, steps: Sequence[FirewallStep], attempt: Callable[[Sequence[FirewallStep], Transaction], _T | None]
    ) -> _T:
        """Attempt something until it succeeds. After a failure everything is doubted."""
        work, until = Transaction(), time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < until:
                self._known.refresh()
                manner = work.chunk, work.careful
                found = attempt(steps, work)
                if found is not None:
                    return found
                if (work.chunk, work.careful) != manner:  # the next attempt is another one, and may take long
                    until = time.monotonic() + _PATIENCE
                work = Transaction(work.chunk, careful=work.careful)
        except BaseException:
            self._known.doubt()
            raise
        raise StepError("internal", steps[0], "others change the firewall all the time")

    def _commit(self, work: Transaction) -> bool:
        """Commit a transaction; False, if another attempt may succeed, or tell better what is refused.

        Raises:
            StepError: the kernel refused a step.
        """
        try:
            self._reader.netlink.batch(nft.batch(work.messages, work.at))
        except BatchError as error:
            self._known.doubt_tables(table for table, outcome in work.made.items() if outcome is not Outcome.EQUAL)
            if self._was_changed(error, work) or (error.errno in _THERE_OR_NOT and not work.careful):
                work.careful = True
                return False
            if work.chunk > 1:
                work.chunk = 1  # it is one of several elements; so each gets a message
                return False
            step = work.origins[min(max(error.index - 1, 0), len(work.origins) - 1)]
            words = f"kernel refused {step.key!r}: {error.strerror}"
            raise StepError("not_found" if error.errno == errno.ENOENT else "internal", step, words) from error
        self._known.note_commit()
        return True

    def _was_changed(self, error: BatchError, work: Transaction) -> bool:
        """Return whether others have changed what a refused transaction was built on."""
        if self._reader.generation() != self._known.generation or error.errno == errno.ERESTART:
            return True
        # A base chain goes with its link, without a commit.
        return error.errno == errno.ENOENT and work.messages[max(error.index - 1, 0)][0] in _WITHOUT_HOOK

    def _remember(self, steps: Sequence[FirewallStep], wanted: _Wanted) -> None:
        if not self._flags:
            self._known.right |= {of(step): step.text for step in steps if isinstance(step, Table)}
        for (table, name), items in wanted.items():
            self._known.added(table, name, {key: data for key, (data, _) in items.items()})

    def _done(
        self,
        step: FirewallStep,
        work: Transaction,
        before: Mapping[str, Mapping[bytes, bytes | None]],
        chains: Mapping[str, str | None],
    ) -> Done:
        if isinstance(step, Table):
            return Done(work.made[of(step)])
        if isinstance(step, Hook):
            was = chains[step.key]
            if was is None:
                return Done(Outcome.CREATED)
            return Done(Outcome.EQUAL) if was == step.chain else Done(Outcome.ADJUSTED, (replace(step, chain=was),))
        there = {key: data for key, data in before[step.key].items() if data is not None}
        if not there:
            return Done(Outcome.CREATED)
        kind = self._known.types(step.table)[step.set]
        if there == dict(encoded(part, kind, step) for part in parts(step)):
            return Done(Outcome.EQUAL)
        return Done(Outcome.ADJUSTED, tuple(Element(step.table, step.set, *kind.decode(*it)) for it in there.items()))


def parts(step: Element) -> Iterator[Element]:
    """Yield the elements of a step, one by one."""
    return (part for part in port_ranges.each(step) if isinstance(part, Element))


def encoded(part: Element, kind: SetType, step: Element) -> tuple[bytes, bytes]:
    """Return key and data of an element.

    Raises:
        StepError: "invalid", it does not fit; "not_found", a link is missing.
    """
    try:
        return kind.encode(part.item, part.data)
    except BadElementError as error:
        missing = isinstance(error.__cause__, OSError)
        raise StepError("not_found" if missing else "invalid", step, f"{step.key!r}: {error}") from error


def _has_only_hooks(netlink: Netlink, step: Table) -> bool:
    """Return whether all base chains of links lead to chains; the rules of others may use sets that change."""
    return step.family != "netdev" or all(hooks(netlink, step.name).values())


def _want_link(step: Hook) -> None:
    """Refuse a link that is missing: since Linux 6.16 a base chain can be made, and waits for it."""
    try:
        socket.if_nametoindex(step.link)
    except OSError as error:
        raise StepError("not_found", step, f"link {step.link!r} is missing") from error
