"""Our nf_tables tables: constant rules over sets and maps, whose elements change.

iptables has no maps from a host port to an address and port, and no hooks for bridged frames. nf_tables has both. A
lookup takes the same time for any number of elements, and adding one takes a netlink message instead of a process.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from netplug.kernel.api import MISSING, Outcome
from netplug.kernel.netlink.connection import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    BatchError,
    Netlink,
    NetlinkError,
    attrs,
    text,
    walk,
)
from netplug.kernel.netlink.nf_tables import (
    DATA_VALUE,
    DELSETELEM,
    ELEM_DATA,
    ELEM_KEY,
    ELEMENTS,
    GENERATION,
    GETGEN,
    GETRULE,
    GETSETELEM,
    GETTABLE,
    INET,
    IPV4,
    IPV6,
    NEWSETELEM,
    RULE_CHAIN,
    RULE_USERDATA,
    TABLE_NAME,
    Message,
    Table,
    batch,
    message,
)

Entries: TypeAlias = Mapping[str, Mapping[bytes, bytes]]
"""Elements by set: value by key, empty values in plain sets."""

_OURS = "netplug"
"""Prefix of our tables' names."""
_CHUNK = 256
"""Elements in a message. An attribute holds at most 64 kB."""
_BATCH = 1024
"""Elements in a transaction. It must fit into the socket's send buffer, which has 208 kB by default."""
_GONE = frozenset((errno.ENOENT,))


