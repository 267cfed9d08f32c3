"""Names of Docker's networks and containers, from its Engine API.

Plugin calls contain ids only. Names come from ``/events`` and from lists. They are read in a task of their own, never
inside a plugin call, since dockerd may hold a lock then that its API needs. Docker may be absent, restart, or start
later.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from netplug.docker.engine_api import LostError, connected
from netplug.docker.fixed_addresses import FixedAddresses
from netplug.docker.own_docker import OwnDocker
from netplug.engine import Engine
from netplug.engine.records import Description, DockerView
from netplug.errors import NetplugError
from netplug.tasks.request import begin_work_of

if TYPE_CHECKING:
    import aiodocker

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 0.2
RETRY_LAST_S = 5.0
"""Pauses between attempts to connect: short after a start, longer while Docker is absent."""
CALL_TIMEOUT_S = 20.0
"""Deadline of a request; dockerd is slow only while it starts or stops many containers."""

_FRACTION = re.compile(r"(\.\d{6})\d+")
_EVENTS = {
    "type": ["network", "container"],
    "event": ["create", "connect", "disconnect", "rename", "start", "destroy", "health_status"],
}


class Listener(Protocol):
    """Is notified of container starts."""

    def container_started(self) -> None:
        """React to the start of a container."""


class DockerEvents:
    """Copies names from Docker to the engine.

    Args:
        engine: gets the names.
        docker_host: ``unix:///path`` of the Engine API.
        driver: the name of our IPAM driver in Docker.
        listener: is notified of container starts.
        files: root of the host's files.

    Attributes:
        root: Docker's data folder; None until known.
        networks: Docker's names of its networks, by id; ``-o name=`` does not change them.
        own: tells whether it is this Docker that calls the plugin.
        on_lost: is called when Docker's events end.
        on_return: is called when they come again.
    """

    def __init__(
        self,
        engine: Engine,
        docker_host: str,
        driver: str = "pynet",
        listener: Listener | None = None,
        files: Path = Path("/"),
    ) -> None:
        self._engine = engine
        self._listener = listener
        self._fixed = FixedAddresses(engine)
        self._url = docker_host
        self._driver = driver
        self._files = files
        self.root: Path | None = None
        self.networks: dict[str, str] = {}
        self.own = OwnDocker(docker_host, engine.services.runtimes, engine.services.socket_owners)
        self.on_lost: Callable[[], None] = lambda: None
        self.on_return: Callable[[], None] = lambda: None
        self._came = False
        self._unreadable: set[str] = set()
        """Containers that Docker could not tell of: they are passed over, so that others have their names."""

    async def run(self) -> None:
        """Follow Docker until cancelled."""
        begin_work_of("docker", "docker's events")
        delay = RETRY_FIRST_S
        while True:
            try:
                async with connected(self._url) as docker:
                    await self._follow(docker)
                delay = RETRY_FIRST_S
            except LostError as exc:
                log.debug("docker.lost", url=self._url, error=str(exc))
                delay = min(delay * 2, RETRY_LAST_S)
            await asyncio.sleep(delay)

    async def _follow(self, docker: "aiodocker.Docker") -> None:
        # From before the first reading on, whenever Docker takes the subscription: then events during it are handled
        # twice, not missed.
        since = str(int(time.time()) - 1)
        subscriber = docker.events.subscribe(create_task=False)  # type: ignore[no-untyped-call]
        events = asyncio.ensure_future(docker.events.run(filters=_json(_EVENTS), since=since))
        try:
            await self.own.learn()
            await self._read_all(docker)
            log.info("docker.connected", url=self._url)
            if self._came:
                self.on_return()
            else:
                self._engine.allocator.end_guess()  # dockerd serves its API when its replay is over
            self._came = True
            while (event := await subscriber.get()) is not None:
                await self._on_event(docker, event)
            self.on_lost()
        finally:
            events.cancel()
            await asyncio.gather(events, return_exceptions=True)

    async def _read_all(self, docker: "aiodocker.Docker") -> None:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            networks = await docker.networks.list()
            info = await docker.system.info()
        self.root = self._files / info["DockerRootDir"].lstrip("/") if info.get("DockerRootDir") else None
        self.networks = {network["Id"]: network["Name"] for network in networks}
        for network in networks:
            await self._engine.networks.name(network["Id"], network["Name"])
        endpoints = await _endpoints(docker)
        for network_id, endpoint_id, container, name in endpoints:
            await self._describe(network_id, endpoint_id, Description(container, name))
        async with asyncio.timeout(CALL_TIMEOUT_S):
            containers: Any = await docker.containers.list(all=1)
        self._fixed.read(containers, self.networks)
        for container in dict.fromkeys(container for _, _, container, _ in endpoints):
            await self._inspect(docker, container)

    async def _on_event(self, docker: "aiodocker.Docker", event: Mapping[str, Any]) -> None:
        actor = event.get("Actor", {})
        attributes = actor.get("Attributes", {})
        match event.get("Type"), event.get("Action"):
            case "network", "create":
                self.networks[actor["ID"]] = attributes.get("name", "")
                await self._engine.networks.name(actor["ID"], attributes.get("name", ""))
            case "network", "connect":
                await self._inspect(docker, attributes.get("container", ""))
            case "network", "disconnect" if self._fixed.of(attributes.get("container", "")):
                await self._inspect(docker, attributes["container"])
            case "container", "destroy":
                self._fixed.forget(actor["ID"])
            case "container", "create" | "rename" | "start":
                if self._listener and event["Action"] == "start":
                    self._listener.container_started()
                await self._inspect(docker, actor["ID"])
            case "container", str(action) if action.startswith("health_status"):
                await self._inspect(docker, actor["ID"])

    async def _inspect(self, docker: "aiodocker.Docker", container_id: str) -> None:
        from aiodocker import DockerError  # noqa: PLC0415 - loaded by `connected`

        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                data: Any = await docker.containers.container(container_id).show()
        except DockerError as exc:
            if exc.status == 404:
                self._fixed.forget(container_id)
                self._unreadable.discard(container_id)
                return
            if container_id not in self._unreadable:
                self._unreadable.add(container_id)
                raise  # Docker may be out of order: connect again
            log.warning("container.unreadable", container=container_id[:12], error=str(exc))
            return
        self._unreadable.discard(container_id)
        self._fixed.learn(data, self.networks)
        networks = _settings(data)
        find = self._engine.registry.find_network
        alone = all(find(network["NetworkID"]) is not None for network in networks)
        for network in (it for it in networks if it.get("EndpointID")):
            description = _description(data, network, alone=alone)
            await self._describe(network["NetworkID"], network["EndpointID"], description)

    async def _describe(self, network_id: str, endpoint_id: str, description: Description) -> None:
        try:
            await self._engine.endpoints.describe(network_id, endpoint_id, description)
        except NetplugError as exc:
            log.debug("endpoint.undescribed", error=exc.message)

    async def knows(self, network_id: str) -> bool | None:
        """Tell whether Docker has a network; None if Docker does not answer."""
        view = await self.view()
        return None if view is None else network_id in view.networks

    async def view(self) -> DockerView | None:
        """Return Docker's networks, endpoints and addresses; None if Docker does not answer."""
        try:
            async with connected(self._url) as docker, asyncio.timeout(CALL_TIMEOUT_S):
                networks = await docker.networks.list()
                containers: Any = await docker.containers.list()
        except LostError as exc:
            log.debug("docker.lost", url=self._url, error=str(exc))
            return None
        ours = [network for network in networks if (network.get("IPAM") or {}).get("Driver") == self._driver]
        held = [(network["Id"], config) for network in ours for config in network["IPAM"].get("Config") or ()]
        configs = [config for _, config in held]
        settings = [item for container in containers for item in _settings(container)]
        texts = [item.get(key) for item in settings for key in ("IPAddress", "GlobalIPv6Address")]
        texts += [config.get("Gateway") for config in configs]
        texts += [text for config in configs for text in (config.get("AuxiliaryAddresses") or {}).values()]
        return DockerView(
            frozenset(item["EndpointID"] for item in settings if item["EndpointID"]),
            frozenset(network["Id"] for network in networks),
            frozenset(ip_network(config["Subnet"]) for config in configs if config.get("Subnet")),
            frozenset(ip_interface(text).ip for text in texts if text),
            frozenset((ip_network(config["Subnet"]), ident) for ident, config in held if config.get("Subnet")),
        )


