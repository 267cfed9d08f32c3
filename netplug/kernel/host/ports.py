"""Reserves ports of the host by binding sockets to them.

DNAT delivers published ports, so packets do not reach these sockets. The exception is ::1, see `relays`. The sockets
keep other processes and the kernel's ephemeral ports away. A second publication of a port fails with a clear error.

They end with this process. A `Keeper` may have them outlive it, so that the ports stay reserved while it restarts.
"""

import errno
import socket
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import TypeVar

from netplug.drivers import port_ranges
from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.steps import HostPort, IPAddress, Proto, text_of
from netplug.errors import NetplugError
from netplug.kernel.api import IN_USE, MISSING, Done, Outcome, StepError
from netplug.kernel.host import descriptors
from netplug.kernel.host.kept_sockets import Keeper, KeepsNone, may_conflict, name_of
from netplug.kernel.host.socket_filters import EQUAL, LOAD, RETURN, WHOLE, Filter
from netplug.kernel.progress import merged

_FREEBIND = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}
"""Bind before the address exists (ip(7), linux/in6.h)."""


_DESTINATION = 0x100000000 - 0x100000 + 24
"""Offset of the destination address in the IPv6 header (SKF_NET_OFF)."""
_DROP_ALL = Filter([(RETURN, 0, 0, 0)])
"""Drop all packets.

The DNAT rule may be missing for a moment: it is being added, was flushed, or we restart. A SYN must then get neither a
SYN-ACK of a socket that is not served, nor a RST. The client repeats a dropped SYN after a second, when the rule is
there. Dropped datagrams do not fill a buffer that is not read.
"""
_TO_LOOPBACK = Filter(
    [
        *chain.from_iterable(
            ((LOAD, 0, 0, _DESTINATION + 4 * word), (EQUAL, 0, 7 - 2 * word, int(word == 3))) for word in range(4)
        ),
        (RETURN, 0, 0, WHOLE),
        (RETURN, 0, 0, 0),
    ]
)
"""Accept packets to ::1. A comparison that fails jumps to the last instruction."""
_ACCEPT_ALL = Filter([(RETURN, 0, 0, WHOLE)])
_SERVED_BACKLOG = 128
_TRIES = 16
"""How often the kernel may choose an ephemeral port that is known to be in use."""
Problem = TypeVar("Problem")


