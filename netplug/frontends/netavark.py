"""netavark's plugin API 1.0.0 (podman >= 4.5): the same executable, with the command in its arguments.

podman keeps the definitions of networks itself, and sends them with each call. No call tells that a network is removed.
So, as with CNI, the first call that names a network makes it. netavark leaves addresses, ports and names to the plugin.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from netplug.drivers import option_values, shared
from netplug.drivers.api import PortMapping, StaticRoute
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import EVERYTHING, Proto
from netplug.engine import Engine
from netplug.engine.records import AttachSpec, Caller, EndpointRecord, FrontEnd, NetworkRecord, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError, Reportable
from netplug.errors.json import malformed
from netplug.errors.printable import printable
from netplug.errors.validation import wrong
from netplug.frontends.cni.wire import Call, CniError, Reply, caller_of
from netplug.frontends.rest.fields import Cidr, Ifname, Ip, Mac, Name, Netns
from netplug.log import LOG
from netplug.names import dns_records
from netplug.store.api import StoreError
from netplug.tasks.request import current

log = structlog.get_logger(__name__)

_ISOLATED = {"true", "1", "strict"}
"""What netavark's option ``isolate`` may be: networks of netplug never reach each other."""
_NO_DEFAULT_ROUTE = "no_default_route"
COMMANDS = frozenset({"create", "setup", "teardown"})


class _In(BaseModel):
    """Unknown fields are ignored: newer versions may send them. All of today's are here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class LeaseRangeIn(_In):
    start_ip: Ip | None = None
    end_ip: Ip | None = None


class SubnetIn(_In):
    subnet: Cidr
    gateway: Ip | None = None
    lease_range: LeaseRangeIn | None = None

    def to_spec(self) -> SubnetSpec:
        """Return the subnet. Without a gateway, its first address is taken."""
        part = self.lease_range or LeaseRangeIn()
        ends = (part.start_ip or self.subnet[0], part.end_ip or self.subnet[-1]) if part != LeaseRangeIn() else None
        return SubnetSpec(self.subnet, self.gateway, v6=self.subnet.version == 6, ends=ends)


class RouteIn(_In):
    destination: Cidr
    gateway: Ip
    metric: None = None
    route_type: Literal["unicast"] | None = None


class NetworkIn(_In):
    """`network_interface`: the bridge, or a macvlan's parent."""

    name: Name
    id: str
    driver: str
    network_interface: str | None = None
    internal: bool = False
    ipv6_enabled: bool = False
    dns_enabled: bool = True
    network_dns_servers: tuple[Ip, ...] | None = None
    options: dict[str, str] | None = None
    ipam_options: dict[str, str] | None = None
    subnets: tuple[SubnetIn, ...] | None = None
    routes: tuple[RouteIn, ...] | None = None

    @property
    def default_route(self) -> bool:
        """Whether containers get one."""
        text = (self.options or {}).get(_NO_DEFAULT_ROUTE, "false")
        try:
            return not option_values.boolean(text)
        except ValueError as exc:
            raise NetplugError("invalid", f"option {_NO_DEFAULT_ROUTE}={text[:80]!r}: {exc}") from None

    def _own_options(self) -> dict[str, str]:
        """Return the options less those that are netavark's own."""
        options = dict(self.options or {})
        options.pop(_NO_DEFAULT_ROUTE, None)
        isolated = options.pop("isolate", "true")
        if isolated.lower() not in _ISOLATED:
            words = f"option isolate={isolated[:80]!r}: networks of netplug never reach each other"
            raise NetplugError("invalid", words, hint="leave it out")
        if not self.default_route and (given := options.keys() & {shared.GW_PRIORITY.key, shared.METRIC.key}):
            words = f"option {min(given)!r} is about a default route, and {_NO_DEFAULT_ROUTE} is true"
            raise NetplugError("invalid", words, hint="leave out one of them")
        return options

    def to_spec(self, drivers: Drivers) -> NetworkSpec:
        options = self._own_options()
        mode = options.get("mode", drivers.default())
        driver = drivers.named(mode)
        if self.network_interface:
            link = shared.PARENT if shared.PARENT in driver.options else shared.BRIDGE
            options.setdefault(link.key, self.network_interface)
        if not self.dns_enabled:
            options.setdefault("dns", "off")
        if self.network_dns_servers:
            options.setdefault("dns_upstream", ",".join(map(str, self.network_dns_servers)))
        given = tuple(subnet.to_spec() for subnet in self.subnets or ())
        ipam = (self.ipam_options or {}).get("driver", "")
        if ipam == "dhcp":
            raise NetplugError("invalid", "ipam driver 'dhcp': a netplug network gives out addresses itself")
        families = {subnet.subnet.version for subnet in self.subnets or ()}
        wanted = {4, 6} if self.ipv6_enabled else set() if given or mode != drivers.default() else {4}
        missing = sorted(wanted - families) if ipam != "none" else []
        return NetworkSpec(
            name=self.name,
            options=options,
            subnets=given + tuple(SubnetSpec(v6=family == 6) for family in missing),
            internal=self.internal,
            front_end=FrontEnd.NETAVARK,
        )


