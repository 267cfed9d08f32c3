"""Published ports in succession are one thing in records, plans and lists; the kernel has them one by one.

A container with ten thousand ports, as a media server or an FTP server publishes, would else be as many steps of each
kind, and take minutes to read, compare and write.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .api import PortMapping
from .steps import Flows, Forward, HostPort, Relay, Step

PUBLISHED = (HostPort, Flows, Forward, Relay)
"""The kinds of steps that may be of several ports."""


def each(step: Step) -> Iterator[Step]:
    """Yield the steps of single ports that a step is made of; any other step itself."""
    match step:
        case HostPort() | Flows() if step.count > 1:
            for number in range(step.count):
                yield replace(step, port=step.port + number, count=1)
        case Forward() | Relay() if step.count > 1:
            for number in range(step.count):
                yield replace(step, port=step.port + number, target=step.target + number, count=1)
        case _:
            yield step


def keys(steps: Iterable[Step]) -> Iterator[str]:
    """Yield the keys of all objects of the steps."""
    return (part.key for step in steps for part in each(step))


def joined(ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
    """Return mappings with definite host ports joined where both ends follow one another; others as they are.

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
    """Whether the host ports of a mapping are said."""
    return mapping.host_port > 0 and mapping.host_port_end <= mapping.host_port


def singles(mapping: PortMapping) -> Iterator[PortMapping]:
    """Yield the mappings of single ports that a mapping is made of."""
    if mapping.count == 1:
        yield mapping
        return
    for number in range(mapping.count):
        port = mapping.host_port + number
        yield replace(mapping, port=mapping.port + number, host_port=port, host_port_end=0, count=1)


def _sort_key(mapping: PortMapping) -> tuple[str, str, int, int]:
    return mapping.proto, str(mapping.host_address or ""), mapping.host_port, mapping.port


def _follows(one: PortMapping, other: PortMapping) -> bool:
    return (one.proto, one.host_address) == (other.proto, other.host_address) and (
        one.host_port + one.count,
        one.port + one.count,
    ) == (other.host_port, other.port)
