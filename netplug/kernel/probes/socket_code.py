"""Classic BPF filters that let the packets of a job through, so that a busy link costs the process nothing.

ARP and ICMP pass whole: there is little of them, and errors quote packets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from netplug.kernel.host.socket_filters import AND, EQUAL, LOAD, LOAD_BYTE, LOAD_HALF, RETURN, WHOLE, Instruction
from netplug.kernel.probes.api import Job, Kind
from netplug.kernel.probes.marks import ICMP, ICMP6, TCP, UDP, Word, tunnels_of, word_of
from netplug.kernel.probes.matching import first_port
from netplug.kernel.probes.packets import ETH_ARP, ETH_IP, ETH_IP6

_AT_X = 0x20
"""Addition to a load: relative to register X (BPF_IND in place of BPF_ABS)."""
_HEADER_LENGTH, _SET_X, _ADD_X, _TO_X, _SHIFT = 0xB1, 0x01, 0x0C, 0x07, 0x64
_AT_LEAST = 0x35
_STORE, _LOAD_STORED, _LOAD_X, _FROM_X, _ADD = 0x02, 0x60, 0x61, 0x87, 0x04
"""Memory of the program, by number (linux/bpf_common.h)."""
_ETH, _TO_INNER_ETH = 14, 16


@dataclass(slots=True)
class _Code:
    """A program with labels. Jumps are by at most 255 instructions."""

    lines: list[tuple[int, str, str, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def label(self, name: str) -> None:
        self.labels[name] = len(self.lines)

    def add(self, code: int, value: int, if_true: str = "", if_false: str = "") -> None:
        self.lines.append((code, if_true, if_false, value))

    def done(self) -> list[Instruction]:
        def jump(here: int, name: str) -> int:
            return self.labels[name] - here - 1 if name else 0

        return [(code, jump(at, yes), jump(at, no), value) for at, (code, yes, no, value) in enumerate(self.lines)]


def for_frames(job: Job, *, ethernet: bool = True) -> list[Instruction]:
    """Return the filter for frames of a link: of Ethernet, or without any header (WireGuard, tun)."""
    code, word = _Code(), word_of(job)
    header = _ETH if ethernet else 0
    _network(code, header)
    _transport(code, "outer", header, job, word, nested=True)
    # Behind VXLAN, X is the length of the outer IP header.
    code.label("inner-start")
    start = header + _TO_INNER_ETH
    code.add(LOAD_HALF + _AT_X, start + 12)
    code.add(EQUAL, ETH_ARP, "pass", "inner-4")
    code.label("inner-4")
    code.add(EQUAL, ETH_IP, "inner-v4", "inner-6")
    code.label("inner-6")
    code.add(EQUAL, ETH_IP6, "inner-v6", "drop")
    inner = start + _ETH
    code.label("inner-v4")
    code.add(LOAD_BYTE + _AT_X, inner)
    code.add(AND, 15)
    code.add(_SHIFT, 2)
    code.add(_ADD_X, 0)
    code.add(_STORE, 0)
    code.add(LOAD_BYTE + _AT_X, inner + 9)
    code.add(_LOAD_X, 0)
    code.add(EQUAL, ICMP, "pass", "inner-proto")
    code.label("inner-v6")
    code.add(LOAD_BYTE + _AT_X, inner + 6)
    code.add(_STORE, 1)
    code.add(_FROM_X, 0)
    code.add(_ADD, 40)
    code.add(_TO_X, 0)
    code.add(_LOAD_STORED, 1)
    code.add(EQUAL, ICMP6, "pass", "inner-proto")
    _transport(code, "inner", inner, job, word, nested=False)
    _end(code)
    return code.done()


def for_packets(job: Job, version: int) -> list[Instruction]:
    """Return the filter for a raw socket of TCP. The kernel leaves out the header of IPv6."""
    code = _Code()
    code.add(_HEADER_LENGTH, 0) if version == 4 else code.add(_SET_X, 0)
    _words(code, "only", 0, (4, 8), word_of(job))
    _end(code)
    return code.done()


def _network(code: _Code, header: int) -> None:
    """Have X be the length of the IP header and A the protocol, or decide."""
    if header:
        code.add(LOAD_HALF, header - 2)
        code.add(EQUAL, ETH_ARP, "pass", "outer-4")
    else:
        code.add(LOAD_BYTE, 0)
        code.add(AND, 0xF0)
    code.label("outer-4")
    code.add(EQUAL, ETH_IP if header else 0x40, "outer-v4", "outer-6")
    code.label("outer-6")
    code.add(EQUAL, ETH_IP6 if header else 0x60, "outer-v6", "drop")
    code.label("outer-v6")
    code.add(_SET_X, 40)
    code.add(LOAD_BYTE, header + 6)
    code.add(EQUAL, ICMP6, "pass", "outer-proto")
    code.label("outer-v4")
    code.add(_HEADER_LENGTH, header)
    code.add(LOAD_BYTE, header + 9)
    code.add(EQUAL, ICMP, "pass", "outer-proto")


def _transport(code: _Code, name: str, start: int, job: Job, word: Word, *, nested: bool) -> None:
    code.label(f"{name}-proto")
    code.add(EQUAL, TCP, f"{name}-tcp", f"{name}-not-tcp")
    code.label(f"{name}-not-tcp")
    code.add(EQUAL, UDP, f"{name}-udp", "drop")
    code.label(f"{name}-tcp")
    if job.flow.kind is Kind.TCP:
        _words(code, f"{name}-tcp", start, (4, 8), word)
    else:
        code.add(RETURN, 0)
    code.label(f"{name}-udp")
    # Before tunnels: a datagram of ours may be for the port of one.
    if job.flow.kind in {Kind.UDP, Kind.DNS}:
        _word(code, f"{name}-udp", start + 8, word)
    if job.flow.kind is Kind.UDP:
        ports = range(first_port(job), first_port(job) + job.repeat)
        code.add(LOAD_HALF + _AT_X, start + 2)
        code.add(_AT_LEAST, ports.start, f"{name}-from", f"{name}-other")
        code.label(f"{name}-from")
        code.add(_AT_LEAST, ports.stop, f"{name}-other", "pass")
        code.label(f"{name}-other")
    if nested:
        code.add(LOAD_HALF + _AT_X, start + 2)
        for number, port in enumerate(tunnels_of(job)):
            code.add(EQUAL, port, "inner-start", f"{name}-port-{number}")
            code.label(f"{name}-port-{number}")
    code.add(RETURN, 0)


def _words(code: _Code, name: str, start: int, offsets: Sequence[int], word: Word) -> None:
    for offset in offsets:
        _word(code, f"{name}-{offset}", start + offset, word)
    code.add(RETURN, 0)


def _word(code: _Code, name: str, at: int, word: Word) -> None:
    code.add(LOAD + _AT_X, at)
    code.add(AND, word.mask)
    code.add(EQUAL, word.value, "pass", f"{name}-no-word")
    code.label(f"{name}-no-word")


def _end(code: _Code) -> None:
    code.label("drop")
    code.add(RETURN, 0)
    code.label("pass")
    code.add(RETURN, WHOLE)
