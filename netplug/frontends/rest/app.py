"""netplug's REST API on a Unix socket, which the command `netplug` uses.

Errors are ``{"error": {"kind", "message", "hint"}}``, with a status for each kind. Kind "unreachable" is about the
store: the daemon runs, but can change nothing.
"""

import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from netplug.cluster.cluster import Cluster
from netplug.engine import Engine, host_firewall
from netplug.engine.audit import audit
from netplug.engine.conditions import Difference
from netplug.engine.pruning import DockerKnows
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.errors import NetplugError, Reportable
from netplug.errors.validation import wrong
from netplug.frontends.http import Failure, guard
from netplug.frontends.rest import firewall_wire, ipam_wire, ports_wire, prune_wire, update_wire, wire
from netplug.frontends.rest.description import describe
from netplug.frontends.rest.names import Names, NamesApi
from netplug.ipam.pool import GLOBAL, Pool
from netplug.names import dns_records
from netplug.store.api import StoreError, Unreachable
from netplug.tasks.request import current

log = structlog.get_logger(__name__)

Route: TypeAlias = tuple[str, str, Callable[..., Coroutine[Any, Any, Any]], int]
"""Method, path below /v1, what answers, status."""

STATUS = {
    "invalid": 400,
    "not_found": 404,
    "exists": 409,
    "forbidden": 409,
    "unavailable": 503,
    "unreachable": 503,
    "internal": 500,
}


class Reconciler(Protocol):
    """Compares the kernel with the records."""

    async def diff(self) -> list[Difference]: ...

    async def repair(self, *, asked: bool = False) -> list[Difference]: ...


async def nobody_asked(network_id: str) -> None:
    """Answer that Docker does not answer."""


def api_app(
    engine: Engine,
    reconciler: Reconciler,
    *,
    host: str,
    version: str,
    docker_knows: DockerKnows = nobody_asked,
    cluster: Cluster | None = None,
    domain: str = "",
    names: Names | None = None,
    more: Iterable[Route] = (),
) -> FastAPI:
    """Return the app.

    `names`: the name server. `domain`: of its names; empty if none runs. `host`: the name of this host in lists.
    `docker_knows`: tells whether Docker has a network, None while Docker does not answer. `more`: routes of others.
    """
    app = FastAPI(title="netplug", version=version, docs_url=None, redoc_url=None, strict_content_type=False)
    service = _Api(engine, reconciler, host, version, docker_knows, cluster, domain)
    app.include_router(_router(service, NamesApi(engine, names, domain), more))
    guard(app, _render, engine.requests, FrontEnd.CLI, many=_MANY)
    describe(app)
    return app


