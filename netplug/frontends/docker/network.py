"""The Docker front end: libnetwork's remote driver protocol ("NetworkDriver") and the plugin handshake.

dockerd tells a plugin everything once, does not tell the end of some objects at all, and repeats a request without its
body if a connection breaks. So deletes succeed for what does not exist, and imply each other. Nothing is published
before ProgramExternalConnectivity. No handler asks dockerd anything, since dockerd holds locks while it waits for us.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fastapi import FastAPI, Response

from netplug.drivers import shared
from netplug.engine import Engine
from netplug.engine.pools import ContainerOf, container_unknown
from netplug.engine.records import FrontEnd, NetworkRecord
from netplug.errors import NetplugError
from netplug.frontends.docker import wire
from netplug.frontends.docker.ipam import IpamDriver
from netplug.frontends.docker.repeated_requests import Repeats
from netplug.frontends.http import Failure, guard
from netplug.tasks.request import current

_NAMED = re.compile(r"(-d|--ipam-driver|IPAM by) pynet\b")
"""Where a message names the driver."""
_STATUS = {"empty": 400, "unknown": 404, "malformed": 400, "slow": 408, "too_large": 413}


_MANY = frozenset(f"/NetworkDriver.{name}" for name in ("CreateEndpoint", "Join", "ProgramExternalConnectivity"))
"""Requests with a port map."""

OnReady = Callable[[str], Awaitable[None]]
Own = Callable[[int], bool]
"""Tells whether a process, by its id, is the Docker that we listen to."""


async def nothing_to_do(sandbox: str) -> None:
    """Do nothing for a sandbox that is ready."""


def nothing_lost() -> None:
    """Do nothing when a request was lost."""


def unknown(_: int) -> bool:
    """Know no Docker."""
    return False


def docker_app(
    engine: Engine,
    *,
    on_activate: Callable[[], None],
    on_lost_request: Callable[[], None] = nothing_lost,
    on_ready: OnReady = nothing_to_do,
    container_of: ContainerOf = container_unknown,
    own: Own = unknown,
    driver: str = "pynet",
) -> FastAPI:
    """Return the plugin's app. `driver`: the name by which Docker knows it.

    `on_activate`: called when dockerd has started. `on_lost_request`: called when dockerd repeats a request without its
    body, see docs/docker.md. Both may only schedule work, since dockerd waits for the answer.
    `on_ready`: called with the sandbox when Docker asks for the state of an endpoint; engine 28 and later do so before
    the container starts. `container_of`: infers which container asks for an address of a pool. `own`: tells
    whether the Docker that calls is the one that we listen to.
    """
    app = FastAPI(
        title="netplug Docker plugin", docs_url=None, redoc_url=None, strict_content_type=False, redirect_slashes=False
    )

    def render(failure: Failure) -> Response:
        if failure.kind == "empty":
            on_lost_request()
        return _render(failure, driver)

    guard(app, render, engine.requests, FrontEnd.DOCKER, many=_MANY)
    network, ipam, repeats = NetworkDriver(engine, on_ready, own), IpamDriver(engine, container_of), Repeats()

    async def activate() -> wire.Activated:
        """Note that dockerd has started: it asks once in its life, except for managed plugins."""
        begin_session(engine)
        on_activate()
        return wire.Activated()

    _route(app, "/Plugin.Activate", activate)
    for service, methods in (("NetworkDriver", network.methods()), ("IpamDriver", ipam.methods())):
        for name, method in methods.items():
            _route(app, f"/{service}.{name}", repeats.noting(name, method))
    return app


def begin_session(engine: Engine) -> None:
    """Note that dockerd starts: it repeats its IPAM requests, and containers may be dead."""
    engine.allocator.begin_session()
    engine.publishing.dead_holders.begin_session()


def _route(app: FastAPI, path: str, method: Callable[..., Awaitable[wire.Wire]]) -> None:
    app.add_api_route(path, method, methods=["POST"], response_model_exclude_none=True)


def _render(failure: Failure, driver: str) -> Response:
    """Write both keys: NetworkDriver reads `Err`, IpamDriver `Error`. Never with 200, where the wrong key is lost.

    The commands in it name the driver as Docker does.
    """
    text = _NAMED.sub(lambda found: f"{found[1]} {driver}", failure.text)
    body = json.dumps({"Err": text, "Error": text})
    return Response(body, _STATUS.get(failure.kind, 500), media_type="application/json")


class NetworkDriver:
    """The methods of the protocol, each one use case of the engine."""

    def __init__(self, engine: Engine, on_ready: OnReady = nothing_to_do, own: Own = unknown) -> None:
        self._engine = engine
        self._on_ready = on_ready
        self._own = own

    def methods(self) -> dict[str, Callable[..., Awaitable[wire.Wire]]]:
        """Return the methods by their names in the protocol. The busiest come first: routes are searched in order."""
        return {
            "CreateEndpoint": self.create_endpoint,
            "Join": self.join,
            "ProgramExternalConnectivity": self.publish,
            "EndpointOperInfo": self.oper_info,
            "RevokeExternalConnectivity": self.unpublish,
            "Leave": self.leave,
            "DeleteEndpoint": self.delete_endpoint,
            "GetCapabilities": self.capabilities,
            "GwAllocCheck": self.skip_gateways,
            "CreateNetwork": self.create_network,
            "DeleteNetwork": self.delete_network,
            "AllocateNetwork": self.refuse_swarm,
            "FreeNetwork": self.refuse_swarm,
            "DiscoverNew": self.ignore,
            "DiscoverDelete": self.ignore,
        }

    async def capabilities(self) -> wire.NetworkCapabilities:
        return wire.NetworkCapabilities()

    async def ignore(self) -> wire.Empty:
        """Ignore the nodes of a swarm."""
        return wire.Empty()

    async def refuse_swarm(self) -> wire.Empty:
        raise NetplugError(
            "invalid",
            "swarm networks are not supported by netplug",
            hint="create the network on each host, without --scope swarm",
        )

    # Networks

    async def skip_gateways(self, request: wire.GwAllocCheck) -> wire.GatewaysSkipped:
        """Refuse bad options here, before Docker asks IPAM for anything."""
        drivers = self._engine.drivers
        options = drivers.parse(request.raw())
        _refuse_ranking(options.metric, options.gw_priority)
        skip = not drivers.named(options.mode).gateway
        return wire.GatewaysSkipped(SkipIPv4=skip, SkipIPv6=skip)

    async def create_network(self, request: wire.CreateNetwork) -> wire.Empty:
        options = self._engine.drivers.parse(request.raw())
        _refuse_ranking(options.metric, options.gw_priority)
        # Before the work: Docker may be killed meanwhile, and never know of the network.
        spec = replace(request.to_spec(), claimed=self._own(current().caller))
        await self._engine.networks.create(spec)
        return wire.Empty()

    async def delete_network(self, request: wire.NetworkRef) -> wire.Empty:
        with absent_is_success():
            self._network(request.NetworkID)
            await self._engine.networks.delete(request.NetworkID, by=FrontEnd.DOCKER)
        return wire.Empty()

    # Endpoints

    async def create_endpoint(self, request: wire.CreateEndpoint) -> wire.EndpointCreated:
        network, spec = self._network(request.NetworkID), request.to_spec()
        given = self._engine.drivers.parse_endpoint(spec.options, network.network.options.mode)
        _refuse_ranking(0, given.gw_priority)
        built = await self._engine.endpoints.create(
            replace(spec, name=self._engine.pools.container_of(network, spec.addresses))
        )
        return wire.EndpointCreated.of(request, built)

    async def delete_endpoint(self, request: wire.EndpointRef) -> wire.Empty:
        await self._engine.endpoints.delete(request.NetworkID, request.EndpointID)
        return wire.Empty()

    async def join(self, request: wire.Join) -> wire.Joined:
        self._network(request.NetworkID)
        joined = await self._engine.endpoints.join(request.NetworkID, request.EndpointID, request.SandboxKey)
        return wire.Joined.of(joined.attachment)

    async def leave(self, request: wire.EndpointRef) -> wire.Empty:
        await self._engine.endpoints.leave(request.NetworkID, request.EndpointID)
        return wire.Empty()

    async def publish(self, request: wire.ProgramExternalConnectivity) -> wire.Empty:
        self._network(request.NetworkID)
        await self._engine.publishing.publish(request.NetworkID, request.EndpointID, request.ports())
        return wire.Empty()

    async def unpublish(self, request: wire.EndpointRef) -> wire.Empty:
        await self._engine.publishing.unpublish(request.NetworkID, request.EndpointID)
        return wire.Empty()

    async def oper_info(self, request: wire.EndpointRef) -> wire.OperInfo:
        self._network(request.NetworkID)
        built = self._engine.registry.endpoint(request.NetworkID, request.EndpointID)
        if built.sandbox and built.linked:
            await self._on_ready(built.sandbox)
        return wire.OperInfo(
            Value={
                "mac": built.endpoint.mac,
                "addresses": [str(address) for address in built.endpoint.addresses],
                "ports": [str(mapping) for mapping in built.published],
                "link": built.host_link.name if built.host_link else built.attachment.link or "",
            }
        )

    def _network(self, ident: str) -> NetworkRecord:
        """Return the network with exactly this id: names and beginnings of ids are for users."""
        if record := self._engine.registry.find_network(ident):
            return record
        self._engine.quarantine.refuse(ident)
        raise NetplugError("not_found", f"there is no network {ident!r}")


def _refuse_ranking(metric: int, priority: int | None) -> None:
    """Refuse options about default routes: Docker makes these, and no answer of a plugin tells it which to choose."""
    for key, value in ((shared.METRIC.key, metric), (shared.GW_PRIORITY.key, priority)):
        if value:
            words = f"option {key}={value}: Docker chooses and makes the default routes of its containers itself"
            raise NetplugError("invalid", words, hint="use --gw-priority of Docker 28 or later")


@contextmanager
def absent_is_success() -> Iterator[None]:
    """Take "not_found" as success: Docker deletes objects twice, and objects that never existed."""
    try:
        yield
    except NetplugError as exc:
        if exc.kind != "not_found":
            raise
