"""Endpoints before and after a change of their published ports, as objects of the kernel, records, and in words."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from netplug.drivers import port_ranges
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.engine.records import EndpointRecord
from netplug.engine.registry import put
from netplug.store.api import Put

Move: TypeAlias = tuple[EndpointRecord, EndpointRecord]
"""An endpoint before and after."""


def added(moves: Iterable[Move]) -> Plan:
    """Return what the later records publish, and the former do not."""
    return Plan(tuple(it for old, new in moves for it in port_ranges.less(new.exposed, port_ranges.keys(old.exposed))))


def puts(moves: Iterable[Move]) -> list[Put]:
    """Return what writes the later records."""
    return [put(new) for _, new in moves]


def described(moves: Sequence[Move]) -> str:
    """Return whose ports change."""
    first = moves[0][0].endpoint
    return f"ports of endpoint {short(first.id)}" if len(moves) == 1 else f"ports of network {short(first.network)}"