class PortIn(_In):
    """`range`: number of ports, from `host_port` and `container_port` on; 0 is one, as for netavark.

    `protocol`: may be several, with commas between.
    """

    container_port: int
    host_port: int
    host_ip: Ip | Literal[""] | None = None
    protocol: str = "tcp"
    range: Annotated[int, Field(ge=0, le=65535)] = 1

    def to_specs(self) -> list[PortMapping]:
        count = max(self.range, 1)
        if not all(0 < first <= 65536 - count for first in (self.host_port, self.container_port)):
            words = f"port {self.host_port}:{self.container_port}" + (f" and {count - 1} more" if count > 1 else "")
            raise NetplugError("invalid", f"{words}: not all are from 1 to 65535")
        ports = [(self.host_port + n, self.container_port + n) for n in range(count)]
        protocols = [_protocol(word.strip().lower()) for word in self.protocol.split(",")]
        return [
            PortMapping(proto, inner, self.host_ip or None, outer, outer)
            for proto in protocols
            for outer, inner in ports
        ]


def _protocol(word: str) -> Proto:
    if word not in set(Proto):
        raise NetplugError("invalid", f"protocol {word[:80]!r} must be one of {', '.join(Proto)}")
    return Proto(word)


class EndpointIn(_In):
    interface_name: Ifname
    aliases: tuple[Name, ...] | None = None
    static_ips: tuple[Ip, ...] | None = None
    static_mac: Mac | Literal[""] | None = None
    options: dict[str, str] | None = None


class ExecIn(_In):
    container_id: Name
    container_name: str = ""
    port_mappings: tuple[PortIn, ...] | None = None
    network: NetworkIn
    network_options: EndpointIn

    @property
    def endpoint_id(self) -> str:
        ident = f"netavark {self.network.name} {self.container_id} {self.network_options.interface_name}"
        return sha256(ident.encode()).hexdigest()


class _Place(_In):
    netns: Netns


