"""Sets and their members (ipset(8)), by netlink: include/uapi/linux/netfilter/ipset/ip_set.h.

Messages are packed by hand, since each attach adds members, also CNI without a daemon; see `connection`.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from netplug.drivers.naming import MARK
from netplug.drivers.steps import IpSet, Member
from netplug.errors import NetplugError
from netplug.kernel.api import Done, Outcome, StepError
from netplug.kernel.netlink.connection import (
    NETLINK_NETFILTER,
    NEW,
    NLM_F_EXCL,
    Netlink,
    NetlinkError,
    attr,
    attrs,
    nest,
    string,
    text,
    u8,
    walk,
)

_SUBSYSTEM = 6 << 8
_PROTOCOL, _CREATE, _DESTROY, _LIST, _ADD, _DEL, _TEST, _HEADER, _TYPE = (
    _SUBSYSTEM | it for it in (1, 2, 3, 7, 9, 10, 11, 12, 13)
)
_VERSION = 6
"""Of the protocol; all kernels since 2.6.39 speak it."""
_NFGENMSG = struct.Struct("!BBH")
_ATTR_PROTOCOL, _ATTR_SETNAME, _ATTR_TYPENAME, _ATTR_REVISION, _ATTR_FAMILY = 1, 2, 3, 4, 5
_ATTR_DATA, _ATTR_ADT = 7, 8
_ATTR_IP, _ATTR_CIDR, _ATTR_IFACE = 1, 3, 23
_NET_BYTEORDER = 0x4000
_ADDRESS = {4: 1, 6: 2}

_EXIST = 4103
_FIND_TYPE = 4098
_HASH_FULL = 4352
_REFERENCED = 4100
"""IPSET_ERR_BUSY: rules refer to it."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Found:
    """A set as the kernel has it; `members` as `Member` steps."""

    type: str
    family: int
    members: frozenset[Member]