class Tables:
    """The tables of this namespace, or of that of `netlink`.

    `generations`: the ruleset generations of our own commits. A notification of another one is a foreign change.
    """

    def __init__(self, netlink: Netlink | None = None) -> None:
        self.generations: set[int] = set()
        self._generation = 0
        self._netlink = netlink
        self._seen: dict[Table, tuple[int, dict[str, dict[bytes, bytes]]]] = {}

    def ensure_table(self, table: Table) -> Outcome:
        """Create a table, or replace one that differs. Its elements are kept.

        Raises:
            NetlinkError: the kernel lacks a feature.
        """
        found = self._comments(table)
        if found == _comments_of(table) and not table.flags:
            return Outcome.EQUAL
        content = self.content(table)
        messages = [*table.delete(), *table.create()]
        for name, elements in content.items():
            messages += [table.elements(NEWSETELEM, name, part, NLM_F_CREATE) for part in _parts(elements)]
        self.commit(messages)
        return Outcome.CREATED if found is None else Outcome.ADJUSTED

    def remove_table(self, table: Table) -> None:
        """Remove a table."""
        self._seen.pop(table, None)
        if self._comments(table) is not None:
            self.commit(table.delete())

    def drift(self, table: Table) -> str:
        """Return how a table differs; empty if it does not."""
        found = self._comments(table)
        if found is None:
            return MISSING
        return "" if found == _comments_of(table) else "its rules differ"

    def ensure(self, table: Table, wanted: Entries, belongs: Callable[[str, bytes], bool]) -> tuple[Outcome, Entries]:
        """Set the elements of an object. Return the outcome, and the elements that it had before.

        `belongs`: returns whether an element, by set and key, is of that object.

        Raises:
            NetlinkError: ENOENT: the table is missing.
        """
        content = self._known(table, wanted)
        if content is None:
            if self._make(table, wanted):
                return Outcome.CREATED, {}
            content = self._content(table)
        found = {
            name: {key: value for key, value in elements.items() if belongs(name, key)}
            for name, elements in content.items()
        }
        present = {name: elements for name, elements in found.items() if elements}
        if present == wanted:
            return Outcome.EQUAL, present
        self._change(table, present, wanted, NLM_F_CREATE)
        return Outcome.ADJUSTED, present

    def add(self, table: Table, name: str, keys: Sequence[bytes]) -> frozenset[bytes]:
        """Add elements to a plain set. Return those that existed before.

        Raises:
            NetlinkError: ENOENT: the table is missing.
        """
        return frozenset(self.put(table, {name: dict.fromkeys(keys, b"")}).get(name, ()))

    def put(self, table: Table, wanted: Entries) -> dict[str, dict[bytes, bytes]]:
        """Set elements, and return the previous elements with their keys. All or nothing, in few transactions.

        Raises:
            NetlinkError: ENOENT: the table is missing.
        """
        before: dict[str, dict[bytes, bytes]] = {}
        done: list[tuple[Entries, Entries]] = []
        try:
            for part in _batches(wanted):
                found = self._put(table, part)
                for name, elements in found.items():
                    before.setdefault(name, {}).update(elements)
                done.append((part, found))
        except NetlinkError:
            for put, previous in reversed(done):
                self._restore(table, put, previous)
            raise
        return before

    def _restore(self, table: Table, put: Entries, before: Entries) -> None:
        """Restore the elements that existed before a `put`."""
        new = {name: {k: v for k, v in it.items() if k not in before.get(name, {})} for name, it in put.items()}
        stale = {name: {k: v for k, v in it.items() if put[name][k] != v} for name, it in before.items()}
        if any(new.values()):
            self.remove(table, new)
        if any(stale.values()):
            self._change(table, stale, stale, NLM_F_CREATE)

    def _put(self, table: Table, wanted: Entries) -> dict[str, dict[bytes, bytes]]:
        if self._known(table, wanted) is not None:
            return {name: dict(elements) for name, elements in wanted.items()}
        if self._make(table, wanted):
            return {}
        content = self._content(table)
        before = {
            name: {key: content[name][key] for key in elements if key in content[name]}
            for name, elements in wanted.items()
        }
        stale = {
            name: {key: value for key, value in found.items() if value != wanted[name][key]}
            for name, found in before.items()
        }
        missing = {
            name: {key: value for key, value in elements.items() if before[name].get(key) != value}
            for name, elements in wanted.items()
        }
        if any(missing.values()):
            self._change(table, stale, missing, NLM_F_CREATE)
        return before

    def _make(self, table: Table, wanted: Entries) -> bool:
        """Add elements if none of them exists; otherwise return False."""
        try:
            self._change(table, {}, wanted, NLM_F_CREATE | NLM_F_EXCL)
        except BatchError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def _change(self, table: Table, less: Entries, more: Entries, flags: int) -> None:
        """Change elements in one transaction, and update the cache."""
        self.commit([*_removed(table, less), *_added(table, more, flags)])
        if seen := self._seen.pop(table, None):
            generation, content = seen
            if generation + 1 == self._generation:
                for name, elements in less.items():
                    for key in elements:
                        content[name].pop(key, None)
                for name, elements in more.items():
                    content[name].update(elements)
                self._seen[table] = self._generation, content

    def _known(self, table: Table, wanted: Entries) -> dict[str, dict[bytes, bytes]] | None:
        """Return all elements if the wanted ones are in the cache. A refused commit would take a grace period too."""
        seen = self._seen.get(table)
        if seen is None or any(not seen[1][name].items() >= elements.items() for name, elements in wanted.items()):
            return None
        return seen[1] if seen[0] == self._ask_generation() else None

    def _content(self, table: Table) -> dict[str, dict[bytes, bytes]]:
        """Return the elements of all sets, from the cache if the ruleset has not changed since."""
        generation = self._ask_generation()
        seen = self._seen.get(table)
        if seen is None or seen[0] != generation:
            seen = self._seen[table] = generation, self.content(table)
            if self._ask_generation() != generation:
                return self._seen.pop(table)[1]
        return seen[1]

    def remove(self, table: Table, entries: Entries) -> None:
        """Remove elements; absent is success.

        A commit takes a grace period of the kernel. So one commit removes many elements. If some are absent, a second
        one adds them first.
        """
        for part in _batches(entries):
            self._remove(table, part)

    def _remove(self, table: Table, entries: Entries) -> None:
        for first in ([], _added(table, entries, NLM_F_CREATE)):
            try:
                self.commit([*first, *_removed(table, entries)])
            except BatchError as error:
                if error.errno not in _GONE:
                    raise
            else:
                return

    def content(self, table: Table) -> dict[str, dict[bytes, bytes]]:
        """Return the elements of all sets, by set; none if the table is missing."""
        found: dict[str, dict[bytes, bytes]] = {}
        for item in table.sets:
            elements = found.setdefault(item.name, {})
            _, _, query = table.message(GETSETELEM, text(1, table.name), text(2, item.name))
            for data in self._dump(10 << 8 | GETSETELEM, query):
                elements.update(_elements(data))
        return found

    def named(self, family: int) -> list[str]:
        """Return the names of a family's tables."""
        _, _, query = message(GETTABLE, family)
        found = self._dump(10 << 8 | GETTABLE, query)
        return [attrs(data, 4)[TABLE_NAME].rstrip(b"\0").decode() for data in found]

    def foreign(self) -> tuple[tuple[int, str], ...]:
        """Return IP version and name of the foreign tables, including those of iptables-nft."""
        both = self.named(INET)
        found = ((version, {*both, *self.named(family)}) for version, family in ((4, IPV4), (6, IPV6)))
        return tuple((version, it) for version, names in found for it in sorted(names) if not it.startswith(_OURS))

    def raw(self, family: int, table: str, chain: str = "") -> list[tuple[str, bytes]]:
        """Return rules of a foreign table in the kernel's encoding, each with its chain: all, or those of one chain."""
        _, _, query = message(GETRULE, family, text(1, table), text(2, chain) if chain else b"")
        found = self._dump(10 << 8 | GETRULE, query)
        return [(attrs(data, 4)[RULE_CHAIN].rstrip(b"\0").decode(), data) for data in found]

    def rules(self, table: Table) -> dict[str, list[str]]:
        """Return the comments of all rules of a table, by chain; none if the table is missing."""
        found: dict[str, list[str]] = {}
        _, _, query = table.message(GETRULE, text(1, table.name))
        for parts in (attrs(data, 4) for data in self._dump(10 << 8 | GETRULE, query)):
            chain = parts[RULE_CHAIN].rstrip(b"\0").decode()
            found.setdefault(chain, []).append(_comment(parts.get(RULE_USERDATA, b"")))
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    def _comments(self, table: Table) -> list[str] | None:
        """Return the comments of a table's rules, in order of its chains; None if the table is missing."""
        found: list[str] = []
        for chain in table.chains:
            _, _, query = table.message(GETRULE, text(1, table.name), text(2, chain.name))
            rules = self._dump(10 << 8 | GETRULE, query)
            found += [_comment(attrs(data, 4).get(RULE_USERDATA, b"")) for data in rules]
        return found or None

    def _dump(self, kind: int, query: bytes) -> list[bytes]:
        try:
            return self._open().dump(kind, query)
        except NetlinkError as error:
            if error.errno in _GONE or error.errno in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}:
                return []
            raise

    def commit(self, messages: list[Message]) -> None:
        """Commit messages as one transaction."""
        if not messages:
            return
        self._open().batch(batch(messages))
        self._generation = self._ask_generation()
        # Notifications arrive soon, so a few generations are enough.
        self.generations = {self._generation, *sorted(self.generations)[-63:]}

    def _ask_generation(self) -> int:
        kind, _, query = message(GETGEN, 0)
        return int.from_bytes(attrs(self._open().get(kind, query), 4).get(GENERATION, b""), "big")

    def _open(self) -> Netlink:
        if self._netlink is None:
            self._netlink = Netlink.open(NETLINK_NETFILTER)
        return self._netlink


