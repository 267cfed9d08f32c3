"""Sets and their members, through pyroute2's AsyncIPSet (which is untyped: wrapped here, once)."""

import asyncio
import errno
import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, TypeVar

from pyroute2.ipset import AsyncIPSet
from pyroute2.netlink.exceptions import NetlinkError

from netplug.drivers.naming import MARK
from netplug.drivers.steps import IpSet, Member
from netplug.errors import NetplugError

from .api import Outcome, StepError

_EXIST = 4103
_FIND_TYPE = 4098
_HASH_FULL = 4352
_REFERENCED = 4100
"""IPSET_ERR_BUSY: rules refer to it."""
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_T = TypeVar("_T")

DEADLINE_S = 10
"""The kernel answers within a millisecond."""


@dataclass(frozen=True, slots=True)
class Found:
    """A set as the kernel has it; `members` as `Member` steps."""

    type: str
    family: int
    members: frozenset[Member]


class IpSets:
    """The sets of this namespace."""

    def __init__(self) -> None:
        self._socket: Any = None
        # The kernel runs one dump a socket at a time, and answers EBUSY to a second.
        self._dumping = asyncio.Lock()

    async def ensure(self, step: IpSet | Member) -> Outcome:
        """Bring a set or a member about."""
        return await (self.ensure_set(step) if isinstance(step, IpSet) else self.ensure_member(step))

    async def remove(self, step: IpSet | Member) -> None:
        """Remove a set or a member."""
        await (self.remove_set(step) if isinstance(step, IpSet) else self.remove_member(step))

    async def ensure_set(self, step: IpSet) -> Outcome:
        """Bring a set about; one of another type is replaced if it is empty."""
        found = await self._header(step.name)
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
        sets = await self._open(step)
        try:
            await _in_time(sets.create(step.name, step.type, family=_FAMILIES[step.family]))
        except NetlinkError as error:
            if error.code in {_FIND_TYPE, errno.ENOENT}:
                feature = "CONFIG_IP_SET_" + step.type.replace(":", "_").replace(",", "").upper()
                raise StepError(
                    "unavailable", step, f"the kernel has no sets of type {step.type} ({feature})"
                ) from error
            raise _internal(step, step.name, error) from error
        return Outcome.ADJUSTED if found else Outcome.CREATED

    async def remove_set(self, step: IpSet) -> None:
        """Destroy a set."""
        if await self._header(step.name):
            await self._destroy(step)

    async def ensure_member(self, step: Member) -> Outcome:
        """Bring a member about."""
        sets = await self._open(step)
        try:
            await _in_time(sets.add(step.set, **_entry(step)))
        except NetlinkError as error:
            if error.code == _EXIST:
                return Outcome.EQUAL
            if error.code == errno.ENOENT:
                raise StepError("not_found", step, f"set {step.set!r} is missing") from error
            if error.code == _HASH_FULL:
                raise StepError(
                    "unavailable",
                    step,
                    f"set {step.set!r} is full: no more than 64 links with one prefix, 65536 members",
                ) from error
            raise _internal(step, step.set, error) from error
        return Outcome.CREATED

    async def remove_member(self, step: Member) -> None:
        """Remove a member."""
        sets = await self._open(step)
        try:
            await _in_time(sets.delete(step.set, **_entry(step)))
        except NetlinkError as error:
            if error.code not in {_EXIST, errno.ENOENT}:
                raise _internal(step, step.set, error) from error

    async def list(self) -> dict[str, Found]:
        """Return our sets with their members, by name. Empty where the kernel has no sets at all."""
        try:
            sets = await self._open(None)
        except NetplugError:
            return {}
        found: dict[str, Found] = {}
        async with self._dumping, _deadline():
            async for message in await sets.list():
                name = str(message.get_attr("IPSET_ATTR_SETNAME"))
                if not name.startswith(MARK):
                    continue
                family = 6 if message.get_attr("IPSET_ATTR_FAMILY") == socket.AF_INET6 else 4
                members = {_member(name, item, family) for item in _data(message)}
                # A long set comes in several messages, of which the later ones lack type and family.
                before = found.get(name)
                if before:
                    members = {_member(name, item, before.family) for item in _data(message)} | before.members
                    found[name] = Found(before.type, before.family, frozenset(members))
                else:
                    found[name] = Found(str(message.get_attr("IPSET_ATTR_TYPENAME")), family, frozenset(members))
        return found

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _open(self, step: IpSet | Member | None) -> Any:
        """Open the socket at first use: a host without sets can still have networks that need none."""
        if self._socket is None:
            sets: Any = AsyncIPSet()
            try:
                await _in_time(sets.setup_endpoint())
            except (NetlinkError, OSError) as error:
                sets.close()
                words = "the kernel has no sets (CONFIG_IP_SET)"
                raise StepError("unavailable", step, words) if step else NetplugError("unavailable", words) from error
            self._socket = sets
        return self._socket

    async def _header(self, name: str) -> tuple[str, int] | None:
        try:
            sets = await self._open(None)
            async with _deadline():
                async for message in await sets.headers(name):
                    family = 6 if message.get_attr("IPSET_ATTR_FAMILY") == socket.AF_INET6 else 4
                    return str(message.get_attr("IPSET_ATTR_TYPENAME")), family
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
        return None

    async def _destroy(self, step: IpSet) -> None:
        sets = await self._open(step)
        try:
            await _in_time(sets.destroy(step.name))
        except NetlinkError as error:
            if error.code == _REFERENCED:
                raise StepError(
                    "internal", step, f"set {step.name!r} is used by firewall rules", hint="see iptables-save"
                ) from error
            if error.code != errno.ENOENT:
                raise _internal(step, step.name, error) from error


def _deadline() -> asyncio.Timeout:
    return asyncio.timeout(DEADLINE_S)


async def _in_time(work: Awaitable[_T]) -> _T:
    async with _deadline():
        return await work


def _entry(step: Member) -> dict[str, Any]:
    family = _FAMILIES[step.net.version]
    if step.link is None:
        return {"entry": str(step.net), "family": family, "etype": "net"}
    return {"entry": (str(step.net), step.link), "family": family, "etype": "net,iface"}


def _data(message: Any) -> list[Any]:
    entries = message.get_attr("IPSET_ATTR_ADT")
    return entries.get_attrs("IPSET_ATTR_DATA") if entries else []


def _member(name: str, entry: Any, family: int) -> Member:
    value = entry.get_attr("IPSET_ATTR_IP") or entry.get_attr("IPSET_ATTR_IP_FROM")
    address = value.get_attr(f"IPSET_ATTR_IPADDR_IPV{family}") if value else None
    cidr = entry.get_attr("IPSET_ATTR_CIDR")
    full = 32 if family == 4 else 128
    prefix = full if cidr is None else cidr
    base = address or ("0.0.0.0" if family == 4 else "::")
    return Member(name, ip_network(f"{base}/{prefix}"), entry.get_attr("IPSET_ATTR_IFACE"))


def _internal(step: IpSet | Member, name: str, error: NetlinkError) -> StepError:
    return StepError("internal", step, f"kernel refused set {name!r}: {error}")
