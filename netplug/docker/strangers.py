"""Containers of Docker that netplug has no endpoint of: stopped ones, and those in networks of others."""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import structlog

from netplug.docker.engine_api import LostError, connected

log = structlog.get_logger(__name__)

ANSWER_S = 1.0
"""Somebody waits for it, and has an answer without it."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_LEAST_ID = 12


@dataclass(frozen=True, slots=True)
class Stranger:
    """A container. `status`: "running", "exited", "created"… `mode`: "host", "none", or a network.

    `networks`: their names. `shares`: the name of the container whose network it uses. `endpoints`: their ids, as
    Docker tells them to its plugins.
    """

    name: str
    status: str
    mode: str = ""
    networks: tuple[str, ...] = ()
    shares: str = ""
    endpoints: tuple[str, ...] = ()

    @property
    def runs(self) -> bool:
        return self.status in {"running", "paused"}


async def find(docker_host: str, name: str) -> Stranger | None:
    """Return the container with a name or id; None if there is none, or Docker does not answer.

    It must not be called in a request of Docker, which may hold a lock that its API needs.
    """
    if not _NAME.fullmatch(name):
        return None
    try:
        async with asyncio.timeout(ANSWER_S), connected(docker_host) as docker:
            data: Any = await docker.containers.container(name).show()
            # Docker takes the beginning of an id too, however short.
            if data["Name"].lstrip("/") != name and not (len(name) >= _LEAST_ID and data["Id"].startswith(name)):
                return None
            kind, _, other = data["HostConfig"]["NetworkMode"].partition(":")
            shares: Any = await docker.containers.container(other).show() if kind == "container" else {}
    except (LostError, TimeoutError) as exc:
        log.debug("docker.stranger", name=name, error=str(exc))
        return None
    networks = data["NetworkSettings"].get("Networks") or {}
    return Stranger(
        data["Name"].lstrip("/"),
        data["State"]["Status"],
        kind,
        tuple(networks),
        shares.get("Name", "").lstrip("/"),
        tuple(it["EndpointID"] for it in networks.values() if it.get("EndpointID")),
    )