class _Api:
    def __init__(
        self,
        engine: Engine,
        reconciler: Reconciler,
        host: str,
        version: str,
        docker_knows: DockerKnows,
        cluster: Cluster | None = None,
        domain: str = "",
    ) -> None:
        self._engine = engine
        self._domain = domain
        self._reconciler = reconciler
        self._host = host
        self._version = version
        self._docker_knows = docker_knows
        self._cluster = cluster

    async def version(self) -> wire.Version:
        return wire.Version(version=self._version, host=self._host, pid=os.getpid())

    async def networks(self) -> wire.Networks:
        found, note = self._endpoints(None)
        counts = Counter(endpoint.network_id for endpoint in found)
        records = self._engine.registry.networks()
        return wire.Networks(
            networks=[wire.NetworkOut.of(record, counts[record.network.id]) for record in records],
            note="; ".join(filter(None, (note, self._unusable()))),
        )

    def _unusable(self) -> str:
        """Return that networks are missing in a list, if so."""
        count = len(self._engine.quarantine.networks())
        return f"{count} more cannot be used: see netplug diff" if count else ""

    async def create_network(self, body: wire.NetworkIn) -> wire.NetworkOut:
        create = self._of_cluster().networks.create if body.cluster else self._engine.networks.create
        return wire.NetworkOut.of(await create(body.to_spec(self._engine.drivers)), 0)

    def _of_cluster(self) -> Cluster:
        if self._cluster is None:
            words = "this daemon is not part of a cluster"
            raise NetplugError("invalid", words, hint="start it with --store etcd://host:port")
        return self._cluster

    async def hosts(self) -> wire.Hosts:
        return wire.Hosts(hosts=[wire.HostOut.of(host) for host in await self._of_cluster().hosts()])

    async def forget_host(self, ref: str) -> None:
        await self._of_cluster().forget(ref)

    async def rebind_host(self) -> None:
        await self._of_cluster().rebind()

    async def network(self, ref: str) -> wire.NetworkDetail:
        record = self._engine.registry.network(ref)
        endpoints, note = self._endpoints(record.network.id)
        brief = wire.NetworkOut.of(record, len(endpoints))
        return wire.NetworkDetail(
            **brief.model_dump(exclude={"subnets"}),
            subnets=brief.subnets,
            as_created=wire.OriginOut.of(record.as_created),
            endpoints=endpoints,
            note=note,
        )

    async def update_network(self, ref: str, body: update_wire.UpdateIn) -> update_wire.UpdateOut:
        updated = await self._engine.network_updates.update(ref, body.to_change(), dry_run=body.dry_run)
        count = len(self._endpoints(updated.record.network.id)[0])
        return update_wire.UpdateOut.of(updated, count, dry_run=body.dry_run)

    async def delete_network(self, ref: str) -> None:
        network = self._engine.registry.network(ref).network
        async with self._engine.implicit_networks.unjoined(network.name):
            await self._engine.networks.delete_for_user(network.id, self._docker_knows)

    async def prune_networks(self, body: prune_wire.PruneIn) -> prune_wire.PruneOut:
        found = await self._engine.pruning.prune(body.to_filter(), self._docker_knows, dry_run=body.dry_run)
        return prune_wire.PruneOut.of(found)

    async def endpoints(self, network: str = "") -> wire.Endpoints:
        chosen = self._engine.registry.network(network).network.id if network else None
        found, note = self._endpoints(chosen)
        return wire.Endpoints(endpoints=found, note=note)

    def _endpoints(self, network_id: str | None) -> tuple[list[wire.EndpointOut], str]:
        """Return the endpoints of all hosts; or those of this host, and a note why others are missing."""
        registry, exposure, note = self._engine.registry, self._engine.exposure, ""
        names = {record.network.id: record.network.name for record in registry.networks()}
        found = [
            wire.EndpointOut.of(record, names.get(record.endpoint.network, ""), self._host, exposure.shown(record))
            for record in registry.endpoints(network_id)
        ]
        for record in registry.networks() if self._cluster is not None else ():
            if network_id in {None, record.network.id}:
                try:
                    others = self._of_cluster().remote_endpoints(record)
                except Unreachable as exc:
                    note = f"only endpoints of host {self._host} are listed: {exc}"
                    break
                found += [wire.EndpointOut.of_other(record.network, *one) for one in others]
        return sorted(found, key=lambda endpoint: (endpoint.network, endpoint.name, endpoint.host, endpoint.id)), note

    async def attach(self, body: wire.AttachIn) -> wire.AttachOut:
        record = await self._engine.endpoints.attach(body.to_spec())
        network = self._engine.registry.network(record.endpoint.network)
        names = dns_records.resolving(network, record, self._domain, self._engine.search)
        return wire.AttachOut.of(record, network.network.name, names)

    async def detach(self, body: wire.DetachIn) -> None:
        await self._engine.endpoints.detach(body.network, body.netns, body.ifname)

    async def publish(self, body: ports_wire.PortsIn) -> ports_wire.PortsOut:
        self._refuse_elsewhere(body.endpoint)
        done = await self._engine.added_ports.add(body.endpoint, body.to_specs())
        return ports_wire.PortsOut.of(done.record, self._network_of(done.record), done)

    async def unpublish(self, body: ports_wire.PortsIn) -> ports_wire.PortsOut:
        self._refuse_elsewhere(body.endpoint)
        record = await self._engine.added_ports.remove(body.endpoint, body.to_specs())
        return ports_wire.PortsOut.of(record, self._network_of(record))

    def _network_of(self, record: EndpointRecord) -> str:
        return self._engine.registry.network(record.endpoint.network).network.name

    def _refuse_elsewhere(self, ref: str) -> None:
        """Refuse an endpoint that only another host has."""
        try:
            self._engine.registry.endpoints_called(ref)
        except NetplugError as exc:
            if exc.kind != "not_found" or self._cluster is None:
                raise
            network, _, name = ref.rpartition("/")
            for one in self._endpoints(self._engine.registry.network(network).network.id if network else None)[0]:
                if one.host != self._host and (one.name == name or f"{one.id} {one.container}".startswith(name)):
                    words = f"endpoint {ref[:80]!r} is on host {one.host!r}"
                    raise NetplugError("invalid", words, hint="run the command there") from None
            raise

    async def ipam(self) -> ipam_wire.Pools:
        registry, allocator = self._engine.registry, self._engine.allocator
        names = {record.network.id: record.network.name for record in registry.networks()}
        names |= {record.endpoint.id: record.name for record in registry.endpoints()}
        pools = []
        for pool in sorted(allocator.pools(), key=lambda pool: pool.id):
            held = await self._held(pool)
            if allocator.pool(pool.id) is not None:  # else it went meanwhile
                pools.append(ipam_wire.PoolOut.of(pool, allocator.usage(pool.id), held, names))
        return ipam_wire.Pools(pools=pools)

    async def _held(self, pool: Pool) -> list[ipam_wire.Held]:
        """Return the leases of a pool: of all hosts if the shared store can be reached, else of this one."""
        if self._cluster is not None and pool.space == GLOBAL:
            try:
                found = await self._cluster.leases_of(pool.id)
                return [ipam_wire.Held(lease, host, host in {"", self._host}) for lease, host in found]
            except Unreachable as exc:
                log.warning("leases.own_alone", pool=pool.id, reason=str(exc))
        allocator = self._engine.allocator
        mine = [*allocator.leases(pool.id), *allocator.retained(pool.id)]
        return [ipam_wire.Held(lease, self._host) for lease in mine]

    async def audit(self) -> ipam_wire.Findings:
        found = await audit(self._engine)
        if self._cluster is not None:
            found += await self._cluster.audit()
        return ipam_wire.Findings(findings=[ipam_wire.LeaseFindingOut.of(one) for one in found])

    async def diff(self) -> wire.Differences:
        return self._differences(await self._reconciler.diff())

    async def repair(self) -> wire.Differences:
        return self._differences(await self._reconciler.repair(asked=True))

    def _differences(self, found: list[Difference]) -> wire.Differences:
        registry = self._engine.registry
        return wire.Differences(
            differences=[wire.DifferenceOut.of(one) for one in found],
            networks=len(registry.networks()),
            endpoints=len(registry.endpoints()),
        )

    async def firewall(self) -> firewall_wire.FirewallOut:
        found = await host_firewall.look(self._engine.kernel.firewall, self._engine.base_plan)
        return firewall_wire.FirewallOut.model_validate(found)


