"""Sends the packets of a job as if a link of the host had received them: for what comes from outside.

A tap is made for it, whose packets traffic control redirects to the ingress of the link (tc-mirred(8)). The tap lives
as long as its descriptor, and the filter on it as long as the tap: the kernel removes both with the process. The link
itself is not touched.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from netplug.kernel.netlink import rtnl, traffic_control
from netplug.kernel.netlink.connection import NEW, Netlink, NetlinkError
from netplug.kernel.probes import packets, places
from netplug.kernel.probes.api import Job, Kind
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.probes.marks import ICMP, ICMP6, TCP, UDP, numbered
from netplug.kernel.probes.matching import first_port
from netplug.kernel.probes.packets import ETH_IP, ETH_IP6, Packet
from netplug.kernel.probes.sending import transport_of, words_of

_TUNSETIFF, _SIOCSIFHWADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x400454CA, 0x8924, 0x8913, 0x8914
_IFF_TAP, _IFF_NO_PI, _IFF_UP, _IFF_NOARP = 0x2, 0x1000, 0x1, 0x80
_ARPHRD_ETHER = 1
_NEWQDISC, _NEWFILTER = 36, 44
_MAC = "02:6e:70:00:00:01"
"""Of the sender, unless the job names one; locally administered."""
_PROTOCOLS = {Kind.TCP: (TCP, TCP), Kind.UDP: (UDP, UDP), Kind.DNS: (UDP, UDP), Kind.ICMP: (ICMP, ICMP6)}


class Injector:
    """The tap of one job; what `sending.Sender` is for a namespace. Answers are seen by a post on the link."""

    def __init__(self, job: Job) -> None:
        origin = job.origin
        if origin is None or job.flow.source is None:
            raise ProbeError("what comes from outside needs a source address")
        self._job, self._link = job, origin.link
        self.source = job.flow.source
        self.refused = ""
        self.sent = 0
        self.sockets: list[socket.socket] = []
        self._sender = rtnl.packed_mac(origin.mac or _MAC)
        self._own = b""
        self._tap = places.run_in(origin.netns, self._open)

    def _open(self) -> int:
        with Netlink.open() as netlink:
            target = rtnl.link(netlink, self._link)
            if target is None:
                raise ProbeError(f"link {self._link!r} is gone")
            self._own = rtnl.packed_mac(target.mac)
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                made = fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"npprobe%d", _IFF_TAP | _IFF_NO_PI))
                name = made[:16].rstrip(b"\0")
                self._set_up(netlink, name, target.index)
            except OSError as error:
                os.close(tap)
                raise ProbeError(f"no packet can be injected at link {self._link!r}: {words_of(error)}") from error
        return tap

    def _set_up(self, netlink: Netlink, name: bytes, target: int) -> None:
        # With the MAC of the link, so that the packets count as sent to this host.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, _SIOCSIFHWADDR, struct.pack("16sH6s16x", name, _ARPHRD_ETHER, self._own))
            with suppress(OSError):  # the kernel lacks IPv6
                Path(f"/proc/sys/net/ipv6/conf/{name.decode()}/disable_ipv6").write_text("1")
            flags = struct.unpack("16sH22x", fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16s24x", name)))[1]
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP | _IFF_NOARP))
        index = rtnl.index(netlink, name.decode()) or 0
        try:
            netlink.request(_NEWQDISC, traffic_control.ingress(index), NEW)
            netlink.request(_NEWFILTER, traffic_control.redirect(index, target, ingress=True), NEW)
        except NetlinkError as error:
            raise OSError(error.errno, error.strerror) from error

    @property
    def tried(self) -> int:
        """How many packets were sent."""
        return self.sent

    def send(self, number: int) -> None:
        """Send one packet, or note why not."""
        flow = self._job.flow
        proto = _PROTOCOLS[flow.kind][flow.destination.version == 6]
        try:
            self._write(proto, transport_of(self._job, self.source, number))
        except OSError as error:
            self.refused = words_of(error)
        else:
            self.sent += 1

    def reset(self, number: int) -> None:
        """Take down the half-open connection of an answered SYN, as the kernel does for `sending.Sender`."""
        flow = self._job.flow
        seq = (numbered(self._job, number) + 1) & 0xFFFFFFFF
        ports = first_port(self._job) + number, flow.port
        with suppress(OSError):
            self._write(TCP, packets.tcp(self.source, flow.destination, ports, seq, packets.RST))

    def _write(self, proto: int, body: bytes) -> None:
        packet = packets.ip_packet(self.source, self._job.flow.destination, proto, body)
        kind = ETH_IP if self.source.version == 4 else ETH_IP6
        os.write(self._tap, self._own + self._sender + kind.to_bytes(2, "big") + packet)

    def receive(self, sock: socket.socket) -> Iterator[tuple[Packet, int]]:
        """Yield nothing: see `sockets`."""
        del sock
        yield from ()

    def close(self) -> None:
        """Remove the tap."""
        os.close(self._tap)
