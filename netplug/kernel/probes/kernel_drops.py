"""Packets of a job that the kernel drops, and why (tracepoint skb:kfree_skb, with reasons since Linux 5.17).

A small BPF program looks at each dropped packet and keeps those with the mark of the job. It ends with its descriptor.
"""

import os
import socket
import struct
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from netplug.kernel.probes import bpf, packets, places
from netplug.kernel.probes.api import Drop, Job
from netplug.kernel.probes.bpf import FRAME, R1, R2, R6, R7, R8, R9
from netplug.kernel.probes.btf import Btf
from netplug.kernel.probes.errors import ProbeError
from netplug.kernel.probes.marks import ICMP, ICMP6, Word, offsets, word_of
from netplug.kernel.probes.matching import Match, Matcher

_PACKET = 160
"""Bytes of a dropped packet that are kept, from its IP header on: enough for one inside VXLAN."""
_RECORD = struct.Struct(f"=QIIIIQ{_PACKET}s")
_MOST = 1024
_WORD_AT, _HALF_AT, _PACKET_AT, _RECORD_AT = -8, -16, -16 - _PACKET, -16 - _RECORD.size
_REASON_AT, _LINK_AT, _NETNS_AT = _RECORD_AT + 8, _RECORD_AT + 12, _RECORD_AT + 16
_FIELDS = (
    "sk_buff.head",
    "sk_buff.network_header",
    "sk_buff.dev",
    "net_device.ifindex",
    "net_device.nd_net.net",
    "net.ns.inum",
)
_REASONS, _PREFIX = "skb_drop_reason", "SKB_DROP_REASON_"
_HEADERS = {4: 20, 6: 40}
_QUIET = frozenset({"consumed", "not_dropped_yet", "socket_filter"})
"""What is no loss."""
_BY_RULE, _NO_SOCKET = "netfilter_drop", "no_socket"


@dataclass(frozen=True, slots=True)
class _Kernel:
    """What is known of this kernel."""

    at: dict[str, int]
    reasons: dict[int, str]


@cache
def kernel() -> _Kernel:
    """Read the kernel's types once; takes 0.1 s.

    Raises:
        ProbeError: it lacks what is needed.
    """
    try:
        btf = Btf({it.partition(".")[0] for it in _FIELDS} | {_REASONS})
        reasons = {value: name.removeprefix(_PREFIX).lower() for value, name in btf.enum(_REASONS).items()}
        return _Kernel({it: btf.offset(it) for it in _FIELDS}, reasons)
    except (OSError, KeyError) as error:
        raise ProbeError(f"this kernel does not tell why it drops packets (no BTF: {error})") from error