class IpSets:
    """The sets of this namespace."""

    def __init__(self) -> None:
        self._socket: Netlink | None = None

    async def ensure_set(self, step: IpSet) -> Outcome | Done:
        """Apply a set; one of another type is replaced if it is empty."""
        found = self._header(step.name)
        if found == (step.type, step.family):
            return Outcome.EQUAL
        if found:
            full = (await self.list())[step.name]
            if full.members:
                raise StepError(
                    "exists",
                    step,
                    f"set {step.name!r} is a {found[0]} of IPv{found[1]}, not {step.type}, and not empty",
                )
            await self._destroy(step)
        sets = self._open(step)
        family = u8(_ATTR_FAMILY, _FAMILIES[step.family])
        try:
            kinds = attrs(sets.get(_TYPE, _message(text(_ATTR_TYPENAME, step.type), family)), _NFGENMSG.size)
            revision = attr(_ATTR_REVISION, kinds[_ATTR_REVISION])
            words = _named(step.name) + text(_ATTR_TYPENAME, step.type)
            sets.request(_CREATE, _message(words, revision, family, nest(_ATTR_DATA)), NEW)
        except NetlinkError as error:
            if error.errno in {_FIND_TYPE, errno.ENOENT}:
                feature = "CONFIG_IP_SET_" + step.type.replace(":", "_").replace(",", "").upper()
                raise StepError(
                    "unavailable", step, f"the kernel has no sets of type {step.type} ({feature})"
                ) from error
            raise _internal(step, step.name, error) from error
        return Done(Outcome.ADJUSTED, (IpSet(step.name, *found),)) if found else Outcome.CREATED

    async def remove_set(self, step: IpSet) -> None:
        """Destroy a set."""
        if self._header(step.name):
            await self._destroy(step)

    async def ensure_member(self, step: Member) -> Outcome:
        """Apply a member."""
        try:
            self._open(step).request(_ADD, _message(_named(step.set), _entry(step)), NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno == _EXIST:
                return Outcome.EQUAL
            if error.errno == errno.ENOENT:
                raise StepError("not_found", step, f"set {step.set!r} is missing") from error
            if error.errno == _HASH_FULL:
                raise StepError(
                    "unavailable",
                    step,
                    f"set {step.set!r} is full: no more than 64 links with one prefix, 65536 members",
                ) from error
            raise _internal(step, step.set, error) from error
        return Outcome.CREATED

    async def remove_member(self, step: Member) -> None:
        """Remove a member."""
        try:
            self._open(step).request(_DEL, _message(_named(step.set), _entry(step)), NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno not in {_EXIST, errno.ENOENT}:
                raise _internal(step, step.set, error) from error

    def has(self, step: Member) -> bool:
        """Tell whether a set matches: of a single address, whether a member contains it."""
        try:
            self._open(step).request(_TEST, _message(_named(step.set), _entry(step)))
        except NetlinkError as error:
            if error.errno in {_EXIST, errno.ENOENT}:
                return False
            raise _internal(step, step.set, error) from error
        return True

    async def list(self) -> dict[str, Found]:
        """Return our sets with their members, by name. Empty where the kernel has no sets at all."""
        try:
            sets = self._open(None)
        except NetplugError:
            return {}
        found: dict[str, Found] = {}
        for message in await asyncio.to_thread(sets.dump, _LIST, _message()):
            said = attrs(message, _NFGENMSG.size)
            name = string(said.get(_ATTR_SETNAME))
            if not name.startswith(MARK):
                continue
            # A long set comes in several messages, of which the later ones lack type and family.
            before = found.get(name) or Found(string(said.get(_ATTR_TYPENAME)), _family(said), frozenset())
            members = frozenset(_members(name, said.get(_ATTR_ADT, b""), before.family))
            found[name] = Found(before.type, before.family, before.members | members)
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self, step: IpSet | Member | None) -> Netlink:
        """Open the socket at first use: a host without sets can still have networks that need none."""
        if self._socket is None:
            sets = Netlink.open(NETLINK_NETFILTER)
            try:
                sets.get(_PROTOCOL, _message())
            except OSError as error:
                sets.close()
                words = "the kernel has no sets (CONFIG_IP_SET)"
                raise StepError("unavailable", step, words) if step else NetplugError("unavailable", words) from error
            self._socket = sets
        return self._socket

    def _header(self, name: str) -> tuple[str, int] | None:
        try:
            said = attrs(self._open(None).get(_HEADER, _message(_named(name))), _NFGENMSG.size)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return string(said.get(_ATTR_TYPENAME)), _family(said)

    async def _destroy(self, step: IpSet) -> None:
        sets = self._open(step)
        try:
            # The kernel waits for an RCU grace period.
            await asyncio.to_thread(sets.request, _DESTROY, _message(_named(step.name)))
        except NetlinkError as error:
            if error.errno == _REFERENCED:
                raise StepError(
                    "internal", step, f"set {step.name!r} is used by firewall rules", hint="see iptables-save"
                ) from error
            if error.errno != errno.ENOENT:
                raise _internal(step, step.name, error) from error


def _message(*parts: bytes) -> bytes:
    return _NFGENMSG.pack(socket.AF_INET, 0, 0) + u8(_ATTR_PROTOCOL, _VERSION) + b"".join(parts)


def _named(name: str) -> bytes:
    return text(_ATTR_SETNAME, name)


def _entry(step: Member) -> bytes:
    version = step.net.version
    address = nest(_ATTR_IP, attr(_ADDRESS[version] | _NET_BYTEORDER, step.net.network_address.packed))
    link = text(_ATTR_IFACE, step.link) if step.link is not None else b""
    return nest(_ATTR_DATA, address, u8(_ATTR_CIDR, step.net.prefixlen), link)


def _family(said: dict[int, bytes]) -> int:
    return 6 if said.get(_ATTR_FAMILY) == bytes((socket.AF_INET6,)) else 4


def _members(name: str, entries: bytes, family: int) -> Iterator[Member]:
    for kind, entry in walk(entries):
        if kind != _ATTR_DATA:
            continue
        said = attrs(entry)
        address = attrs(said.get(_ATTR_IP, b"")).get(_ADDRESS[family])
        base = ip_address(address) if address else ("0.0.0.0" if family == 4 else "::")
        prefix = said[_ATTR_CIDR][0] if _ATTR_CIDR in said else 32 if family == 4 else 128
        link = string(said[_ATTR_IFACE]) if _ATTR_IFACE in said else None
        yield Member(name, ip_network(f"{base}/{prefix}"), link)


def _internal(step: IpSet | Member, name: str, error: NetlinkError) -> StepError:
    return StepError("internal", step, f"kernel refused set {name!r}: {error}")
