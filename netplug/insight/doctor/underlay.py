"""Check of the underlay: whether what tunnels carry fits on the way to each other host. Packets are sent (DF)."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from netplug.drivers.overlay import OVERHEAD
from netplug.drivers.steps import IPAddress
from netplug.insight.doctor.findings import Finding, ok, unchecked, warning
from netplug.kernel.probes.api import Flow, Job, Kind, Origin, Prober, Report, What, new_mark

if TYPE_CHECKING:
    from netplug.insight.insight import Subject

_WAIT_MS = 300
"""Ways between hosts of a cluster take less; a lost packet is sent once more, in a small one."""
_IN_ALL_S = 1.4


async def mtu(subject: "Subject") -> Iterable[Finding]:
    """Find ways to other hosts that are too narrow for the tunnels of networks."""
    cluster = subject.cluster
    overlays = [it.network for it in subject.engine.registry.networks() if it.network.options.mode == "overlay"]
    if cluster is None or not overlays:
        return [ok("this host has no overlay")]
    widest = max(overlays, key=lambda net: net.options.mtu)
    others = {
        host.name: host.vtep
        for ident, host in sorted(cluster.view.hosts().items())
        if ident != cluster.me and cluster.view.alive(ident)
    }
    found: list[Finding] = []
    done: set[str] = set()
    try:
        async with asyncio.timeout(_IN_ALL_S), subject.engine.kernel.probes.start() as prober:
            for name, vtep in others.items():
                size = widest.options.mtu + OVERHEAD[vtep.version]
                found += await _way(prober, name, vtep, size, widest.name)
                done.add(name)
    except TimeoutError:
        left = ", ".join(sorted(others.keys() - done))
        found.append(unchecked(f"the way to {left} was not measured: no time was left", "netplug doctor, again"))
    return found or [ok(f"packets of network {widest.name} fit on the ways to {len(others)} other hosts")]


async def _way(prober: Prober, name: str, vtep: IPAddress, size: int, network: str) -> list[Finding]:
    full = await _sent(prober, vtep, size)
    if _answered(full):
        return []
    way, overhead = f"the way to host {name} ({vtep})", OVERHEAD[vtep.version]
    if (narrow := _told(full)) or "EMSGSIZE" in full.refused:
        allows = f"allows packets of {narrow} bytes" if narrow else "is too narrow"
        words = f"{way} {allows}, and tunnels of network {network} have up to {size}: large packets get lost"
        mend = f"netplug network update {network} -o mtu={narrow - overhead}" if narrow else f"ip route get {vtep}"
        return [warning(words, f"{mend}, or raise the mtu of the underlay")]
    if full.refused:
        return [warning(f"{way} does not exist: {full.refused}", f"ip route get {vtep}")]
    if _answered(await _sent(prober, vtep, 0)):
        words = (
            f"{way} loses packets of {size} bytes without a word, and lets small ones pass: so large ones of network"
        )
        mend = f"ping -M do -s {size - 28} {vtep} finds the size; then netplug network update {network} -o mtu="
        return [warning(f"{words} {network} get lost", f"{mend}SIZE, or raise the mtu of the underlay")]
    return [
        unchecked(f"host {name} ({vtep}) answers no ping", "allow ICMP echo between the hosts, or see netplug trace")
    ]


async def _sent(prober: Prober, vtep: IPAddress, size: int) -> Report:
    flow = Flow(vtep, Kind.ICMP, size=size)
    return await prober.run(Job(flow, new_mark(), Origin(), wait_ms=_WAIT_MS, drops=False))


def _answered(report: Report) -> bool:
    return any(it.what is What.ECHO_REPLY for it in report.replies)


def _told(report: Report) -> int:
    """Return the MTU that a router on the way told; 0 if none did."""
    return next((it.mtu for it in report.replies if it.what is What.TOO_BIG), 0)
