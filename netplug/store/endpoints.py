"""The addresses behind the endpoints of an etcd."""

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import structlog

log = structlog.get_logger(__name__)

Endpoint = tuple[IPv4Address | IPv6Address, int]
_DEADLINE_S = 1.0
"""At the start, which goes on without; dockerd waits 15 s for a plugin."""


async def resolved(endpoints: Iterable[str], known: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Return address and port of each of "host:port". While a name has no address, those that were `known` count."""
    found: dict[Endpoint, None] = {}
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        try:
            async with asyncio.timeout(_DEADLINE_S):
                answers = await asyncio.to_thread(
                    socket.getaddrinfo, host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            log.warning("store.unresolved", endpoint=endpoint, reason=str(error) or "no answer")
            found |= dict.fromkeys(known)
            continue
        found |= {(ip_address(str(answer[4][0]).partition("%")[0]), int(port)): None for answer in answers}
    return tuple(found)
