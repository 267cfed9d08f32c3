"""Tables of ours in nf_tables, and what they hold: allowed sources of ports, forwarded ports, and peers of tunnels."""

from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOENT, EOPNOTSUPP
from typing import Self, TypeAlias

from netplug.drivers.ingress import Ingress
from netplug.drivers.steps import Forwards, Guards
from netplug.drivers.tunnel import Tunnels
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall import forwards, guards, ingress, tunnels
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink.connection import NetlinkError
from netplug.kernel.netlink.nf_tables import Table

Whole: TypeAlias = Guards | Forwards | Tunnels | Ingress

_FEATURES = {
    "guards": "CONFIG_NF_TABLES_BRIDGE",
    "forwards/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_NAT, CONFIG_NFT_FIB_IPV4",
    "forwards/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_NAT, CONFIG_NFT_FIB_IPV6",
    "tunnels/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_CT, CONFIG_NFT_FIB_IPV4",
    "tunnels/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_CT, CONFIG_NFT_FIB_IPV6",
    "ingress/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_FIB_IPV4",
    "ingress/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_FIB_IPV6",
}


TABLES: Mapping[Whole, Table] = {
    Guards(): guards.TABLE,
    **{Forwards(family): table for family, table in forwards.TABLES.items()},
    **{Tunnels(family): table for family, table in tunnels.TABLES.items()},
    **{Ingress(family): table for family, table in ingress.TABLES.items()},
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the tables hold; `wrong`: what is the matter with each of them."""

    wrong: Mapping[Whole, str]
    guarded: guards.Found
    forwarded: Mapping[int, tunnels.Content]
    tunnelled: Mapping[int, tunnels.Content]

    @classmethod
    def at(cls, tables: Tables) -> Self:
        """Read all tables. Blocks: some microseconds an entry."""
        return cls(
            {step: tables.drift(table) for step, table in TABLES.items()},
            guards.Found.of(tables.content(guards.TABLE)),
            {family: tables.content(table) for family, table in forwards.TABLES.items()},
            {family: tables.content(table) for family, table in tunnels.TABLES.items()},
        )

    def tables(self) -> list[Whole]:
        """Return the tables that there are, right or not."""
        return [step for step, wrong in self.wrong.items() if wrong != MISSING]


def ensure(tables: Tables, step: Whole) -> Outcome:
    """Apply a table."""
    try:
        return tables.ensure_table(TABLES[step])
    except NetlinkError as error:
        if error.errno not in {ENOENT, EOPNOTSUPP}:
            raise
        words = f"the kernel lacks something of nf_tables ({_FEATURES[step.key]}): {error.strerror}"
        raise StepError("unavailable", step, words, hint="load the modules, or use a kernel that has it") from error