class NetavarkService:
    """Answers calls of netavark. `domain`: see `CniService`."""

    def __init__(self, engine: Engine, domain: str = "") -> None:
        self._engine = engine
        self._domain = domain

    async def answer(self, call: Call) -> Reply:
        """Run the command of a call, and return the reply."""
        try:
            data = _decoded(call.stdin)
            match call.netavark:
                case "create":
                    said = await self._create(data)
                case "setup":
                    netns = _Place(netns=call.env.get("NETAVARK_NETNS", "")).netns
                    wanted = ExecIn.model_validate(data)
                    async with self._engine.endpoints.one_at_a_time(wanted.endpoint_id):
                        said = await self._setup(wanted, netns, caller_of(call, self._engine.services.runtimes))
                case "teardown":
                    wanted = ExecIn.model_validate(data)
                    async with self._engine.endpoints.one_at_a_time(wanted.endpoint_id):
                        await self._teardown(wanted)
                    return Reply(0)
                case other:
                    raise NetplugError("invalid", f"unknown command {other[:80]!r}")  # noqa: TRY301
        except Exception as exc:  # noqa: BLE001 - here is where the front end answers
            return refusal(exc)
        return Reply(0, json.dumps(said) + "\n")

    async def _create(self, data: dict[str, Any]) -> dict[str, Any]:
        """Create a network, and return its definition with the subnets that it lacked.

        Nothing else of it may change but the IPAM driver. If that is not given, podman gives out addresses itself, and
        would choose addresses of other runtimes' containers and of other hosts.
        """
        wanted = NetworkIn.model_validate(data)
        spec = wanted.to_spec(self._engine.drivers)
        await self._engine.superseded_networks.forget(spec)
        async with self._joined(spec) as record:
            known = {subnet.subnet.version for subnet in wanted.subnets or ()}
            subnets = [
                {"subnet": str(subnet.pool), **({"gateway": str(subnet.gateway.ip)} if subnet.gateway else {})}
                for subnet in record.network.subnets
                if subnet.pool.version not in known
            ]
            ipam = {"driver": wanted.driver} | (data.get("ipam_options") or {})
            return data | {"subnets": [*(data.get("subnets") or ()), *subnets], "ipam_options": ipam}

    async def _setup(self, wanted: ExecIn, netns: str, caller: Caller) -> dict[str, Any]:
        own, drivers = wanted.network_options, self._engine.drivers
        network = wanted.network.to_spec(drivers)
        # Before a network is made for it.
        drivers.parse_endpoint(own.options or {}, drivers.parse(network.options).mode)
        async with self._joined(network) as record:
            spec = AttachSpec(
                record.network.id,
                netns,
                own.interface_name,
                wanted.container_name,
                own.aliases or (),
                own.static_ips or (),
                own.static_mac or "",
                tuple(port for item in wanted.port_mappings or () for port in item.to_specs()),
                id=wanted.endpoint_id,
                container=wanted.container_id,
                front_end=FrontEnd.NETAVARK,
                routes=_routes(record, wanted.network),
                options=own.options or {},
                caller=caller,
            )
            built = await self._engine.endpoints.attach(spec)
        return _status(record, built, dns_records.resolving(record, built, self._domain, self._engine.search))

    @asynccontextmanager
    async def _joined(self, spec: NetworkSpec) -> AsyncIterator[NetworkRecord]:
        """Yield a network, changed as podman defines it now; see `ImplicitNetworks.joined`."""
        await self._engine.superseded_networks.make_room(spec)
        await self._engine.superseded_networks.follow(spec)
        async with self._engine.implicit_networks.joined(spec) as record:
            yield record

    async def _teardown(self, wanted: ExecIn) -> None:
        for record in self._engine.registry.networks():
            await self._engine.endpoints.delete(record.network.id, wanted.endpoint_id)


def _routes(record: NetworkRecord, wanted: NetworkIn) -> tuple[StaticRoute, ...] | None:
    """Return the wanted routes, and the network's default routes; None if these are all that is wanted."""
    if not wanted.routes and wanted.default_route:
        return None
    none = record.network.internal or not wanted.default_route
    ways = () if none else tuple(s.gateway for s in record.network.subnets if s.gateway)
    own = tuple(StaticRoute(EVERYTHING[way.version], way.ip) for way in ways)
    return (*own, *(StaticRoute(route.destination, route.gateway) for route in wanted.routes or ()))


def _status(record: NetworkRecord, built: EndpointRecord, names: dns_records.Resolving) -> dict[str, Any]:
    gateways = {subnet.pool: str(subnet.gateway.ip) for subnet in record.network.subnets if subnet.gateway}
    subnets = []
    for address in built.endpoint.addresses:
        gateway = gateways.get(address.network)
        subnets.append({"ipnet": str(address), **({"gateway": gateway} if gateway else {})})
    interface = {"mac_address": built.endpoint.mac, "subnets": subnets}
    return {
        "dns_server_ips": list(names.servers),
        "dns_search_domains": list(names.search),
        "interfaces": {built.ifname: interface},
    }


def _decoded(stdin: bytes) -> Any:
    try:
        return json.loads(stdin)
    except (ValueError, RecursionError) as exc:
        raise NetplugError("invalid", f"the request on stdin is not JSON: {malformed(exc)}") from None


def refusal(exc: Exception) -> Reply:
    """Return the reply to a call that failed."""
    words = printable(_words(exc))
    current().fail(_kind(exc), words)
    return Reply(1, json.dumps({"error": words}) + "\n")


def _kind(exc: Exception) -> str:
    if isinstance(exc, StoreError):
        return "unavailable"
    return str(exc.kind) if isinstance(exc, Reportable) else "invalid" if isinstance(exc, ValueError) else "internal"


def _words(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"]))
        return f"{where} {wrong(dict(error))}"
    if isinstance(exc, ValueError):
        return f"the request on stdin is malformed: {exc}"
    if isinstance(exc, CniError | StoreError) or (isinstance(exc, Reportable) and exc.kind != "internal"):
        log.info("request.refused", error=str(exc))
        return f"{exc.msg} ({exc.details})" if isinstance(exc, CniError) and exc.details else str(exc)
    log.error("request.failed", error=str(exc), exc_info=exc)
    return f"internal error: {exc} (see {LOG})"
