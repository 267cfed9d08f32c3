"""Knows the packets of a job, and what each of them is."""

from dataclasses import dataclass, replace

from netplug.kernel.probes import packets
from netplug.kernel.probes.api import IPAddress, Job, Kind, What
from netplug.kernel.probes.marks import ICMP, TCP, UDP, tunnels_of, word_of
from netplug.kernel.probes.packets import Packet

_FIRST_PORT, _PORTS = 61000, 4000
"""Above those that Linux gives to connections, so that they are free."""
_V4_CODES = {
    0: "net unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "too big",
    9: "net prohibited",
    10: "host prohibited",
    13: "administratively prohibited",
}
_V6_CODES = {
    0: "no route",
    1: "administratively prohibited",
    2: "beyond scope",
    3: "address unreachable",
    4: "port unreachable",
    5: "source address failed policy",
    6: "reject route",
}


@dataclass(frozen=True, slots=True)
class Match:
    """What a packet of the job is."""

    what: What
    back: bool
    number: int = 0
    code: str = ""
    mtu: int = 0


def first_port(job: Job) -> int:
    """Return the source port of the first packet. It follows from the mark, so that other hosts know it too."""
    return job.flow.source_port or _FIRST_PORT + job.mark % _PORTS


class Matcher:
    """Knows the packets of one job."""

    def __init__(self, job: Job) -> None:
        self._word = word_of(job)
        self._kind = job.flow.kind
        self._first_port = first_port(job)
        self._ports = range(self._first_port, self._first_port + job.repeat)
        flow = job.flow
        self._addresses: set[IPAddress] = {flow.destination, *job.also} | ({flow.source} if flow.source else set())
        self.tunnels = tunnels_of(job)

    def note_source(self, address: IPAddress) -> None:
        """Take note of the source address that the routes have chosen."""
        self._addresses.add(address)

    def match(self, packet: Packet) -> Match | None:
        """Return what a packet is; None if it is not of the job."""
        if packet.proto == packets.ARP:
            known = packet.source in self._addresses or packet.destination in self._addresses
            reply = packet.kind == 2
            return Match(What.ARP_REPLY if reply else What.ARP_REQUEST, back=reply) if known else None
        if packet.quoted is not None:
            return self._error(packet, packet.quoted)
        if packet.proto == TCP:
            return self._tcp(packet) if self._kind is Kind.TCP else None
        if packet.proto == UDP:
            return self._udp(packet) if self._kind in {Kind.UDP, Kind.DNS} else None
        return self._echo(packet) if self._kind is Kind.ICMP else None

    def _tcp(self, packet: Packet) -> Match | None:
        if self._word.fits(packet.seq) and not packet.flags & (packets.RST | packets.ACK):
            return Match(What.SYN, back=False, number=packet.seq & 0xFF)
        if self._word.fits(packet.ack - 1) and packet.flags & packets.ACK and packet.ack:
            what = What.TCP
            if packet.flags & packets.RST:
                what = What.RST
            elif packet.flags & packets.SYN:
                what = What.SYN_ACK
            return Match(what, back=True, number=(packet.ack - 1) & 0xFF)
        return None

    def _udp(self, packet: Packet) -> Match | None:
        marked = self._word.fits(int.from_bytes(packet.payload[:4], "big")) and len(packet.payload) >= 4
        if self._kind is Kind.DNS:
            if not marked or len(packet.payload) < 12:
                return None
            back = bool(packet.payload[2] & 0x80)
            port = packet.port if back else packet.source_port
            return Match(What.UDP, back, port - self._first_port if port in self._ports else 0)
        if packet.port in self._ports and packet.source_port not in self._ports:
            return Match(What.UDP, back=True, number=packet.port - self._first_port)
        return Match(What.UDP, back=False, number=packet.payload[3]) if marked else None

    def _echo(self, packet: Packet) -> Match | None:
        word = int.from_bytes(packet.payload[:4], "big")
        if len(packet.payload) < 4 or not self._word.fits(word):
            return None
        request = packet.kind in {8, 128}
        return Match(What.ECHO_REQUEST if request else What.ECHO_REPLY, back=not request, number=word & 0xFF)

    def _error(self, packet: Packet, quoted: Packet) -> Match | None:
        about = self._quoted(quoted)
        if about is None:
            return None
        if packet.proto == ICMP:
            what = What.TIME_EXCEEDED if packet.kind == 11 else What.UNREACHABLE
            if packet.kind == 3 and packet.code == 4:
                what = What.TOO_BIG
            code = _V4_CODES.get(packet.code, f"code {packet.code}")
        else:
            what = {2: What.TOO_BIG, 3: What.TIME_EXCEEDED}.get(packet.kind, What.UNREACHABLE)
            code = _V6_CODES.get(packet.code, f"code {packet.code}") if what is What.UNREACHABLE else "too big"
        mtu = packet.mtu if what is What.TOO_BIG else 0
        return replace(about, what=what, back=not about.back, code=code, mtu=mtu)

    def _quoted(self, quoted: Packet) -> Match | None:
        """Return what a quoted packet was, of which there may be only eight bytes behind the IP header."""
        if quoted.proto == TCP and self._kind is Kind.TCP:
            return Match(What.SYN, back=False, number=quoted.seq & 0xFF) if self._word.fits(quoted.seq) else None
        if found := self.match(quoted):
            return found
        if quoted.proto == UDP and self._kind in {Kind.UDP, Kind.DNS} and quoted.source_port in self._ports:
            return Match(What.UDP, back=False, number=quoted.source_port - self._first_port)
        return None