class Ports:
    """The reserved ports: bound by us, or bound by the container's runtime and only recorded (`HostPort.shared`)."""

    def __init__(self, keeper: Keeper | None = None) -> None:
        self._keeper: Keeper = keeper or KeepsNone()
        self._held: dict[str, socket.socket] = {}
        self._known: dict[tuple[Proto, int, int], dict[str, HostPort]] = {}
        # Bound with SO_REUSEPORT, as our name server's sockets. So the kernel does not refuse a second one.
        self._beside: dict[str, HostPort] = {}

    def ensure(self, step: HostPort) -> Done:
        """Reserve ports unless they are reserved: all or none."""
        if step.count == 1:  # there may be thousands
            try:
                return Done(self._ensure(step))
            except OSError as error:
                raise _refusal(error, step, step.port) from error
        done: dict[HostPort, Outcome] = {}
        for part in _parts(step):
            try:
                done[part] = self._ensure(part)
            except OSError as error:
                for created in (it for it, outcome in done.items() if outcome is Outcome.CREATED):
                    self._remove(created)
                raise _refusal(error, step, part.port) from error
        return merged(done)

    def _ensure(self, step: HostPort) -> Outcome:
        if step.shared:
            return self._record(step)
        if (key := step.key) in self._held:
            return Outcome.EQUAL
        self._bind(step, key)
        return Outcome.CREATED

    def remove(self, step: HostPort) -> None:
        """Release ports."""
        for part in _parts(step):
            self._remove(part)

    def _remove(self, step: HostPort) -> None:
        known = self._known.get(_slot(step), {})
        if known.pop(step.key, None) and not known:
            del self._known[_slot(step)]
        self._beside.pop(step.key, None)
        if sock := self._held.pop(step.key, None):
            self._keeper.forget(name_of(step))
            sock.close()

    def serve(self, step: HostPort, *, all_addresses: bool = False) -> socket.socket | None:
        """Return the socket that reserves a port, to be served until `reserve_only`. None if we do not have it.

        The socket accepts packets to ::1 only, or with `all_addresses` to all addresses. The caller does not close it.
        """
        sock = self._held.get(step.key)
        if sock is None:
            return None
        (_ACCEPT_ALL if all_addresses else _TO_LOOPBACK).attach(sock)
        if step.proto is not Proto.UDP:
            sock.listen(_SERVED_BACKLOG)
        sock.setblocking(False)
        return sock

    def reserve_only(self, step: HostPort) -> None:
        """Stop serving a port; it stays reserved."""
        if sock := self._held.get(step.key):
            _DROP_ALL.attach(sock)

    def drift(self, step: HostPort) -> str:
        """Return `MISSING` if any port of a step is not reserved, else nothing."""
        reserved = all(it.key in (self._known.get(_slot(it), {}) if it.shared else self._held) for it in _parts(step))
        return "" if reserved else MISSING

    def reserve(self, proto: Proto, address: IPAddress, first: int, last: int) -> int:
        """Reserve the first free port of a range; see `Kernel.reserve`."""
        for port in range(first, last + 1):
            try:
                return self._bind(HostPort(proto, address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port < last:
                    continue
                if error.errno == errno.EADDRINUSE and first < last:
                    raise NetplugError("unavailable", full(proto, address, first, last)) from error
                raise problem(error, proto, address, port, lambda k, m, h: NetplugError(k, m, hint=h)) from error
        raise NetplugError("invalid", f"port range {first}-{last} is empty")

    def record(self, proto: Proto, address: IPAddress, port: int) -> None:
        """Record a port that a container's runtime has bound for the container.

        Raises:
            NetplugError: "unavailable": it is reserved for another container.
        """
        step = HostPort(proto, address, port, shared=True)
        if self._is_known(step):
            kind, message, hint = taken(proto, address, port)
            raise NetplugError(kind, message, hint=hint)
        self._record(step)

    def close(self) -> None:
        """Release all ports."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()
        self._beside.clear()
        self._known.clear()
        for shared in (_DROP_ALL, _TO_LOOPBACK, _ACCEPT_ALL):
            shared.close()

    def _record(self, step: HostPort) -> Outcome:
        """Record a port. Release our own reservation of it: after a restart the runtime may bind the port itself."""
        ours = step.key in self._known.get(_slot(step), {}) or step.key in self._held
        self._remove(step)
        self._known.setdefault(_slot(step), {})[step.key] = step
        return Outcome.EQUAL if ours else Outcome.CREATED

    def _is_known(self, step: HostPort) -> bool:
        if not (self._known or self._beside):
            return False
        known = (*self._known.get(_slot(step), {}).values(), *self._beside.values())
        return any(overlap(step, other) for other in known)

    def _bind(self, step: HostPort, key: str = "") -> int:
        for _ in range(_TRIES):
            sock = self._kept(step) or self._opened(step)
            found = step if step.port else HostPort(step.proto, step.address, int(sock.getsockname()[1]))
            if not self._is_known(found):
                self._held[key or found.key] = sock
                self._keeper.keep(name_of(found), sock)
                if found.port == RESOLVER_PORT:
                    self._beside[found.key] = found
                return found.port
            self._keeper.forget(name_of(found))
            sock.close()
            if step.port:
                break
        raise OSError(errno.EADDRINUSE, "known to be in use")

    def _kept(self, step: HostPort) -> socket.socket | None:
        """Return the socket that reserved the port in the former life of this process."""
        sock = self._keeper.take(name_of(step)) if step.port else None
        if sock is not None:
            _DROP_ALL.attach(sock)  # it may have been served
        return sock

    def _opened(self, step: HostPort) -> socket.socket:
        try:
            return _open(step)
        except OSError as error:
            # Perhaps the former life reserved the port at other addresses.
            others = [name for name in self._keeper.left() if may_conflict(step, name)]
            if error.errno != errno.EADDRINUSE or not others:
                raise
        for name in others:
            self._keeper.drop(name)
        return _open(step)

    async def settled(self) -> None:
        """Wait until ports that were released can be had by others; see `Keeper`."""
        await self._keeper.settled()


def _parts(step: HostPort) -> Iterator[HostPort]:
    return (part for part in port_ranges.each(step) if isinstance(part, HostPort))


def _slot(step: HostPort) -> tuple[Proto, int, int]:
    """Return the key that two conflicting reservations have in common."""
    return step.proto, step.address.version, step.port


def overlap(one: HostPort, other: HostPort) -> bool:
    """Return whether two reservations conflict, as two sockets of one address family do."""
    if _slot(one) != _slot(other):
        return False
    return one.address == other.address or one.address.is_unspecified or other.address.is_unspecified


def name(proto: Proto, address: IPAddress, port: int | str) -> str:
    """Return a port as text for messages.

    >>> from ipaddress import ip_address
    >>> name(Proto.TCP, ip_address("::"), 8080)
    '[::]:8080/tcp'
    """
    return f"[{address}]:{port}/{proto}" if address.version == 6 else f"{address}:{port}/{proto}"


def full(proto: Proto, address: IPAddress, first: int, last: int) -> str:
    """Return the message for a range without a free port."""
    return f"all ports of {name(proto, address, f'{first}-{last}')} are already in use on this host"


def taken(proto: Proto, address: IPAddress, port: int) -> tuple[str, str, str]:
    """Return kind, message and hint of the error for a port that is in use."""
    what = f"port {name(proto, address, port)} {IN_USE}"
    return "unavailable", what, "publish another host port, or stop the process that uses it"


def problem(
    error: OSError, proto: Proto, address: IPAddress, port: int, make: Callable[[str, str, str], Problem]
) -> Problem:
    """Return the error for a port that cannot be reserved."""
    where = name(proto, address, port)
    if error.errno == errno.EADDRINUSE:
        return make(*taken(proto, address, port))
    if error.errno in {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EAFNOSUPPORT}:
        missing = "SCTP (CONFIG_IP_SCTP)" if proto is Proto.SCTP else f"IPv{address.version}"
        return make("unavailable", f"port {where} cannot be reserved: the kernel has no {missing}", "")
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return make("unavailable", f"port {where} cannot be reserved: {descriptors.EXHAUSTED}", descriptors.HINT)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return make("forbidden", f"port {where} cannot be reserved: permission denied", "run as root")
    return make("internal", f"port {where} cannot be reserved: {error.strerror}", "")


@lru_cache(maxsize=1024)
def _bind_address(address: IPAddress) -> tuple[socket.AddressFamily, str, bool]:
    """Return family and text of an address, and whether it is the unspecified address."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    return family, text_of(address), address.is_unspecified


def _refusal(error: OSError, step: HostPort, port: int) -> StepError:
    return problem(
        error, step.proto, step.address, port, lambda kind, words, hint: StepError(kind, step, words, hint=hint)
    )


def _open(step: HostPort) -> socket.socket:
    family, address, unspecified = _bind_address(step.address)
    datagrams = step.proto is Proto.UDP
    protocol = socket.IPPROTO_SCTP if step.proto is Proto.SCTP else 0
    sock = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM, protocol)
    try:
        descriptors.require_unreserved(sock)
        _DROP_ALL.attach(sock)
        if step.port == RESOLVER_PORT:
            # Our name server binds this port at the gateways' addresses; see `resolvers`.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not unspecified:
            # The address may be added later, such as a VIP or one from DHCP.
            sock.setsockopt(*_FREEBIND[family], 1)
        if not datagrams:
            # Connections in TIME_WAIT do not prevent bind(2). Not for UDP, where two sockets could share the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, step.port))
        if not datagrams:
            # Only a listening socket excludes sockets with SO_REUSEADDR.
            sock.listen(0)
    except BaseException:
        sock.close()
        raise
    return sock