def _router(api: _Api, names: NamesApi, more: Iterable[Route]) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=_Route)
    routes: tuple[Route, ...] = (
        ("GET", "/version", api.version, 200),
        ("GET", "/networks", api.networks, 200),
        ("POST", "/networks", api.create_network, 201),
        ("POST", "/networks/prune", api.prune_networks, 200),
        ("GET", "/networks/{ref:path}", api.network, 200),
        ("PATCH", "/networks/{ref:path}", api.update_network, 200),
        ("DELETE", "/networks/{ref:path}", api.delete_network, 204),
        ("GET", "/endpoints", api.endpoints, 200),
        ("POST", "/attach", api.attach, 201),
        ("POST", "/detach", api.detach, 204),
        ("POST", "/publish", api.publish, 200),
        ("POST", "/unpublish", api.unpublish, 200),
        ("GET", "/ipam", api.ipam, 200),
        ("GET", "/ipam/audit", api.audit, 200),
        ("GET", "/hosts", api.hosts, 200),
        ("DELETE", "/hosts/{ref:path}", api.forget_host, 204),
        ("POST", "/hosts/rebind", api.rebind_host, 204),
        ("GET", "/dns", names.list, 200),
        ("GET", "/dns/stats", names.stats, 200),
        ("POST", "/dns/query", names.query, 200),
        ("GET", "/dns/host", names.host, 200),
        ("POST", "/dns/host", names.turn_on_host, 200),
        ("DELETE", "/dns/host", names.turn_off_host, 204),
        ("GET", "/diff", api.diff, 200),
        ("POST", "/repair", api.repair, 200),
        ("GET", "/firewall", api.firewall, 200),
        *more,
    )
    for method, path, endpoint, status in routes:
        router.add_api_route(path, endpoint, methods=[method], status_code=status)
    return router