def _added(table: Table, entries: Entries, flags: int) -> list[Message]:
    return [
        table.elements(NEWSETELEM, name, part, flags) for name, elements in entries.items() for part in _parts(elements)
    ]


def _removed(table: Table, entries: Entries) -> list[Message]:
    return [
        table.elements(DELSETELEM, name, dict.fromkeys(part, b""), 0)
        for name, elements in entries.items()
        for part in _parts(elements)
    ]


def _batches(entries: Entries) -> Iterable[Entries]:
    """Yield the elements in parts that fit into one transaction."""
    batch: dict[str, Mapping[bytes, bytes]] = {}
    for name, elements in entries.items():
        for part in _parts(elements, _BATCH):
            if sum(map(len, batch.values())) + len(part) > _BATCH:
                yield batch
                batch = {}
            batch[name] = part
    if batch:
        yield batch


def _parts(elements: Mapping[bytes, bytes], size: int = _CHUNK) -> Iterable[dict[bytes, bytes]]:
    items = list(elements.items())
    return (dict(items[i : i + size]) for i in range(0, len(items), size))


def _elements(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    for _, element in walk(attrs(data, 4).get(ELEMENTS, b"")):
        parts = attrs(element)
        value = attrs(parts[ELEM_DATA])[DATA_VALUE] if ELEM_DATA in parts else b""
        yield attrs(parts[ELEM_KEY])[DATA_VALUE], value


def _comments_of(table: Table) -> list[str]:
    return [comment for chain in table.chains for comment in chain.comments()]


def _comment(userdata: bytes) -> str:
    return userdata[2 : 2 + userdata[1]].rstrip(b"\0").decode(errors="replace") if len(userdata) > 1 else ""
