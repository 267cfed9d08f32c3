"""Tells of answers that are refused as DNS rebinding, and follows the subnets of networks."""

from contextvars import Context

import structlog

from netplug.dns.pending import Counts
from netplug.dns.rebinding import Guard
from netplug.dns.wire import IPAddress, to_text
from netplug.engine import Engine
from netplug.engine.happenings import Kind
from netplug.engine.records import NetworkRecord
from netplug.engine.registry import Record

log = structlog.get_logger(__name__)

MOST_TOLD = 100
"""Names of which log and events tell, once each: who asks for ever other names must not fill the disk."""


def guard(engine: Engine, counts: Counts) -> Guard:
    """Return a guard that counts what it refuses, and tells of it once for each name."""
    told: set[bytes] = set()

    def tell(name: bytes, address: IPAddress) -> None:
        counts.blocked += 1
        if name not in told and len(told) < MOST_TOLD:
            # Whoever made the socket that the answer came by has nothing to do with it.
            Context().run(say, name, address)

    def say(name: bytes, address: IPAddress) -> None:
        told.add(name)
        more = "more names are only counted" if len(told) == MOST_TOLD else ""
        log.warning("dns.rebinding", name=to_text(name), address=str(address), **({"hint": more} if more else {}))
        engine.happenings.tell(Kind.ANSWER_BLOCKED, f"name {to_text(name)}", f"has the private address {address}")

    def follow(before: Record | None, after: Record | None) -> None:
        if isinstance(before, NetworkRecord) or isinstance(after, NetworkRecord):
            nets = [record.network for record in engine.registry.networks()]
            made.subnets = tuple(dict.fromkeys(subnet.pool for net in nets for subnet in net.subnets))

    made = Guard(tell)
    engine.registry.watchers.append(follow)
    return made
