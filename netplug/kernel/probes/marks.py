"""How packets of a job are known: by 24 bits that survive NAT, encapsulation and being quoted in an ICMP error.

A word of 32 bits, the mark and the number of the packet, is the sequence number of a SYN, and the first bytes behind
the header of a UDP datagram or an echo request. A DNS question has 16 bits of the mark as its id, and no number.
"""

from dataclasses import dataclass

from netplug.kernel.probes.api import Job, Kind

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
VXLAN_PORTS = (4789, 8472)
"""Of IANA, and Linux's older one."""
_VXLAN = 8 + 8 + 14
"""Bytes from an outer UDP header to the inner IP header."""
_HEADERS = (20, 40)
"""Bytes of an IP header, by IP version, without options."""


@dataclass(frozen=True, slots=True)
class Word:
    """`value` as it stands in packets, in those bits that `mask` has."""

    value: int
    mask: int

    def fits(self, word: int) -> bool:
        """Tell whether a word is one of the job's."""
        return word & self.mask == self.value


def tunnels_of(job: Job) -> tuple[int, ...]:
    """Return the UDP ports of VXLAN."""
    return tuple(dict.fromkeys((*VXLAN_PORTS, *job.vxlan_ports)))


def word_of(job: Job) -> Word:
    """Return the word that a job's packets have."""
    if job.flow.kind is Kind.DNS:
        return Word((job.mark & 0xFFFF) << 16, 0xFFFF0000)
    return Word(job.mark << 8, 0xFFFFFF00)


def numbered(job: Job, number: int) -> int:
    """Return the word of one packet."""
    word = word_of(job)
    return word.value | (number & ~word.mask)


def offsets(kind: Kind) -> dict[int, tuple[int, ...]]:
    """Return where the word may be in packets of a flow and in answers, in bytes behind the IP header, by protocol."""
    inner = (4, 8) if kind is Kind.TCP else (8,)
    carried = {TCP: inner} if kind is Kind.TCP else {ICMP: inner, ICMP6: inner} if kind is Kind.ICMP else {UDP: inner}
    tunnelled = tuple(_VXLAN + header + it for header in _HEADERS for it in inner)
    quoting = (tuple(8 + _HEADERS[version] + it for it in inner[:1]) for version in (0, 1))
    v4, v6 = quoting
    return {
        **carried,
        UDP: (*carried.get(UDP, ()), *tunnelled),
        ICMP: (*carried.get(ICMP, ()), *v4),
        ICMP6: (*carried.get(ICMP6, ()), *v6),
    }
