"""Packets of an endpoint that rules drop, with the rule: nf_tables' own trace, in the sandbox and on the host.

All packets of the endpoint are traced, so its traffic is slower meanwhile. Rules of iptables-legacy have only counters,
and drops without a rule tell nothing. As with probes, the tables that set `nftrace` end with the process.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.probes import places, rule_texts
from netplug.kernel.probes.api import Rule
from netplug.kernel.probes.capture import Place
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.probes.legacy_counters import LegacyCounters
from netplug.kernel.probes.rule_trace import PREFIX, Event, Tracer, compare, load, of_family, set_trace, table
from netplug.kernel.threads import in_new_thread

_HOOKS = [("prerouting", 0, ""), ("input", 1, ""), ("forward", 2, ""), ("output", 3, ""), ("postrouting", 4, "")]
_LINK_HEADER, _NETWORK_HEADER = 0, 1
_SOURCE_MAC, _DESTINATION_MAC = 6, 0
_ADDRESSES = {4: (12, 16), 6: (8, 24)}
"""Offsets of source and destination in an IP header, by version."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet that was dropped. `frame`: its headers."""

    sent: bool
    frame: bytes
    rule: Rule


@dataclass(slots=True)
class Drops:
    """Traces what is dropped until closed. `lacks`: what cannot be seen, and why."""

    place: Place
    addresses: Sequence[str]
    lacks: list[str] = field(default_factory=list)
    _tracers: list[Tracer] = field(default_factory=list)
    _chains: dict[tuple[str, str, str, str], rule_texts.Chain] = field(default_factory=dict)
    _legacy: dict[str, list[LegacyCounters]] = field(default_factory=dict)
    _link: int = 0

    def open(self) -> None:
        """Begin, on the host of this thread and in the sandbox.

        Raises:
            OSError: nf_tables cannot be used here.
        """
        with Netlink.open() as nl:
            self._link = rtnl.index(nl, self.place.host_link) or 0 if self.place.host_link else 0
        self._tracers.append(in_new_thread("np-probe", lambda: Tracer.here("", self._of_host())))
        if self.place.netns:
            everything: list[list[bytes]] = [set_trace()]
            tables = [("inet", table(nft.INET, self._name, [_HOOKS[0], _HOOKS[3]], everything))]
            try:
                opened = places.run_in(self.place.netns, lambda: Tracer.here(self.place.netns, tables))
                self._tracers.append(opened)
            except (ProbeError, OSError) as error:
                self.lacks.append(f"rules in the sandbox are not seen: {error}")
        self.lacks += [it for tracer in self._tracers for it in tracer.lacks]
        versions = sorted({ip_address(it).version for it in self.addresses})
        for netns in {"": None, self.place.netns: None}:
            with suppress(ProbeError, OSError):  # then its rules are not seen at all, which was said
                self._legacy[netns] = found = [LegacyCounters(version, netns) for version in versions]
                self.lacks += [it for counters in found for it in counters.lacks]

    def legacy(self) -> dict[str, int]:
        """Return how many rules of iptables-legacy drop, by namespace ("" for the host), where there are any."""
        counts = {netns: sum(it.rules for it in found) for netns, found in self._legacy.items()}
        return {netns: count for netns, count in counts.items() if count}

    def legacy_drops(self) -> Iterator[Rule]:
        """Yield rules of iptables-legacy that have dropped packets since `open`, of any sender."""
        for found in self._legacy.values():
            with suppress(ProbeError, OSError):  # the container has ended
                yield from (rule for counters in found for rule in counters.moved(1))

    @property
    def _name(self) -> str:
        return f"{PREFIX}{os.getpid()}-drops-{id(self)}"

    def _of_host(self) -> Iterator[tuple[str, list[nft.Message]]]:
        """Yield what traces the packets of the endpoint on the host: by address, by MAC, and all at its link."""
        routed: list[list[bytes]] = []
        for text in self.addresses:
            address = ip_address(text)
            for offset in _ADDRESSES[address.version]:
                match = [load(offset, len(address.packed), _NETWORK_HEADER), compare(address.packed)]
                routed.append([*of_family(address.version), *match, *set_trace()])
        mac = rtnl.packed_mac(self.place.mac)
        places_of = (_SOURCE_MAC, _DESTINATION_MAC)
        bridged = [[load(offset, 6, _LINK_HEADER), compare(mac), *set_trace()] for offset in places_of]
        yield "inet", table(nft.INET, self._name, _HOOKS, routed)
        if mac:
            yield "bridge", table(nft.BRIDGE, self._name, _HOOKS, bridged)
        if self._link:
            for word, hook in (("ingress", 0), ("egress", 1)):
                yield "netdev", table(nft.NETDEV, self._name, [(word, hook, self.place.host_link)], [set_trace()])

    @property
    def sockets(self) -> list[socket.socket]:
        """What is readable when there is something."""
        return [tracer.netlink.sock for tracer in self._tracers]

    def read(self) -> Iterator[Drop]:
        """Yield what was dropped since the last time."""
        for tracer in self._tracers:
            before = len(tracer.lacks)
            for event in tracer.read():
                if event.verdict == "drop" and (event.netns or self._is_mine(event)):
                    yield Drop(self._is_sent(event), event.frame, self._rule(event))
            self.lacks += tracer.lacks[before:]

    def _is_mine(self, event: Event) -> bool:
        """Tell apart what another trace, of a probe for instance, has set."""
        return (self._link != 0 and self._link in event.links) or bool(
            event.packet and {str(event.packet.source), str(event.packet.destination)}.intersection(self.addresses)
        )

    def _is_sent(self, event: Event) -> bool:
        if event.packet and str(event.packet.source) in self.addresses:
            return True
        return not event.netns and self._link != 0 and event.links[0] == self._link

    def _rule(self, event: Event) -> Rule:
        at = event.netns, event.family, event.table, event.chain
        chain = self._chains.get(at)
        if chain is None or (event.handle and event.handle not in chain.rules):
            with suppress(ProbeError, OSError):
                chain = self._chains[at] = rule_texts.read(*at)
        words = f"policy {event.verdict}"
        if event.handle:
            words = chain.rules.get(event.handle, "") if chain else ""
        return Rule(event.netns, chain.flavour if chain else "nft", *at[1:], event.verdict, words, event.handle)

    def close(self) -> None:
        """End; the kernel takes the tables away."""
        for tracer in self._tracers:
            tracer.close()
        self._tracers.clear()
