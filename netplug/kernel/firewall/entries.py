"""What lies in tables of ours in nf_tables: guards of ports, forwarded ports, and peers of tunnels."""

from collections.abc import Mapping
from dataclasses import dataclass
from errno import ENOENT, EOPNOTSUPP
from typing import Self, TypeAlias

from netplug.drivers.ingress import Ingress
from netplug.drivers.steps import Forward, Forwards, Guard, Guards
from netplug.drivers.tunnel import Tunnel, Tunnels, Vtep
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.firewall import forwards, guards, ingress, tunnels
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink.connection import NetlinkError
from netplug.kernel.netlink.nf_tables import Table

Whole: TypeAlias = Guards | Forwards | Tunnels | Ingress
Entry: TypeAlias = Guard | Forward | Tunnel | Vtep
TableStep: TypeAlias = Whole | Entry
TABLE_STEPS = (Guards, Guard, Forwards, Forward, Tunnels, Tunnel, Vtep, Ingress)

_FEATURES = {
    "guards": "CONFIG_NF_TABLES_BRIDGE",
    "forwards/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_NAT, CONFIG_NFT_FIB_IPV4",
    "forwards/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_NAT, CONFIG_NFT_FIB_IPV6",
    "tunnels/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_CT, CONFIG_NFT_FIB_IPV4",
    "tunnels/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_CT, CONFIG_NFT_FIB_IPV6",
    "ingress/4": "CONFIG_NF_TABLES_IPV4, CONFIG_NFT_FIB_IPV4",
    "ingress/6": "CONFIG_NF_TABLES_IPV6, CONFIG_NFT_FIB_IPV6",
}


_ALL: tuple[Whole, ...] = (Guards(), Forwards(4), Forwards(6), Tunnels(4), Tunnels(6), Ingress(4), Ingress(6))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the tables hold; `wrong`: what is the matter with each of them, by the key of its step."""

    wrong: Mapping[str, str]
    guarded: guards.Found
    forwarded: Mapping[int, tunnels.Content]
    tunnelled: Mapping[int, tunnels.Content]

    @classmethod
    def at(cls, tables: Tables) -> Self:
        """Read all tables. Blocks: some microseconds an entry."""
        return cls(
            {step.key: tables.drift(_table(step)) for step in _ALL},
            guards.Found.of(tables.content(guards.TABLE)),
            {family: tables.content(table) for family, table in forwards.TABLES.items()},
            {family: tables.content(table) for family, table in tunnels.TABLES.items()},
        )

    def drift(self, step: TableStep) -> str:
        """Say what is wrong with a step; empty when nothing."""
        match step:
            case Guard():
                return self.guarded.drift(step)
            case Forward():
                return forwards.drift(step, self.forwarded[step.family])
            case Tunnel() | Vtep():
                return tunnels.drift(step, self.tunnelled[step.family])
        return "" if isinstance(step, Ingress) and ingress.needless(step) else self.wrong[step.key]

    def tables(self) -> frozenset[Whole]:
        """Return the tables that there are, right or not."""
        return frozenset(step for step in _ALL if self.wrong[step.key] != MISSING)

    def owned(self) -> frozenset[Entry]:
        """Return all entries."""
        led = (it for family, content in self.forwarded.items() for it in forwards.forwards(family, content))
        tunnelled = (it for family, content in self.tunnelled.items() for it in tunnels.owned(family, content))
        return frozenset((*self.guarded.guards(), *led, *tunnelled))


def ensure(tables: Tables, step: TableStep) -> Outcome | Done:
    """Bring a table, or an entry of one, about."""
    match step:
        case Guard():
            return guards.ensure(tables, step)
        case Forward():
            return forwards.ensure(tables, (step,))[0]
        case Tunnel() | Vtep():
            return tunnels.ensure(tables, step)
        case Ingress() if ingress.needless(step):
            return Outcome.EQUAL
    try:
        return tables.ensure_table(_table(step))
    except NetlinkError as error:
        if error.errno not in {ENOENT, EOPNOTSUPP}:
            raise
        words = f"the kernel lacks something of nf_tables ({_FEATURES[step.key]}): {error.strerror}"
        raise StepError("unavailable", step, words, hint="load the modules, or use a kernel that has it") from error


def remove(tables: Tables, step: TableStep) -> None:
    """Remove a table, or an entry of one; absent is success."""
    match step:
        case Guard():
            tables.remove(guards.TABLE, guards.entries(step))
        case Forward():
            forwards.remove(tables, (step,))
        case Tunnel() | Vtep():
            tables.remove(tunnels.TABLES[step.family], tunnels.entries(step))
        case _:
            tables.remove_table(_table(step))


def _table(step: Whole) -> Table:
    match step:
        case Guards():
            return guards.TABLE
        case Forwards():
            return forwards.TABLES[step.family]
        case Ingress():
            return ingress.TABLES[step.family]
    return tunnels.TABLES[step.family]
