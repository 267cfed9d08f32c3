"""What the kernel tells of a table's constant parts: sets, chains and rules, as messages that create them again.

Handles, counters and the elements of named sets are left out. An anonymous set (``{ 53, 853 }`` in a rule) is part of
its rule, so its elements are in.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from netplug.kernel.firewall.set_types import SetType
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NLM_F_CREATE, Netlink, attr, attrs, nest, string, text, walk
from netplug.kernel.netlink.nf_tables import Message, be32, message

MARK = "netplug-version"
"""An empty chain, whose comment is the mark of its table. That of a table itself cannot be changed."""
_CHAIN_USERDATA = 12
_OF_CHAINS = (nft.CHAIN_NAME, nft.CHAIN_HOOK, nft.CHAIN_POLICY, 7, _CHAIN_USERDATA)
"""The last but one: NFTA_CHAIN_TYPE."""
_SET_NAME, _SET_FLAGS = 2, 3
_OF_SETS = (_SET_NAME, _SET_FLAGS, 4, 5, 6, 7, 8, 9, 13)
"""NFTA_SET_NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _POLICY, _DESC, _USERDATA."""
_SET_ID = 10
_ANONYMOUS = 0x1
_OF_RULES = (4, 7)
"""NFTA_RULE_EXPRESSIONS, _USERDATA."""
_OF_ELEMENTS = (1, 2, 3, 10)
"""NFTA_SET_ELEM_KEY, _DATA, _FLAGS, _KEY_END."""
_DORMANT = 0x1
_APPEND = NLM_F_CREATE | 0x800


@dataclass(frozen=True, eq=False)
class Image:
    """The constant parts, each as its attributes in the kernel's encoding; equal ones have equal digests.

    `sets`: by name. `inline`: elements of anonymous sets, by set. `chains`: names and attributes. `rules`: with the
    names of their chains. `dormant`: no base chain sees packets.
    """

    family: int
    sets: tuple[tuple[str, bytes], ...]
    inline: tuple[tuple[str, tuple[bytes, ...]], ...]
    chains: tuple[tuple[str, bytes], ...]
    rules: tuple[tuple[str, bytes], ...]
    dormant: bool = False

    @cached_property
    def types(self) -> Mapping[str, SetType]:
        """The types of the named sets and maps."""
        return {name: found for name, body in self.sets if (found := SetType.of(attrs(body)))}

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits. The order of sets and chains makes no difference."""
        parts = (sorted(self.sets), sorted(self.inline), sorted(self.chains))
        rules = sorted(self.rules, key=lambda it: it[0])
        return hashlib.sha256(repr((*parts, rules, self.dormant)).encode()).hexdigest()[:16]

    def messages(self, name: str, kept: "Image | None" = None) -> Iterator[Message]:
        """Return the messages that create sets, chains and rules in a table of that name.

        `kept`: what it was before. Of this there are sets and chains that are the same.
        """
        table, there = text(1, name), {*kept.sets, *kept.chains} if kept else set()
        for it in self.chains:
            if it not in there:
                yield message(nft.NEWCHAIN, self.family, table, it[1], flags=NLM_F_CREATE)
        inline = dict(self.inline)
        for number, (of, body) in enumerate(self.sets, 1):
            if of in self.types and (of, body) in there:
                continue
            yield message(nft.NEWSET, self.family, table, body, be32(_SET_ID, number), flags=NLM_F_CREATE)
            if of in inline:
                items = (nest(nft.LIST_ELEM, element) for element in inline[of])
                elements = nest(nft.ELEMENTS, *items)
                yield message(nft.NEWSETELEM, self.family, table, text(2, of), elements, flags=NLM_F_CREATE)
        for chain, body in self.rules:
            yield message(nft.NEWRULE, self.family, table, text(2, chain), body, flags=_APPEND)

    def without(self, new: "Image", name: str) -> Iterator[Message]:
        """Return the messages that delete all rules, and the sets and chains of which another image has no equals."""
        table = text(1, name)
        for chain, _ in self.chains:
            yield message(nft.DELRULE, self.family, table, text(2, chain))
        for chain, body in self.chains:
            if (chain, body) not in new.chains:
                yield message(nft.DELCHAIN, self.family, table, text(nft.CHAIN_NAME, chain))
        for of in self.types:
            if of in self.remade(new) or of not in new.types:
                yield message(nft.DELSET, self.family, table, text(_SET_NAME, of))

    def remade(self, new: "Image") -> list[str]:
        """Return the names of the sets that another image has otherwise."""
        bodies = dict(new.sets)
        return [of for of, body in self.sets if of in self.types and of in new.types and bodies[of] != body]

    def becomes(self, new: "Image") -> bool:
        """Return whether the table can be changed into another one.

        Not a chain to which elements or base chains of links may lead, and not one that sleeps. Nor one of a former
        release, where base chains of links had the rules themselves, and so used the sets.
        """
        bodies = dict(new.chains)
        if self.family == nft.NETDEV and (not self.led_to or self.led_to - new.led_to):
            return False
        changed = (attrs(body) for of, body in self.chains if bodies.get(of, body) != body)
        return not self.dormant and all(nft.CHAIN_HOOK in it for it in changed)

    @cached_property
    def led_to(self) -> frozenset[str]:
        """The names of the chains to which an element may lead."""
        return frozenset(of for of, body in self.chains if nft.CHAIN_HOOK not in attrs(body))


