"""Name resolution for the endpoints of etcd."""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import structlog

log = structlog.get_logger(__name__)

Endpoint = tuple[IPv4Address | IPv6Address, int]
_DEADLINE_S = 1.0
"""For each name. The daemon's start waits for it and goes on without; dockerd waits 15 s for a plugin."""


async def resolved(endpoints: Iterable[str], known: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Return address and port of each "host:port". If a name does not resolve, the `known` ones are kept as well."""
    found: dict[Endpoint, None] = {}
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            async with asyncio.timeout(_DEADLINE_S):
                answers = await asyncio.to_thread(
                    socket.getaddrinfo, host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            log.warning("store.name_not_resolved", endpoint=endpoint, reason=str(error) or "no answer")
            found |= dict.fromkeys(known)
            continue
        found |= {(ip_address(str(answer[4][0]).partition("%")[0]), int(port)): None for answer in answers}
    return tuple(found)
