"""What of the host's firewall concerns our links, as data: for whoever has to explain it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from netplug.drivers.steps import IPNetwork


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
    chains are there. `unread`: why it could not be read; all else is empty then. `ufw`: whether ufw's chains are there.
    `udp_ports`: ranges that rules of INPUT, or those of ufw's users, accept, whatever other conditions these have.
    """

    family: int
    flavour: str
    policies: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)
    gate: bool = False
    unread: str = ""
    ufw: bool = False
    udp_ports: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class DroppingRule:
    """A rule of others that drops some of what the host forwards, sends or receives, or the policy of their chain.

    `where`, `text`: in words, or as iptables-save prints it. `mend`: the command that takes it away. `links`,
    `networks`: that it is about; ``+`` at the end of a name stands for any rest; of a policy, the links that other
    rules let pass. `whole`: it has no other conditions. `hook`: of the chain; rules of iptables are told of for
    "forward" only, and the policy of its OUTPUT. `after`: rules that may let pass come before it in the chain.
    """

    where: str
    chain: str
    text: str
    mend: str
    links: tuple[str, ...] = ()
    networks: tuple[IPNetwork, ...] = ()
    whole: bool = True
    hook: str = "forward"
    after: bool = False


@dataclass(frozen=True, slots=True)
class FirewallReport:
    """`chains`: all base chains. `filters`: those of iptables. `libnftables`: why it is missing, or empty.

    `dropping`: what others drop of packets of IP, as far as that is found without following their chains.
    """

    chains: tuple[BaseChain, ...] = ()
    filters: tuple[FilterTable, ...] = ()
    libnftables: str = ""
    dropping: tuple[DroppingRule, ...] = ()


class FirewallView(Protocol):
    """Looks at the host's firewall."""

    def gates(self) -> frozenset[tuple[int, str]]:
        """Return IP version and flavour of the filter tables of iptables that may drop packets. Takes microseconds.

        A table in which there are rules of ours may be among them without others.
        """

    async def report(self) -> FirewallReport:
        """Return what there is. Changes nothing."""
