"""The way between two hosts below a tunnel: does the other VTEP answer, and how large may packets be?"""

from dataclasses import dataclass

from netplug.insight.overlay.messages import Tunnel
from netplug.kernel.probes.api import HOST, Flow, Job, Kind, Origin, Prober, Report, What, new_mark

WAIT_MS = 400
_SMALLEST = {4: 68, 6: 1280}
_ROUNDS = 6
"""Of the search for the largest size: a difference of 1500 bytes becomes one of 24."""
OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds to an IP packet: outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 5)."""


@dataclass(frozen=True, slots=True)
class Underlay:
    """`answers`: the VTEP answers an echo request. `said`: what came instead, in words.

    `largest`: the largest unfragmented IP packet that passes, if that was looked for. `told`: by whom a smaller MTU was
    told; empty: larger packets vanish silently.
    """

    answers: bool
    said: str = ""
    largest: int = 0
    told: str = ""


async def examine(prober: Prober, tunnel: Tunnel, size: int = 0) -> Underlay:
    """Ask the other VTEP for an echo, small and, if it answers and a size is given, of that IP packet size."""
    report = await _echo(prober, tunnel, 0)
    if not _answered(report):
        return Underlay(answers=False, said=_said(report))
    if not size:
        return Underlay(answers=True)
    report = await _echo(prober, tunnel, size)
    if _answered(report):
        return Underlay(answers=True, largest=size)
    told, mtu = _told(report)
    return Underlay(answers=True, largest=mtu or await _largest(prober, tunnel, size), told=told)


async def _largest(prober: Prober, tunnel: Tunnel, size: int) -> int:
    """Return a size that passes, close to the largest one."""
    low, high = _SMALLEST[tunnel.other.version], size
    for _ in range(_ROUNDS):
        middle = (low + high) // 2
        passes = _answered(await _echo(prober, tunnel, middle))
        low, high = (middle, high) if passes else (low, middle)
    return low


async def _echo(prober: Prober, tunnel: Tunnel, size: int) -> Report:
    flow = Flow(tunnel.other, Kind.ICMP, source=tunnel.vtep, size=size)
    return await prober.run(Job(flow, new_mark(), Origin(HOST), wait_ms=WAIT_MS))


def _answered(report: Report) -> bool:
    return any(it.what is What.ECHO_REPLY for it in report.replies)


def _said(report: Report) -> str:
    if report.refused:
        return report.refused
    reply = report.reply
    return f"{reply.source} says: {reply.code or reply.what}" if reply else ""


def _told(report: Report) -> tuple[str, int]:
    for it in report.replies:
        if it.what is What.TOO_BIG and it.mtu:
            return str(it.source), it.mtu
    return "", 0
