"""Reads tables of nf_tables: ours with all that they hold, and the names and rules of others."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from netplug.kernel.firewall.api import BaseChain
from netplug.kernel.firewall.set_types import Content, SetType
from netplug.kernel.firewall.table_image import Image, hooks, image, mark_of
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, attrs, string, text, walk

OURS = "netplug"
"""Prefix of our tables' names."""

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")
_NETDEV_HOOKS = ("ingress", "egress")
"""By number (linux/netfilter.h)."""


@dataclass(frozen=True, slots=True)
class Found:
    """One look at all tables of ours, by family and name: "inet netplug".

    `marks`: their comments. `hooks`: base chains by link, with the chains that they jump to.
    """

    marks: Mapping[str, str]
    images: Mapping[str, Image]
    types: Mapping[str, Mapping[str, SetType]]
    content: Mapping[str, Mapping[str, Content]]
    hooks: Mapping[str, Mapping[str, str]]


NOTHING = Found({}, {}, {}, {}, {})
"""Nobody has looked."""


class TableReader:
    """Reads the tables of this namespace, or of that of `netlink`, which is owned by this object from now on."""

    def __init__(self, netlink: Netlink | None = None) -> None:
        self._netlink = netlink

    @property
    def netlink(self) -> Netlink:
        """The socket. It is opened when it is first needed."""
        if self._netlink is None:
            self._netlink = Netlink.open(NETLINK_NETFILTER)
        return self._netlink

    def close(self) -> None:
        """Close the socket."""
        if self._netlink:
            self._netlink.close()
            self._netlink = None

    def generation(self) -> int:
        """Return the number of the ruleset's generation; each commit makes a new one."""
        kind, _, query = nft.message(nft.GETGEN, 0)
        return int.from_bytes(attrs(self.netlink.get(kind, query), 4).get(nft.GENERATION, b""), "big")

    def look(self) -> Found:
        """Return what there is of ours. Blocks: some 10 µs an element."""
        marks, images, types, content, bases = {}, {}, {}, {}, {}
        for family, name in self.named():
            found = image(self.netlink, family, name) if name.startswith(OURS) else None
            if found is not None:
                table = f"{family} {name}"
                marks[table] = mark_of(self.netlink, nft.FAMILIES[family], name) or ""
                images[table], types[table] = found, found.types
                content[table] = {of: self.elements(table, of, kind) for of, kind in found.types.items()}
                bases[table] = hooks(self.netlink, name) if family == "netdev" else {}
        return Found(marks, images, types, content, bases)

    def types(self, table: str) -> dict[str, SetType]:
        """Return the types of a table's named sets; none, if there is no such table."""
        family, name = nft.numbered(table)
        found = (attrs(data, 4) for data in nft.dump(self.netlink, nft.GETSET, family, text(1, name)))
        return {string(it[2]): of_set for it in found if (of_set := SetType.of(it))}

    def elements(self, table: str, of: str, kind: SetType) -> Content:
        """Return all elements of a set."""
        family, name = nft.numbered(table)
        parts = nft.dump(self.netlink, nft.GETSETELEM, family, text(1, name), text(2, of))
        return kind.read(it for data in parts for _, it in walk(attrs(data, 4).get(nft.ELEMENTS, b"")))

    def named(self) -> list[tuple[str, str]]:
        """Return family and name of all tables, foreign ones too."""
        found = ((it[0], string(attrs(it, 4).get(nft.TABLE_NAME))) for it in nft.dump(self.netlink, nft.GETTABLE, 0))
        return [(nft.FAMILY_NAMES[family], name) for family, name in found if family in nft.FAMILY_NAMES]

    def foreign(self) -> tuple[tuple[int, str], ...]:
        """Return IP version and name of foreign tables, iptables-nft's too; one for both versions is there twice."""
        versions = {"inet": (4, 6), "ip": (4,), "ip6": (6,)}
        found = ((version, name) for family, name in self.named() for version in versions.get(family, ()))
        return tuple(sorted({it for it in found if not it[1].startswith(OURS)}))

    def base_chains(self) -> list[BaseChain]:
        """Return all base chains, foreign ones too, by hook and priority."""
        rules = Counter((family, it[1], it[2]) for family, it in self._all(nft.GETRULE, (1, 2)))
        found = []
        for family, (data, table, name) in ((it[0], it[1]) for it in self._all(nft.GETCHAIN, (1, 3))):
            parts = attrs(data, 4)
            if nft.CHAIN_HOOK in parts:
                hook = attrs(parts[nft.CHAIN_HOOK])
                number, priority = (int.from_bytes(hook[kind], "big", signed=True) for kind in (1, 2))
                names = _NETDEV_HOOKS if family == "netdev" else _HOOKS
                policy = "drop" if int.from_bytes(parts.get(nft.CHAIN_POLICY, b"\1"), "big") == 0 else "accept"
                count = rules[family, table, name]
                chain = BaseChain(
                    family, table, name, names[number], priority, policy, count, ours=table.startswith(OURS)
                )
                found.append(chain)
        return sorted(found, key=lambda it: (it.hook, it.priority, it.family, it.table, it.name))

    def _all(self, kind: int, named: tuple[int, int]) -> list[tuple[str, tuple[bytes, str, str]]]:
        """Return all objects of a kind, with their family, and two names of theirs."""
        found = []
        for data in nft.dump(self.netlink, kind, 0):
            parts = attrs(data, 4)
            first, second = (string(parts.get(it)) for it in named)
            found.append((nft.FAMILY_NAMES.get(data[0], "?"), (data, first, second)))
        return found

    def raw(self, family: int, table: str, chain: str = "") -> list[tuple[str, bytes]]:
        """Return rules of a foreign table in the kernel's encoding, each with its chain: all, or those of one chain."""
        wanted = text(1, table), text(2, chain) if chain else b""
        found = nft.dump(self.netlink, nft.GETRULE, family, *wanted)
        return [(string(attrs(data, 4)[nft.RULE_CHAIN]), data) for data in found]