def image(netlink: Netlink, family: str, name: str) -> Image | None:
    """Return what the kernel tells of a table; None, if there is none. Blocks for some 0.3 ms.

    Base chains of family netdev are left out: they belong to links, not to the table's text.
    """
    number, table = nft.FAMILIES[family], text(1, name)
    found = _table(netlink, number, name)
    if found is None:
        return None
    dormant = bool(int.from_bytes(found.get(nft.TABLE_FLAGS, b""), "big") & _DORMANT)
    chains = [it for it in _chains(netlink, number, name) if it[0] != MARK]
    if number == nft.NETDEV:
        chains = [it for it in chains if nft.CHAIN_HOOK not in attrs(it[1])]
    sets = [_picked(data, _SET_NAME, _OF_SETS) for data in nft.dump(netlink, nft.GETSET, number, table)]
    anonymous = [of for of, body in sets if int.from_bytes(attrs(body).get(_SET_FLAGS, b""), "big") & _ANONYMOUS]
    inline = tuple((of, _elements(netlink, number, table, of)) for of in anonymous)
    names = {of for of, _ in chains}
    rules = [_picked(data, nft.RULE_CHAIN, _OF_RULES) for data in nft.dump(netlink, nft.GETRULE, number, table)]
    return Image(number, tuple(sets), inline, tuple(chains), tuple(it for it in rules if it[0] in names), dormant)


def mark_of(netlink: Netlink, family: int, name: str) -> str | None:
    """Return the mark of a table, empty if it has none; None, if there is no such table."""
    found = nft.get(netlink, nft.GETCHAIN, family, text(1, name), text(nft.CHAIN_NAME, MARK))
    if found is not None:
        return nft.comment_of(found.get(_CHAIN_USERDATA, b""))
    return None if _table(netlink, family, name) is None else ""


def marked(family: int, name: str, mark: str) -> list[Message]:
    """Return the messages that give a table its mark, instead of the one that it may have."""
    table, chain = text(1, name), text(nft.CHAIN_NAME, MARK)
    made = message(nft.NEWCHAIN, family, table, chain, nft.comment(_CHAIN_USERDATA, mark), flags=NLM_F_CREATE)
    return [made, message(nft.DELCHAIN, family, table, chain), made]


def _table(netlink: Netlink, family: int, name: str) -> dict[int, bytes] | None:
    return nft.get(netlink, nft.GETTABLE, family, text(nft.TABLE_NAME, name))


def hooks(netlink: Netlink, name: str) -> dict[str, str]:
    """Return the base chains of a netdev table by the names of their links, with the chains that they jump to.

    Empty for a base chain that does something else.
    """
    rules: dict[str, list[str]] = {}
    for data in nft.dump(netlink, nft.GETRULE, nft.NETDEV, text(1, name)):
        parts = attrs(data, 4)
        rules.setdefault(string(parts[nft.RULE_CHAIN]), []).append(nft.jump_target(parts.get(4, b"")))
    found = {}
    for of, body in _chains(netlink, nft.NETDEV, name):
        if nft.CHAIN_HOOK in attrs(body):
            alone = len(rules.get(of, ())) == 1 and nft.is_hook(attrs(body))
            found[of] = rules[of][0] if alone else ""
    return found


def _chains(netlink: Netlink, family: int, table: str) -> list[tuple[str, bytes]]:
    found = nft.dump(netlink, nft.GETCHAIN, family)
    return [_picked(data, nft.CHAIN_NAME, _OF_CHAINS) for data in found if string(attrs(data, 4).get(1)) == table]


def _elements(netlink: Netlink, family: int, table: bytes, of: str) -> tuple[bytes, ...]:
    found = []
    for data in nft.dump(netlink, nft.GETSETELEM, family, table, text(2, of)):
        for _, element in walk(attrs(data, 4).get(nft.ELEMENTS, b"")):
            found.append(_kept(element, 0, _OF_ELEMENTS))
    return tuple(sorted(found))


def _picked(data: bytes, name: int, wanted: tuple[int, ...]) -> tuple[str, bytes]:
    return string(attrs(data, 4).get(name)), _kept(data, 4, wanted)


def _kept(data: bytes, start: int, wanted: tuple[int, ...]) -> bytes:
    """Return the wanted attributes, as they are."""
    return b"".join(attr(kind, value) for kind, value in walk(data, start) if kind in wanted)