async def _endpoints(docker: "aiodocker.Docker") -> list[tuple[str, str, str, str]]:
    """Return (network id, endpoint id, container id, container name) of running containers."""
    async with asyncio.timeout(CALL_TIMEOUT_S):
        containers: Any = await docker.containers.list()
    return [
        (network["NetworkID"], network["EndpointID"], container["Id"], (container["Names"] or [""])[0].lstrip("/"))
        for container in containers
        for network in _settings(container)
        if network["EndpointID"]
    ]


def _description(data: Mapping[str, Any], network: Mapping[str, Any], *, alone: bool) -> Description:
    """Return the description of a container's endpoint from its inspect data. `DNSNames` needs engine 25 or later.

    `alone`: the container has no network of another driver.
    """
    config = data.get("Config") or {}
    aliases = [*(network.get("Aliases") or ()), *(network.get("DNSNames") or ())]
    ports = tuple(sorted(config.get("ExposedPorts") or {}))
    name = data["Name"].lstrip("/")
    return Description(
        data["Id"],
        name,
        tuple(alias for alias in dict.fromkeys(aliases) if alias not in {name, data["Id"][:12]}),
        config.get("Hostname", ""),
        ports,
        # A container without a health check counts as healthy.
        healthy=((data.get("State") or {}).get("Health") or {}).get("Status") != "unhealthy",
        details=True,
        domainname=config.get("Domainname", ""),
        resolves=_started(data) if alone and not _has_own_resolving(data, network) else 0.0,
    )


def _has_own_resolving(data: Mapping[str, Any], network: Mapping[str, Any]) -> bool:
    """Tell whether a container has resolvers (``--dns``) or names (``--link``) of its own."""
    host = data.get("HostConfig") or {}
    return bool(host.get("Dns") or host.get("Links") or network.get("Links"))


def _started(data: Mapping[str, Any]) -> float:
    """Return when a container was started (Unix time); 0 if it was not."""
    text = (data.get("State") or {}).get("StartedAt", "")
    try:
        # Docker writes nanoseconds; Python accepts six digits.
        return max(datetime.fromisoformat(_FRACTION.sub(r"\1", text)).timestamp(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _settings(container: Mapping[str, Any]) -> list[Any]:
    """Return the settings of a container's networks."""
    return list((container["NetworkSettings"].get("Networks") or {}).values())


def _json(filters: Mapping[str, list[str]]) -> str:
    return json.dumps(filters)
