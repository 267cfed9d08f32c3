"""Fast path: frames between containers on two hosts bypass bridge and firewall (steps `Shortcuts` and `Shortcut`).

With ``bridge-nf-call-iptables``, a bridge passes each frame to the host's firewall, which costs more than the rest of
the path. So frames that need no further check are forwarded in hook ingress, before the bridge (nf_tables, family
netdev, ``fwd``). Each network has a table: a map of local MACs, a chain on its VXLAN link, which forwards frames to
them, and a chain on each port. The latter forwards a frame to the VXLAN link if it

- is for a MAC that is known to be on another host (a step `Remote`), and
- comes from the port's MAC and one of its IPv4 or IPv6 addresses, and is not ICMPv6 (neighbour advertisements contain
  addresses too), IGMP, or for DHCP clients.

All other frames go to the bridge, where `guards` and the firewall decide. Rules contain indexes of links, so they are
created anew with their link.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from errno import ENOENT
from sys import byteorder
from typing import Self

from netplug.drivers.naming import MARK
from netplug.drivers.tunnel import Remote, Shortcut, Shortcuts
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall.nftables import Tables
from netplug.kernel.netlink import nf_tables as nft
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import NLM_F_CREATE, Netlink, NetlinkError
from netplug.kernel.netlink.nf_tables import (
    BaseChain,
    Set,
    Table,
    equal,
    forward_to,
    map_lookup,
    member,
    payload,
    verdict,
)
from netplug.kernel.netlink.rtnl import Link, packed_mac

_NEAR = Set("near", ("ether_addr",), ("iface_index",))
_REMOTE = Set("remote", ("ether_addr",))
_TUNNEL = "tunnel"
"""The chain on the VXLAN link; those on ports bear their names."""
_TO, _FROM = payload(0, 0, 6), payload(0, 6, 6)
_IP = {
    4: (equal(nft.PROTOCOL, b"\x08\x00"), payload(1, 12, 4)),
    6: (equal(nft.PROTOCOL, b"\x86\xdd") + equal(nft.L4PROTO, b"\x3a", inverted=True), payload(1, 8, 16)),
}
_ACCEPT = verdict(nft.ACCEPT)
_OF_SERVERS = (
    ("IGMP", _IP[4][0] + equal(nft.L4PROTO, b"\2") + _ACCEPT),
    ("for a DHCP client", _IP[4][0] + equal(nft.L4PROTO, b"\x11") + equal(payload(2, 2, 2), b"\0\x44") + _ACCEPT),
    ("for a DHCPv6 client", _IP[6][0] + equal(nft.L4PROTO, b"\x11") + equal(payload(2, 2, 2), b"\x02\x22") + _ACCEPT),
)
"""What guards drop of it: see there."""


def _table(vxlan: str, *chains: BaseChain) -> Table:
    return Table(nft.NETDEV, MARK + vxlan, (_NEAR, _REMOTE), chains)


def _whole(step: Shortcuts) -> Table:
    rules = (("for a near one", map_lookup("near", _TO) + forward_to()),)
    return _table(step.vxlan, BaseChain(_TUNNEL, "filter", nft.INGRESS, 0, rules, step.vxlan))


def _port(step: Shortcut, vxlan: int) -> Table:
    own = [(_IP[address.version], address) for address in step.addresses]
    rules = (
        ("for none that is remote", member("remote", _TO, inverted=True) + _ACCEPT),
        *_OF_SERVERS,
        ("of another MAC", equal(_FROM, packed_mac(step.mac), inverted=True) + _ACCEPT),
        *(
            (f"IPv{address.version} of its own", kind + equal(source, address.packed) + forward_to(vxlan))
            for (kind, source), address in own
        ),
    )
    return _table(step.vxlan, BaseChain(step.link, "filter", nft.INGRESS, 0, rules, step.link))


@dataclass(frozen=True, slots=True)
class Found:
    """What is there, by VXLAN link: comments of rules by chain, indices of links by MAC, and MACs that are remote."""

    chains: Mapping[str, Mapping[str, list[str]]]
    near: Mapping[str, Mapping[bytes, int]]
    remote: Mapping[str, Collection[bytes]]

    @classmethod
    def at(cls, tables: Tables) -> Self:
        """Read all tables of shortcuts. Blocks: some microseconds an entry."""
        names = [name.removeprefix(MARK) for name in tables.named(nft.NETDEV) if name.startswith(MARK)]
        return cls(
            {it: tables.rules(_table(it)) for it in names},
            {it: _near(tables, it) for it in names},
            {it: _remote(tables, it) for it in names},
        )

    def drift(self, step: Shortcuts | Shortcut | Remote, links: Mapping[str, Link]) -> str:
        """Say what is wrong with a step; empty when nothing."""
        if isinstance(step, Remote):
            return "" if packed_mac(step.mac) in self.remote.get(step.vxlan, ()) else MISSING
        found = self.chains.get(step.vxlan, {})
        if isinstance(step, Shortcuts):
            return _differs(found, _whole(step))
        link, vxlan = links.get(step.link), links.get(step.vxlan)
        if link is None or vxlan is None:
            return MISSING
        at = self.near.get(step.vxlan, {}).get(packed_mac(step.mac))
        return _differs(found, _port(step, vxlan.index)) or ("" if at == link.index else f"{step.mac} leads elsewhere")

    def owned(self) -> frozenset[Shortcuts | Shortcut | Remote]:
        """Return all there is, with what it is told by."""
        remote = (Remote(vxlan, mac.hex(":")) for vxlan, macs in self.remote.items() for mac in macs)
        ports = ((vxlan, name) for vxlan, chains in self.chains.items() for name in chains if name != _TUNNEL)
        ways = (Shortcut(name, vxlan, "", ()) for vxlan, name in ports)
        return frozenset((*map(Shortcuts, self.chains), *ways, *remote))


class FastPath:
    """The shortcuts of this namespace."""

    def __init__(self, tables: Tables, nl: Netlink) -> None:
        self._tables = tables
        self._nl = nl

    def look(self) -> Found:
        """Return what is there."""
        return Found.at(self._tables)

    def ensure(self, step: Shortcuts | Shortcut) -> Outcome:
        """Bring about a network's table, or the way of one port."""
        vxlan = self._wanted(step, step.vxlan)
        if isinstance(step, Shortcuts):
            return self._tables.ensure_table(_whole(step))
        port, mac = self._wanted(step, step.link), packed_mac(step.mac)
        table, near = _port(step, vxlan), _near(self._tables, step.vxlan)
        wrong = _differs(self._tables.rules(table), table)
        # Of a link that bore another MAC before, or of this MAC on another link.
        stale = {key: b"" for key, index in near.items() if (key == mac) != (index == port)}
        if not wrong and not stale and mac in near:
            return Outcome.EQUAL
        messages = [table.elements(nft.DELSETELEM, _NEAR.name, stale, 0)] if stale else []
        if wrong:
            messages += [*table.without_chains(), *table.with_chains()]
        if near.get(mac) != port:
            value = {mac: port.to_bytes(4, byteorder)}
            messages.append(table.elements(nft.NEWSETELEM, _NEAR.name, value, NLM_F_CREATE))
        try:
            self._tables.commit(messages)
        except NetlinkError as error:
            if error.errno == ENOENT:
                raise _no_table(step) from error
            raise
        return Outcome.CREATED if wrong == MISSING and mac not in near else Outcome.ADJUSTED

    def ensure_remote(self, steps: Sequence[Remote]) -> list[Outcome]:
        """Have MACs of one network known as remote."""
        macs = [packed_mac(step.mac) for step in steps]
        try:
            found = self._tables.add(_table(steps[0].vxlan), _REMOTE.name, macs)
        except NetlinkError as error:
            if error.errno == ENOENT:
                raise _no_table(steps[0]) from error
            raise
        return [Outcome.EQUAL if mac in found else Outcome.CREATED for mac in macs]

    def remove_remote(self, steps: Sequence[Remote]) -> None:
        """Have MACs of one network not known as remote any more; absent is success."""
        macs = dict.fromkeys((packed_mac(step.mac) for step in steps), b"")
        self._tables.remove(_table(steps[0].vxlan), {_REMOTE.name: macs})

    def remove(self, step: Shortcuts | Shortcut) -> None:
        """Remove a network's table, or the way of one port; absent is success."""
        if isinstance(step, Shortcuts):
            self._tables.remove_table(_whole(step))
            return
        link = rtnl.index(self._nl, step.link)
        mac = packed_mac(step.mac) if step.mac else None
        table, near = _table(step.vxlan, BaseChain(step.link, "", 0, 0, ())), _near(self._tables, step.vxlan)
        gone = {key: b"" for key, index in near.items() if key == mac or index == link}
        messages = [table.elements(nft.DELSETELEM, _NEAR.name, gone, 0)] if gone else []
        if step.link in self._tables.rules(table):
            messages += table.without_chains()
        if messages:
            self._tables.commit(messages)

    def _wanted(self, step: Shortcuts | Shortcut, name: str) -> int:
        index = rtnl.index(self._nl, name)
        if index is None:
            raise StepError("not_found", step, f"link {name!r} is missing")
        return index


def _near(tables: Tables, vxlan: str) -> dict[bytes, int]:
    found = tables.content(_table(vxlan))[_NEAR.name]
    return {mac[:6]: int.from_bytes(index, byteorder) for mac, index in found.items()}


def _remote(tables: Tables, vxlan: str) -> frozenset[bytes]:
    return frozenset(mac[:6] for mac in tables.content(_table(vxlan))[_REMOTE.name])


def _no_table(step: Shortcut | Remote) -> StepError:
    return StepError("not_found", step, f"the table of shortcuts of link {step.vxlan!r} is missing")


def _differs(found: Mapping[str, list[str]], table: Table) -> str:
    (chain,) = table.chains
    if chain.name not in found:
        return MISSING
    return "" if found[chain.name] == chain.comments() else "its rules differ"
