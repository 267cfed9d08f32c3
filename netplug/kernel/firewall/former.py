"""Removes what releases that filtered by iptables made: chains in its tables nat and raw, and sets of ipset.

Their chains in table filter go with the gate (`gate_rules`), their tables of nf_tables as all that no record names.
This module can be deleted when nobody upgrades from such a release any more.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address

from netplug.drivers.steps import FormerRules
from netplug.kernel.firewall.gate_rules import PREFIX
from netplug.kernel.firewall.iptables import NFT_FAMILIES, Iptables, UnavailableError
from netplug.kernel.firewall.table_reader import TableReader
from netplug.kernel.netlink.connection import NETLINK_NETFILTER, Netlink, NetlinkError, attr, attrs, string, text, u8

_SETS = "netplug-"
"""Beginning of the names of the sets."""
_TABLES = ("nat", "raw")
_VTEPS = "vteps"
_SUBSYSTEM = 6 << 8
_DESTROY, _LIST = _SUBSYSTEM | 3, _SUBSYSTEM | 7
_PROTOCOL, _VERSION, _NAME, _FLAGS = 1, 6, 2, 6
_LIST_NAMES, _BUSY = 0x2, 4100
"""Attributes, flags and an error of ipset (linux/netfilter/ipset/ip_set.h)."""
_HEADER = struct.pack(">BBH", 0, 0, 0)


class FormerRelease:
    """What a former release has left in this namespace. It is looked for once, and after each removal."""

    def __init__(self, iptables: dict[int, Iptables], tables: TableReader) -> None:
        self._iptables = iptables
        self._tables = tables
        self._there: bool | None = None

    async def look(self) -> FormerRules | None:
        """Return what there is, None for nothing."""
        if self._there is None:
            chains = [it async for it in self._saved()]
            self._there = bool(chains) or bool(await asyncio.to_thread(_sets))
        return FormerRules(tuple(self._members())) if self._there else None

    def _members(self) -> Iterator[str]:
        """Yield the hosts in tables ``ip netplug-vxlan`` and ``ip6 netplug-vxlan``: VTEP, UDP port, VNI."""
        for table in ("ip netplug-vxlan", "ip6 netplug-vxlan"):
            kind = self._tables.types(table).get(_VTEPS)
            if kind is None:
                continue
            for key, data in self._tables.elements(table, _VTEPS, kind).items():
                vtep, port, vni = kind.decode(key, data)[0].split(" . ")
                # nft has no type of three bytes, so the VNI was kept as the first three of an address.
                yield f"{vtep} . {port} . {int.from_bytes(ip_address(vni).packed[:3], 'big')}"

    async def remove(self) -> None:
        """Remove it: first the rules, then the sets that they looked into.

        Raises:
            UnavailableError: something cannot be removed.
        """
        self._there = None
        async for iptables, flavour, table, saved in self._saved():
            await iptables.restore(flavour, table, list(_without(saved)))
        left = [why for name in await asyncio.to_thread(_sets) if (why := await asyncio.to_thread(_destroy, name))]
        if left:
            raise UnavailableError("; ".join(left))

    async def _saved(self) -> AsyncIterator[tuple[Iptables, str, str, str]]:
        there = set(self._tables.named())
        for family, iptables in self._iptables.items():
            for flavour, names in iptables.tables({name for of, name in there if of == NFT_FAMILIES[family]}):
                for table in (it for it in _TABLES if it in names):
                    try:
                        saved = await iptables.save(flavour, table)
                    except UnavailableError:
                        continue
                    if f":{PREFIX}" in saved:
                        yield iptables, flavour, table, saved


def _without(saved: str) -> Iterator[str]:
    """Yield the input of iptables-restore that removes our chains, and the rules that lead to them."""
    ours = [line[1:].split(" ")[0] for line in saved.split("\n") if line.startswith(f":{PREFIX}")]
    for line in saved.split("\n"):
        if line.startswith("-A ") and f"-j {PREFIX}" in line and not line.startswith(f"-A {PREFIX}"):
            yield "-D" + line[2:]
    yield from (f"-F {name}" for name in ours)
    yield from (f"-X {name}" for name in ours)


def _sets() -> list[str]:
    body = _HEADER + u8(_PROTOCOL, _VERSION) + attr(_FLAGS | 0x4000, struct.pack(">I", _LIST_NAMES))
    try:
        with Netlink.open(NETLINK_NETFILTER) as netlink:
            found = [string(attrs(data, 4).get(_NAME)) for data in netlink.dump(_LIST, body)]
    except NetlinkError:  # the kernel has no sets
        return []
    return sorted({name for name in found if name.startswith(_SETS)})


def _destroy(name: str) -> str:
    """Destroy a set. Return why it cannot be; empty if it is gone."""
    try:
        with Netlink.open(NETLINK_NETFILTER) as netlink:
            netlink.request(_DESTROY, _HEADER + u8(_PROTOCOL, _VERSION) + text(_NAME, name))
    except NetlinkError as error:
        why = "rules of others look into it" if error.errno == _BUSY else error.strerror
        return f"set {name!r} of ipset cannot be removed: {why}"
    return ""
