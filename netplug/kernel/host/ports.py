"""Ports of the host, reserved by bound sockets that this process keeps.

What is published is delivered by DNAT before it could reach these sockets; only what is addressed to ::1 is served by
them, see `relays`. They keep others (and the kernel's choice of ephemeral ports) away, and let a second publication
fail with clear words.
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
from netplug.kernel.host.socket_filters import EQUAL, LOAD, RETURN, WHOLE, Filter
from netplug.kernel.progress import merged

_FREEBIND = {socket.AF_INET: (socket.IPPROTO_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}
"""Bind before the address is there (ip(7), linux/in6.h)."""


_DESTINATION = 0x100000000 - 0x100000 + 24
"""Of an IPv6 header, wherever the packet data begin (SKF_NET_OFF)."""
_NOTHING = Filter([(RETURN, 0, 0, 0)])
"""Accept no byte of any packet.

While the DNAT rule is missing (being added, flushed by someone, our restart), a SYN must not be answered by a listener
that nobody serves, nor by a RST: dropped, it is sent again a second later and finds the rule. The same for datagrams,
which would else fill a buffer that nobody reads.
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
"""Accept what is addressed to ::1; each comparison that fails skips to the end."""
_ALL = Filter([(RETURN, 0, 0, WHOLE)])
_SERVED_BACKLOG = 128
_TRIES = 16
"""How often the kernel may choose a port that we know to be taken."""
Problem = TypeVar("Problem")


class Ports:
    """The reserved ports: those that are held, and those that are only known to be taken (`HostPort.shared`)."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket] = {}
        self._known: dict[tuple[Proto, int, int], dict[str, HostPort]] = {}
        # Held, and no socket that could be bound beside our name server's would find them taken.
        self._beside: dict[str, HostPort] = {}

    def ensure(self, step: HostPort) -> Done:
        """Reserve ports unless we hold them: all or none."""
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
                for other in (it for it, outcome in done.items() if outcome is Outcome.CREATED):
                    self._remove(other)
                raise _refusal(error, step, part.port) from error
        return merged(done)

    def _ensure(self, step: HostPort) -> Outcome:
        if step.shared:
            return self._know(step)
        if (key := step.key) in self._held:
            return Outcome.EQUAL
        self._bind(step, key)
        return Outcome.CREATED

    def remove(self, step: HostPort) -> None:
        """Let go of ports."""
        for part in _parts(step):
            self._remove(part)

    def _remove(self, step: HostPort) -> None:
        known = self._known.get(_slot(step), {})
        if known.pop(step.key, None) and not known:
            del self._known[_slot(step)]
        self._beside.pop(step.key, None)
        if sock := self._held.pop(step.key, None):
            sock.close()

    def serve(self, step: HostPort, *, whole: bool = False) -> socket.socket | None:
        """Return the socket that reserves a port, to be served and not to be closed; None if it is not ours.

        At ::1, or the `whole` of it. `reserve_only` ends that.
        """
        sock = self._held.get(step.key)
        if sock is None:
            return None
        (_ALL if whole else _TO_LOOPBACK).attach(sock)
        if step.proto is not Proto.UDP:
            sock.listen(_SERVED_BACKLOG)
        sock.setblocking(False)
        return sock

    def reserve_only(self, step: HostPort) -> None:
        """Serve a port no longer."""
        if sock := self._held.get(step.key):
            _NOTHING.attach(sock)

    def drift(self, step: HostPort) -> str:
        """Say what is wrong with a reservation; empty when nothing."""
        there = all(it.key in (self._known.get(_slot(it), {}) if it.shared else self._held) for it in _parts(step))
        return "" if there else MISSING

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

    def know(self, proto: Proto, address: IPAddress, port: int) -> None:
        """Remember a port that the runtime of a container keeps for it.

        Raises:
            NetplugError: "unavailable", we have it for another.
        """
        step = HostPort(proto, address, port, shared=True)
        if self._is_known(step):
            kind, message, hint = taken(proto, address, port)
            raise NetplugError(kind, message, hint=hint)
        self._know(step)

    def close(self) -> None:
        """Let go of all ports."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()
        self._beside.clear()
        self._known.clear()
        for shared in (_NOTHING, _TO_LOOPBACK, _ALL):
            shared.close()

    def _know(self, step: HostPort) -> Outcome:
        """Remember a port, and let go of it if it was reserved for that; after a restart its runtime may hold it."""
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
            sock = _open(step)
            found = step if step.port else HostPort(step.proto, step.address, int(sock.getsockname()[1]))
            if not self._is_known(found):
                self._held[key or found.key] = sock
                if found.port == RESOLVER_PORT:
                    self._beside[found.key] = found
                return found.port
            sock.close()
            if step.port:
                break
        raise OSError(errno.EADDRINUSE, "known to be taken")