class DropWatch:
    """Watches while it is open.

    Raises:
        ProbeError: the kernel does not let us.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._kernel = kernel()
        try:
            self._queue = bpf.queue(_RECORD.size, _MOST)
        except OSError as error:
            raise ProbeError(f"drops of the kernel cannot be watched: {(error.strerror or '').lower()}") from error
        try:
            self._program, self._link = bpf.attach(self._code(word_of(job)), "kfree_skb")
        except OSError as error:
            os.close(self._queue)
            raise ProbeError(f"drops of the kernel cannot be watched: {(error.strerror or '').lower()}") from error

    def _code(self, word: Word) -> bytes:
        at, code = self._kernel.at, bpf.Program()
        code.copy(R6, R1)
        code.load(R7, R6, 0, 8)
        code.read_kernel(_WORD_AT, 8, R7, at["sk_buff.head"])
        code.read_kernel(_HALF_AT, 2, R7, at["sk_buff.network_header"])
        code.load(R8, FRAME, _WORD_AT, 8)
        code.load(R9, FRAME, _HALF_AT, 2)
        code.add_register(R8, R9)
        code.read_kernel(_PACKET_AT, _PACKET, R8)
        value, mask = (int.from_bytes(it.to_bytes(4, "big"), "little") for it in (word.value, word.mask))
        for offset in _offsets(self._job):
            code.load(R1, FRAME, _PACKET_AT + offset, 2)
            code.load(R2, FRAME, _PACKET_AT + offset + 2, 2)
            code.combine(R1, R2)
            code.mask(R1, mask)
            code.if_equal(R1, value, "ours")
        code.end()
        code.label("ours")
        self._keep(code)
        code.end()
        return code.packed()

    def _keep(self, code: bpf.Program) -> None:
        at = self._kernel.at
        code.load(R1, R6, 8, 8)
        code.store(FRAME, _RECORD_AT, R1, 8)
        code.load(R1, R6, 16, 8)
        code.store(FRAME, _REASON_AT, R1, 4)
        code.set(R1, 0)
        code.store(FRAME, _LINK_AT, R1, 4)
        code.store(FRAME, _NETNS_AT, R1, 4)
        code.store(FRAME, _NETNS_AT + 4, R1, 4)
        code.store(FRAME, _NETNS_AT + 8, R1, 8)
        code.read_kernel(_WORD_AT, 8, R7, at["sk_buff.dev"])
        code.load(R8, FRAME, _WORD_AT, 8)
        code.if_zero(R8, "push")
        code.read_kernel(_LINK_AT, 4, R8, at["net_device.ifindex"])
        code.read_kernel(_WORD_AT, 8, R8, at["net_device.nd_net.net"])
        code.load(R8, FRAME, _WORD_AT, 8)
        code.read_kernel(_NETNS_AT, 4, R8, at["net.ns.inum"])
        code.label("push")
        code.push(self._queue, _RECORD_AT)

    def drops(self, matcher: Matcher, *, named: bool) -> tuple[Drop, ...]:
        """Return what was dropped since it was opened.

        Args:
            matcher: knows the packets.
            named: the rule that drops them is known. The function is not looked up then, which takes 0.1 s.
        """
        popped, names = bpf.Popped(self._queue, _RECORD.size), _names(self._job)
        found: dict[tuple[int, str, str, int, bool], set[int]] = {}
        while (record := popped.pop()) is not None:
            location, code, link, inode, _, _, data = _RECORD.unpack(record)
            packet = packets.read_ip(data, matcher.tunnels)
            match = matcher.match(packet) if packet else None
            reason, netns = self._kernel.reasons.get(code, f"reason {code}"), names.get(inode, "?")
            if match and not self._is_no_loss(reason, netns, match):
                found.setdefault((location, reason, netns, link, match.back), set()).add(match.number)
        plain = {_NO_SOCKET, _BY_RULE} if named else {_NO_SOCKET}
        functions = _functions({it[0] for it in found if it[1] not in plain})
        return tuple(
            Drop(reason, functions.get(location, ""), len(numbers), netns, _link_name(netns, link), back)
            for (location, reason, netns, link, back), numbers in found.items()
        )

    def _is_no_loss(self, reason: str, netns: str, match: Match) -> bool:
        """Tell whether the packet was not lost, but done with: so are answers to us, who have no socket of TCP."""
        origin = self._job.origin
        answer = match.back and reason == _NO_SOCKET and origin is not None and netns == origin.netns
        return answer or reason in _QUIET

    def close(self) -> None:
        """End it."""
        for fd in (self._link, self._program, self._queue):
            os.close(fd)


def _offsets(job: Job) -> list[int]:
    """Return where the word may be, behind the start of the IP header."""
    versions = {ICMP: (4,), ICMP6: (6,)}
    found = {
        _HEADERS[version] + offset
        for proto, places_of in offsets(job.flow.kind).items()
        for version in versions.get(proto, (4, 6))
        for offset in places_of
    }
    return sorted(it for it in found if it + 4 <= _PACKET)


def _names(job: Job) -> dict[int, str]:
    """Return the namespaces of a job by inode."""
    wanted = {*(it.netns for it in job.posts), *job.traces, *job.legacy} | ({job.origin.netns} if job.origin else set())
    found: dict[int, str] = {}
    for netns in sorted(wanted):
        with suppress(ProbeError, OSError):
            found.setdefault(places.number(netns), netns)
    return found


@cache
def _link_name(netns: str, index: int) -> str:
    if not index or netns == "?":
        return ""
    try:
        return places.run_in(netns, lambda: socket.if_indextoname(index))
    except (OSError, ProbeError, OverflowError):
        return ""


def _functions(locations: Collection[int]) -> dict[int, str]:
    """Return the names of the functions that contain some addresses; none where the kernel hides its addresses."""
    if not locations:
        return {}
    try:
        return functions_at(locations, Path("/proc/kallsyms").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return {}


def functions_at(locations: Collection[int], symbols: str) -> dict[int, str]:
    """Return the names of the functions that contain some addresses, by the text of /proc/kallsyms.

    Who lacks CAP_SYSLOG, as netplug's service does, reads 0 for each address, and gets empty names.
    """
    lines = [line for line in symbols.splitlines() if line[17:18] in {"t", "T"}]
    found: dict[int, str] = {}
    for location in locations:
        # Addresses have 16 digits, so text is compared as numbers are.
        line = max((it for it in lines if it[:16] <= f"{location:016x}"), default="")
        found[location] = line[19:].split("\t")[0].split(".")[0] if line[:16].strip("0") else ""
    return found
