"""Host ports of published ports: chosen and reserved before any rule leads to them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address

from netplug.drivers.api import Endpoint, PortMapping
from netplug.drivers.steps import HostPort, IPAddress
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel

_ALL = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
_TRIES = 16
"""How often a port that is free for one family and taken for the other is given up for a next one."""


@asynccontextmanager
async def reserved(
    kernel: Kernel, ep: Endpoint, ports: Sequence[PortMapping], default: IPAddress | None
) -> AsyncIterator[tuple[PortMapping, ...]]:
    """Reserve a host port for each mapping and yield the mappings with definite ports.

    `default`: the host address of mappings that name none, of its own family. The reservations are ended when the block
    fails; else they are the caller's, who ends them by removing the `HostPort` steps.

    Raises:
        NetplugError: "unavailable", naming the port that is taken.
    """
    held: list[HostPort] = []
    try:
        definite = []
        for mapping in ports:
            if mapping.host_address is None and default is not None:
                mapping = replace(mapping, host_address=default)  # noqa: PLW2901 - the same mapping, made definite
            definite.append(await _reserve(kernel, ep, mapping, held))
        yield tuple(definite)
    except BaseException:
        await kernel.remove(held)
        raise


async def _reserve(kernel: Kernel, ep: Endpoint, mapping: PortMapping, held: list[HostPort]) -> PortMapping:
    last = max(mapping.host_port, mapping.host_port_end)
    hosts = _addresses(ep, mapping)
    if not hosts:
        return replace(mapping, host_port=mapping.host_port or mapping.port, host_port_end=0)
    first = mapping.host_port
    for _ in range(_TRIES):
        port = await kernel.reserve(mapping.proto, hosts[0], first, last)
        mine = [HostPort(mapping.proto, hosts[0], port)]
        try:
            for host in hosts[1:]:
                await kernel.reserve(mapping.proto, host, port, port)
                mine.append(HostPort(mapping.proto, host, port))
        except NetplugError:
            await kernel.remove(mine)
            if port == last:
                raise
            first = port + 1 if last else 0
            continue
        held += mine
        return replace(mapping, host_port=port, host_port_end=port)
    raise NetplugError("unavailable", f"no port is free for both IPv4 and IPv6 for {mapping}")


def _addresses(ep: Endpoint, mapping: PortMapping) -> list[IPAddress]:
    """Return the host addresses to reserve on: one a family that the endpoint has and the mapping wants."""
    families = sorted({address.version for address in ep.addresses})
    if mapping.host_address is not None:
        return [mapping.host_address] if mapping.host_address.version in families else []
    return [_ALL[family] for family in families]