class _Route(APIRoute):
    """Answers failures with more than `guard` does: hints, errors of the store, and the wrong field of a body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as exc:
                return _failed("invalid", _explain(exc, request.url.path))
            except StoreError as exc:
                log.warning("request.failed", error=str(exc))
                return _failed("unreachable", f"store: {exc}")
            except Exception as exc:
                if not isinstance(exc, Reportable) or exc.kind == "internal":
                    raise
                log.info("request.refused", kind=str(exc.kind), error=exc.message)
                return _failed(exc.kind, exc.message, exc.hint)

        return answer


def _failed(kind: str, message: str, hint: str = "") -> JSONResponse:
    current().fail(str(kind), message)
    return _refusal(kind, message, hint)


_MANY = frozenset({"/v1/attach", "/v1/publish", "/v1/unpublish"})
"""Requests with a list of ports."""
_INVALID = ("empty", "malformed", "slow", "too_large")
_KINDS = {"unknown": "not_found", **dict.fromkeys(_INVALID, "invalid")}


def _render(failure: Failure) -> Response:
    kind = _KINDS.get(failure.kind, failure.kind)
    response = _refusal(kind, failure.text)
    response.status_code = {"slow": 408, "too_large": 413}.get(failure.kind, response.status_code)
    return response


def _refusal(kind: str, message: str, hint: str = "") -> JSONResponse:
    return JSONResponse({"error": {"kind": str(kind), "message": message, "hint": hint}}, STATUS.get(kind, 500))


def _explain(exc: RequestValidationError, where: str) -> str:
    """Return the first error of a request, with the field's path."""
    error = exc.errors()[0]
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error['ctx']['error']}"
    if isinstance(error.get("input"), bytes):
        return "the body is not declared as JSON: send 'Content-Type: application/json'"
    # Where a value may be of several kinds, pydantic adds the kind's name to the path.
    path = ".".join(str(part) for part in error["loc"][1:] if "[" not in str(part))
    text = " ".join(wrong(error, _fields(where, path)).split())
    if error["type"] == "value_error":
        return f"{path[:80]}: {text}" if path else text
    return f"field {path[:80]!r} {text}" if path else f"the body {text}"


_BODIES: Mapping[str, type[BaseModel]] = {
    "networks": wire.NetworkIn,
    "prune": prune_wire.PruneIn,
    "attach": wire.AttachIn,
    "detach": wire.DetachIn,
    "publish": ports_wire.PortsIn,
    "unpublish": ports_wire.PortsIn,
    "subnets": wire.SubnetIn,
    "ports": wire.PortIn,
}


def _fields(where: str, path: str) -> list[str]:
    """Return the names of the fields at a path of a body."""
    part = path.partition(".")[0] if "." in path else where.rpartition("/")[2]
    return list(_BODIES[part].model_fields) if part in _BODIES else []
