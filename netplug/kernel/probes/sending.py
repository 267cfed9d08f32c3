"""Sends the packets of a job out of a namespace, and receives what comes back behind its firewall.

The kernel makes the IP header (raw(7)), so that routes, the firewall and neighbour resolution of the namespace apply as
they do to its processes. Raw sockets get answers after the input hook, as sockets of processes do.
"""

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address

from netplug.kernel.host import socket_filters
from netplug.kernel.probes import packets, places, socket_code, timestamps
from netplug.kernel.probes.api import IPAddress, Job, Kind
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.probes.marks import ICMP, ICMP6, TCP, UDP, numbered
from netplug.kernel.probes.matching import first_port
from netplug.kernel.probes.packets import Packet

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3
"""IP_PMTUDISC_PROBE: DF, whatever the kernel has learned of the path."""
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_RECORDS = {"A": 1, "NS": 2, "CNAME": 5, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33}
Received = tuple[Packet, int]


class Sender:
    """Sockets of one job in the namespace where it starts.

    `source`: the address that packets have. `refused`: why there is none, or why a packet could not be sent.
    `tried`: how many were sent, or stopped by a rule of the output hook (EPERM).
    """

    def __init__(self, job: Job) -> None:
        assert job.origin is not None  # noqa: S101 - of a job that is run
        self._job, self._flow = job, job.flow
        self._netns = job.origin.netns
        self._version = job.flow.destination.version
        self._stack = ExitStack()
        self._raw: dict[socket.socket, int] = {}
        self._udp: dict[int, socket.socket] = {}
        self._ports: dict[int, socket.socket] = {}
        self.refused = ""
        self.sent = self.tried = 0
        self.source: IPAddress | None = None
        try:
            places.run_in(self._netns, self._open)
        except OSError as error:
            self.close()
            self.refused = words_of(error)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.source = self._flow.source or packets.source_for(self._flow.destination)
        family = socket.AF_INET if self._version == 4 else socket.AF_INET6
        icmp = ICMP if self._version == 4 else ICMP6
        for proto in (icmp, TCP) if self._flow.kind is Kind.TCP else (icmp,):
            self._open_raw(family, proto)
        for number in range(self._job.repeat):
            if self._flow.kind is not Kind.ICMP:
                self._open_port(family, number)

    def _open_raw(self, family: int, proto: int) -> None:
        sock = self._stack.enter_context(socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, proto))
        if proto == TCP:
            socket_filters.attach(sock, socket_code.for_packets(self._job, self._version))
        _set_up(sock, self._version)
        self._bind(sock, 0)
        self._raw[sock] = proto

    def _open_port(self, family: int, number: int) -> None:
        """Reserve the source port; that of UDP also sends and receives."""
        tcp = self._flow.kind is Kind.TCP
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        sock = self._stack.enter_context(socket.socket(family, kind | socket.SOCK_CLOEXEC))
        _set_up(sock, self._version)
        try:
            self._bind(sock, first_port(self._job) + number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                words = f"source port {first_port(self._job) + number} is in use: take another one"
                raise ProbeError(words) from error
            raise
        (self._ports if tcp else self._udp)[number] = sock

    def _bind(self, sock: socket.socket, port: int) -> None:
        level = socket.IPPROTO_IP if self._version == 4 else socket.IPPROTO_IPV6
        if self._flow.source:
            sock.setsockopt(level, _IP_TRANSPARENT if self._version == 4 else _IPV6_TRANSPARENT, 1)
        # A raw socket that is bound receives only what is sent to its address.
        sock.bind((str(self.source), port))

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that receive."""
        return [*self._raw, *self._udp.values()]

    def send(self, number: int) -> None:
        """Send one packet, or note why not."""
        if self.source is None:
            return
        try:
            self._send(number, self.source)
        except OSError as error:
            self.refused = words_of(error)
            self.tried += error.errno == errno.EPERM
        else:
            self.sent += 1
            self.tried += 1

    def _send(self, number: int, source: IPAddress) -> None:
        flow, to = self._flow, (str(self._flow.destination), 0)
        if sock := self._udp.get(number):
            with suppress(BlockingIOError):
                sock.sendto(payload_of(self._job, number), (to[0], flow.port))
            return
        proto = TCP if flow.kind is Kind.TCP else ICMP if self._version == 4 else ICMP6
        raw = next(it for it, of in self._raw.items() if of == proto)
        raw.sendto(transport_of(self._job, source, number), to)

    def receive(self, sock: socket.socket) -> Iterator[Received]:
        """Yield the packets that wait in a socket, with their time."""
        while True:
            try:
                data, control, _, address = sock.recvmsg(4096, 128)
            except BlockingIOError:
                return
            except OSError:  # the error of an earlier packet, of which a raw socket has all
                continue
            if packet := self._packet(sock, data, address):
                yield packet, timestamps.time_ns(control)

    def _packet(self, sock: socket.socket, data: bytes, address: tuple[str, int]) -> Packet | None:
        sender = ip_address(address[0].partition("%")[0])
        own = self.source or sender
        if sock not in self._raw:
            port = next(first_port(self._job) + number for number, it in self._udp.items() if it is sock)
            return Packet(UDP, sender, own, address[1], port, payload=data)
        if self._version == 4:
            return packets.read_ip(data)
        return packets.read_ip(packets.ip_packet(sender, own, self._raw[sock], data))

    def close(self) -> None:
        """Close all sockets."""
        self._stack.close()


def _set_up(sock: socket.socket, version: int) -> None:
    level, option = (0, _IP_MTU_DISCOVER) if version == 4 else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
    sock.setsockopt(level, option, _PROBE)
    timestamps.request(sock)
    sock.setblocking(False)


def words_of(error: OSError) -> str:
    """Return the kernel's words for an error, with its symbolic name."""
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{name}: {os.strerror(error.errno or 0).lower()}" if name else str(error)


def payload_of(job: Job, number: int) -> bytes:
    """Return the payload of a packet: its mark, and as much as its size wants."""
    flow = job.flow
    if flow.kind is Kind.DNS:
        return packets.question(job.mark & 0xFFFF, flow.name, _RECORDS.get(flow.record, 1))
    head = 28 if flow.destination.version == 4 else 48
    wanted = max(flow.size - head, 8)
    return (numbered(job, number).to_bytes(4, "big") + b"netplug probe").ljust(wanted, b"\0")[: max(wanted, 17)]


def transport_of(job: Job, source: IPAddress, number: int) -> bytes:
    """Return what follows the IP header."""
    flow = job.flow
    ports = first_port(job) + number, flow.port
    if flow.kind is Kind.TCP:
        return packets.tcp(source, flow.destination, ports, numbered(job, number), packets.SYN)
    if flow.kind is Kind.ICMP:
        ident = first_port(job) + number  # to connection tracking, another one is another flow
        return packets.echo_request(source, flow.destination, ident, number, payload_of(job, number))
    return packets.udp(source, flow.destination, ports, payload_of(job, number))


def wait(sockets: list[int], seconds: float) -> list[int]:
    """Wait until one of some descriptors can be read, and return those."""
    poll = select.poll()
    for fd in sockets:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(seconds, 0) * 1000)]
