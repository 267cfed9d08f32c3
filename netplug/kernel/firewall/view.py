"""Looks at the host's whole firewall, for `api.FirewallReport`."""

import asyncio
from collections.abc import Callable

from netplug.kernel.firewall import foreign_rules, libnftables
from netplug.kernel.firewall.api import FilterTable, FirewallReport
from netplug.kernel.firewall.gate_rules import FORWARD, UFW_INPUT, Filter
from netplug.kernel.firewall.iptables import NFT_FAMILIES, Iptables
from netplug.kernel.firewall.table_reader import TableReader

_CHAINS = ("FORWARD", "INPUT")


class HostFirewall:
    """The firewall of this namespace.

    Args:
        iptables: by IP version.
        reader: of tables of nf_tables.
        changes_by_others: returns a number that grows when others have changed the ruleset of nf_tables.
    """

    def __init__(
        self, iptables: dict[int, Iptables], reader: TableReader, changes_by_others: Callable[[], int]
    ) -> None:
        self._iptables = iptables
        self._reader = reader
        self._changes_by_others = changes_by_others
        self._read: dict[int, dict[str, Filter]] = {}
        self._read_at = -1

    async def filters(self) -> dict[int, dict[str, Filter]]:
        """Return the filter tables of iptables that can be read, by IP version and flavour.

        Programs are run for it only if rules may have changed since the last time: nf_tables tells of each change,
        iptables-legacy not of all.
        """
        now, parts = self._changes_by_others(), self._iptables.values()
        if now != self._read_at or any(it.lack or it.has_legacy() for it in parts):
            self._read, self._read_at = await self._read_all(), now
        return self._read

    async def _read_all(self) -> dict[int, dict[str, Filter]]:
        there = self._reader.named()
        found = await asyncio.gather(
            *(
                it.read({name for of, name in there if of == NFT_FAMILIES[family]})
                for family, it in self._iptables.items()
            )
        )
        return dict(zip(self._iptables, found, strict=True))

    def gates(self) -> frozenset[tuple[int, str]]:
        """Return which tables may drop packets; see `FirewallView`."""
        found: set[tuple[int, str]] = set()
        families = {name: family for family, name in NFT_FAMILIES.items()}
        for it in self._reader.base_chains():
            mine = it.table == "filter" and it.name in _CHAINS and it.family in families
            if mine and (it.rules or it.policy != "accept"):
                found.add((families[it.family], "nft"))
        found |= {(family, "legacy") for family, it in self._iptables.items() if it.may_drop_legacy()}
        unread = {(family, flavour) for family, it in self._iptables.items() for flavour in it.lack}
        return frozenset(found - unread)

    def last(self) -> dict[int, dict[str, Filter]]:
        """Return the filter tables of iptables as last read, by IP version and flavour."""
        return {family: it.last for family, it in self._iptables.items()}

    async def report(self) -> FirewallReport:
        """Return what there is; see `FirewallView`."""
        filters = await self.filters()
        read = [_told(family, flavour, it) for family, found in filters.items() for flavour, it in found.items()]
        unread = [
            FilterTable(family, flavour, unread=why)
            for family, it in self._iptables.items()
            for flavour, why in it.lack.items()
        ]
        chains = await asyncio.to_thread(self._reader.base_chains)
        dropping = [
            rule
            for family, found in filters.items()
            for flavour, it in found.items()
            for rule in foreign_rules.of_iptables(family, flavour, it)
        ]
        dropping += await asyncio.to_thread(lambda: list(foreign_rules.of_nft(self._reader, chains)))
        return FirewallReport(tuple(chains), (*read, *unread), libnftables.missing(), tuple(dropping))


def _told(family: int, flavour: str, found: Filter) -> FilterTable:
    rules = {chain: len(found.foreign(chain)) for chain in _CHAINS}
    ufw, ports = UFW_INPUT in found.chains, tuple(foreign_rules.udp_ports(found))
    return FilterTable(family, flavour, dict(found.policies), rules, FORWARD in found.chains, "", ufw, ports)
