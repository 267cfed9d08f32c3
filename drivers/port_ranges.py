"""Ranges of published ports: one object in records, plans and lists, but single ports in the kernel.

A container may publish ten thousand ports, such as a media or FTP server. With a step for each port and type, reading,
comparing and writing its plan would take minutes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .api import PortMapping
from .steps import Element, Flows, HostPort, Relay, Step


def each(step: Step) -> Iterator[Step]:
    """Yield a step for each port of a step. A step without ports is yielded unchanged."""
    match step:
        case HostPort() | Flows() if step.count > 1:
            for number in range(step.count):
                yield replace(step, port=step.port + number, count=1)
        case Relay() if step.count > 1:
            for number in range(step.count):
                yield replace(step, port=step.port + number, target=step.target + number, count=1)
        case Element() if step.count > 1:
            for number in range(step.count):
                yield replace(step, item=_later(step.item, number), data=_later(step.data, number), count=1)
        case _:
            yield step


def leads(step: Step) -> bool:
    """Return whether a step leads ports of the host to a container (DNAT)."""
    return isinstance(step, Element) and step.set.startswith(("published", "target"))


def is_published(step: Step) -> bool:
    """Return whether a step is about published ports."""
    return isinstance(step, HostPort | Flows | Relay) or leads(step)


def keys(steps: Iterable[Step]) -> Iterator[str]:
    """Yield the keys of all objects of the steps, one for each port."""
    return (part.key for step in steps for part in each(step))


def less(steps: Iterable[Step], keys: Iterable[str]) -> Iterator[Step]:
    """Yield steps without the objects of these keys; one of which only a part is left is yielded port by port."""
    gone = frozenset(keys)
    for step in steps:
        parts = list(each(step))
        left = [part for part in parts if part.key not in gone]
        yield from [step] if len(left) == len(parts) else left


def joined(ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Join mappings whose host and container ports are consecutive. Those without a fixed host port stay as they are.

    >>> from netplug.drivers.steps import Proto
    >>> tcp = [PortMapping(Proto.TCP, 80 + number, None, 8080 + number) for number in (2, 0, 1)]
    >>> list(map(str, joined(tcp)))
    ['0.0.0.0:8080-8082->80-82/tcp']
    """
    found: list[PortMapping] = []
    for mapping in sorted(dict.fromkeys(ports), key=_sort_key):
        last = found[-1] if found else None
        if last and definite(last) and definite(mapping) and _follows(last, mapping):
            found[-1] = replace(last, count=last.count + mapping.count)
        else:
            found.append(mapping)
    return tuple(found)


def definite(mapping: PortMapping) -> bool:
    """Return whether a mapping has fixed host ports, not a range to choose from."""
    return mapping.host_port > 0 and mapping.host_port_end <= mapping.host_port


def singles(mapping: PortMapping) -> Iterator[PortMapping]:
    """Yield a mapping for each port of a mapping."""
    if mapping.count == 1:
        yield mapping
        return
    for number in range(mapping.count):
        port = mapping.host_port + number
        yield replace(mapping, port=mapping.port + number, host_port=port, host_port_end=0, count=1)


def _later(words: str, number: int) -> str:
    """Return key or data of an element that is so many behind another in the port, its last field.

    >>> _later("10.0.0.1 . tcp . 8080", 2)
    '10.0.0.1 . tcp . 8082'
    """
    before, separator, port = words.rpartition(" . ")
    return f"{before}{separator}{int(port) + number}" if words else ""


def _sort_key(mapping: PortMapping) -> tuple[str, str, int, int]:
    return mapping.proto, str(mapping.host_address or ""), mapping.host_port, mapping.port


def _follows(one: PortMapping, other: PortMapping) -> bool:
    return (one.proto, one.host_address) == (other.proto, other.host_address) and (
        one.host_port + one.count,
        one.port + one.count,
    ) == (other.host_port, other.port)