def _parts(step: HostPort) -> Iterator[HostPort]:
    return (part for part in port_ranges.each(step) if isinstance(part, HostPort))


def _slot(step: HostPort) -> tuple[Proto, int, int]:
    """Return what two reservations must share to exclude each other."""
    return step.proto, step.address.version, step.port


def overlap(one: HostPort, other: HostPort) -> bool:
    """Tell whether two reservations exclude each other, as two sockets of one family would."""
    if _slot(one) != _slot(other):
        return False
    return one.address == other.address or one.address.is_unspecified or other.address.is_unspecified


def name(proto: Proto, address: IPAddress, port: int | str) -> str:
    """Return a port as messages show it.

    >>> from ipaddress import ip_address
    >>> name(Proto.TCP, ip_address("::"), 8080)
    '[::]:8080/tcp'
    """
    return f"[{address}]:{port}/{proto}" if address.version == 6 else f"{address}:{port}/{proto}"


def full(proto: Proto, address: IPAddress, first: int, last: int) -> str:
    """Return the message for a range without a free port."""
    return f"all ports of {name(proto, address, f'{first}-{last}')} are already in use on this host"


def taken(proto: Proto, address: IPAddress, port: int) -> tuple[str, str, str]:
    """Return kind, message and hint for a port that is taken."""
    what = f"port {name(proto, address, port)} {IN_USE}"
    return "unavailable", what, "publish another host port, or stop what listens there"


def problem(
    error: OSError, proto: Proto, address: IPAddress, port: int, make: Callable[[str, str, str], Problem]
) -> Problem:
    """Say in clear words why a port cannot be reserved."""
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
def _place(address: IPAddress) -> tuple[socket.AddressFamily, str, bool]:
    """Return family and text of an address, and whether it is that of all."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    return family, text_of(address), address.is_unspecified


def _refusal(error: OSError, step: HostPort, port: int) -> StepError:
    return problem(
        error, step.proto, step.address, port, lambda kind, words, hint: StepError(kind, step, words, hint=hint)
    )


def _open(step: HostPort) -> socket.socket:
    family, address, everywhere = _place(step.address)
    datagrams = step.proto is Proto.UDP
    protocol = socket.IPPROTO_SCTP if step.proto is Proto.SCTP else 0
    sock = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM, protocol)
    try:
        descriptors.require_unreserved(sock)
        _NOTHING.attach(sock)
        if step.port == RESOLVER_PORT:
            # Beside our name server, which has this port at the addresses of gateways; see `resolvers`.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not everywhere:
            # It may come later: of a VIP, or of a link that asks for one.
            sock.setsockopt(*_FREEBIND[family], 1)
        if not datagrams:
            # Connections in TIME_WAIT do not count. Two UDP sockets, though, could then share the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, step.port))
        if not datagrams:
            # Only a listening socket excludes others that set SO_REUSEADDR.
            sock.listen(0)
    except BaseException:
        sock.close()
        raise
    return sock
