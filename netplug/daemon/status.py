"""Signs of life for systemd, and the line that `systemctl status netplug` shows."""

import asyncio

from netplug.daemon.systemd import notify_surely, watchdog_s
from netplug.engine import Engine
from netplug.engine.conditions import QUARANTINE

LOOK_S = 10.0
"""How old the status line may be."""


async def keep_systemd_informed(engine: Engine) -> None:
    """Tell systemd that the event loop runs, twice as often as it asks for (sd_watchdog_enabled(3)), and the status."""
    within_s = watchdog_s()
    pause_s = min(LOOK_S, within_s / 2) if within_s else LOOK_S
    told = ""
    while True:
        if within_s:
            await notify_surely("WATCHDOG=1")
        if (words := status(engine)) != told:
            told = words
            await notify_surely(f"STATUS={words}")
        await asyncio.sleep(pause_s)


def status(engine: Engine) -> str:
    """Return what there is, and what is degraded, in one line."""
    networks, endpoints = len(engine.registry.networks()), len(engine.registry.endpoints())
    parts = [f"{networks} networks, {endpoints} endpoints"]
    counts = engine.conditions.counts()
    if unreadable := counts.pop(QUARANTINE, 0):
        parts.append(f"{unreadable} records in quarantine")
    if faults := {source: count for source, count in counts.items() if count}:
        parts.append("degraded: " + ", ".join(f"{source} {count}" for source, count in faults.items()))
    if len(parts) > 1:
        parts.append("see netplug diff")
    return "; ".join(parts)
