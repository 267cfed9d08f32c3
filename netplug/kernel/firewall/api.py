"""What of the host's firewall concerns our links, as data: for whoever has to explain it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A base chain of nf_tables, iptables-nft's too.

    `family`, `hook`: as nft(8) calls them. `priority`: lower comes first. `policy`: "accept" or "drop". `rules`: how
    many it has itself. `ours`: whether netplug made it.
    """

    family: str
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: int
    ours: bool


@dataclass(frozen=True, slots=True)
class FilterTable:
    """The filter table of one flavour of iptables.

    `policies`: of its built-in chains. `rules`: how many foreign ones FORWARD and INPUT have. `gate`: whether netplug's
    chains are there. `unread`: why it could not be read; all else is empty then.
    """

    family: int
    flavour: str
    policies: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)
    gate: bool = False
    unread: str = ""


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """`chains`: all base chains. `filters`: those of iptables. `libnftables`: why it is missing, or empty."""

    chains: tuple[BaseChain, ...] = ()
    filters: tuple[FilterTable, ...] = ()
    libnftables: str = ""


class FirewallView(Protocol):
    """Looks at the host's firewall."""

    def gates(self) -> frozenset[tuple[int, str]]:
        """Return IP version and flavour of the filter tables of iptables that may drop packets. Takes microseconds.

        A table in which there are rules of ours may be among them without others.
        """

    async def report(self) -> FirewallReport:
        """Return what there is. Changes nothing."""
