"""Translates the CNI plugin's commands into use cases of the engine.

State is keyed by network name, container and interface. DEL works from the records, even if namespace, configuration
or previous result are gone. The first ADD that names a network makes it, unless Docker or `netplug network create` did.
The last GC, or `netplug network rm`, deletes it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import structlog

from netplug.drivers.steps import IPAddress, IPInterface
from netplug.engine import Engine
from netplug.engine.records import AttachSpec, EndpointRecord, FrontEnd, NetworkRecord, SubnetSpec
from netplug.errors import NetplugError, Reportable
from netplug.errors.printable import printable
from netplug.frontends import netavark
from netplug.frontends.cni import result
from netplug.frontends.cni.checks import refuse_drift, refuse_unready
from netplug.frontends.cni.config import DHCP, Wanted, translate, without_ipam
from netplug.frontends.cni.delegate import Delegate
from netplug.frontends.cni.dhcp import dhcp_leases, kept, socket_of
from netplug.frontends.cni.garbage import CODES, Garbage
from netplug.frontends.cni.ipam import IpamPlugin
from netplug.frontends.cni.outcome import outcome
from netplug.frontends.cni.result import Dns, Result
from netplug.frontends.cni.types import RouteIn
from netplug.frontends.cni.wire import Call, CniError, Code, Command, Reply, Request, read
from netplug.ipam.pool import EXTERNAL
from netplug.log import LOG
from netplug.names import dns_records
from netplug.store.api import StoreError
from netplug.tasks.request import current

log = structlog.get_logger(__name__)

_MAIN = 254
"""RT_TABLE_MAIN (rtnetlink(7))."""
_GLOBAL, _ON_LINK = 0, 253
"""Scopes of routes with and without a gateway (linux/rtnetlink.h, rt_scope_t)."""
_VERBS = frozenset({*Command, *netavark.COMMANDS})


class CniService:
    """Answers calls of the executable. `domain`: the name server's; empty if none runs."""

    def __init__(self, engine: Engine, domain: str = "") -> None:
        self._engine = engine
        self._domain = domain
        self._networks = engine.implicit_networks
        self._ipam = IpamPlugin(engine)
        self.leases = dhcp_leases(engine)
        self._netavark = netavark.NetavarkService(engine, domain)
        self._commands: Mapping[Command, Callable[[Request, Delegate | None], Awaitable[Result | None]]] = {
            Command.ADD: self._add,
            Command.DEL: self._delete,
            Command.CHECK: self._check,
            Command.GC: self._collect,
            Command.STATUS: self._status,
        }

    async def answer(self, call: Call) -> Reply:
        """Run the command of a call, and return the reply."""
        asker = FrontEnd.NETAVARK if call.netavark else FrontEnd.CNI
        with self._engine.requests.answering(asker, call.verb) as asked:
            asked.label = call.verb if call.verb in _VERBS else "unknown"
            return await (self._netavark.answer(call) if call.netavark else self._answer(call))

    async def _answer(self, call: Call) -> Reply:
        version, foreign = "", None
        try:
            request = read(call, self._engine.services.runtimes)
            version = request.version
            foreign = Delegate(request, self._engine.services.plugins) if request.foreign_ipam else None
            done = await self._do(request, foreign)
        except Exception as exc:  # noqa: BLE001 - here is where the front end answers
            reply = refusal(exc, version)
        else:
            reply = Reply(0, json.dumps(result.render(done, version)) + "\n" if done else "")
        return replace(reply, stderr=foreign.stderr) if foreign else reply

    async def _do(self, request: Request, foreign: Delegate | None) -> Result | None:
        if request.type != request.me == request.ipam:
            async with self._networks.one_at_a_time(request.network):
                return await self._ipam.do(request)
        if request.command in {Command.ADD, Command.DEL}:
            async with self._engine.endpoints.one_at_a_time(endpoint_id(request)):
                return await self._do_own(request, foreign)
        return await self._do_own(request, foreign)

    async def _do_own(self, request: Request, foreign: Delegate | None) -> Result | None:
        if foreign is not None and foreign.asks_by_link:
            async with self.leases.exclusive(request.container, request.ifname):
                return await self._commands[request.command](request, foreign)
        return await self._commands[request.command](request, foreign)

    # ADD

    async def _add(self, request: Request, foreign: Delegate | None) -> Result:
        wanted = translate(request, self._engine.drivers)
        if foreign is not None:
            foreign.find()
        await self._refuse_sandbox(request)
        before = request.get("prevResult")
        previous = result.parse(before, request.version) if isinstance(before, dict) else Result()
        if previous.interface(request.ifname, request.netns) is not None:
            words = f"interface {request.ifname!r} is in the previous plugin's result already"
            raise CniError(Code.EXISTS, words, "put this plugin first, or leave out the other")
        if foreign is None:
            return await self._attach(request, wanted, previous, None)
        wanted = without_ipam(wanted)
        if foreign.asks_by_link:
            return await self._attach_first(request, wanted, previous, foreign)
        async with foreign.leased() as leased:
            return await self._attach(request, wanted, previous, leased)

    async def _refuse_sandbox(self, request: Request) -> None:
        """Refuse a path that is no namespace, or is the host's own, before anything is changed."""
        try:
            await self._engine.kernel.sandboxes.find(request.netns)
        except NetplugError as exc:
            code = Code.ENVIRONMENT if exc.kind == "not_found" else Code.NETNS
            raise CniError(code, f"CNI_NETNS: {exc.message}") from None

    async def _attach(self, request: Request, wanted: Wanted, previous: Result, leased: Result | None) -> Result:
        spec = wanted.network if leased is None else replace(wanted.network, subnets=_foreign_subnets(leased))
        async with (
            self._networks.joined(spec) as network,
            self._attached(_spec(request, wanted, network, leased)) as built,
        ):
            return self._outcome(request, wanted, previous, leased, network, built)

    async def _attach_first(self, request: Request, wanted: Wanted, previous: Result, foreign: Delegate) -> Result:
        """Attach a link without addresses, have the IPAM plugin find addresses by it, and add them to it."""
        daemon = await self.leases.daemon_at(socket_of(request.raw))
        async with (
            self._networks.joined(wanted.network) as network,
            self._attached(replace(_spec(request, wanted, network, None), routes=())),
            foreign.leased() as leased,
        ):
            built = await self._engine.endpoints.readdress(_spec(request, wanted, network, leased))
            self.leases.know(built, daemon)
            return self._outcome(request, wanted, previous, leased, network, built)

    @asynccontextmanager
    async def _attached(self, spec: AttachSpec) -> AsyncIterator[EndpointRecord]:
        """Yield an attached endpoint. It is deleted again if the block fails."""
        built = await self._engine.endpoints.attach(spec)
        try:
            yield built
        except BaseException:
            await self._engine.endpoints.delete(built.endpoint.network, built.endpoint.id)
            raise

    def _outcome(
        self,
        request: Request,
        wanted: Wanted,
        previous: Result,
        leased: Result | None,
        network: NetworkRecord,
        built: EndpointRecord,
    ) -> Result:
        """Return the result of an ADD; raises what `render` does."""
        made = outcome(request, network, built, wanted.dns, leased, self._engine.base_plan.host.link).after(previous)
        if made.dns == Dns():
            own = dns_records.resolving(network, built, self._domain, self._engine.search)
            made = replace(made, dns=Dns(own.servers, search=own.search))
        result.render(made, request.version)
        return made

    # DEL, CHECK

    async def _delete(self, request: Request, foreign: Delegate | None) -> None:
        try:
            if foreign is not None and foreign.asks_by_link:
                await foreign.run("DEL")
        finally:
            await self._engine.endpoints.delete_by_id(endpoint_id(request), _former_addresses(request))
        if foreign is not None and not foreign.asks_by_link:
            await foreign.run("DEL")

    async def _check(self, request: Request, foreign: Delegate | None) -> None:
        before = request.get("prevResult")
        if not isinstance(before, dict):
            raise CniError(Code.CONFIG, "required prevResult missing")
        record = self._networks.find(request.network)
        built = self._engine.registry.find(record.network.id, endpoint_id(request)) if record else None
        if record is None or built is None:
            words = f"{request.ifname} of container {request.container} is not attached to network {request.network!r}"
            raise CniError(Code.NOT_FOUND, words)
        await refuse_drift(self._engine, request, record, built, result.parse(before, request.version))
        if foreign is not None:
            await foreign.run("CHECK")

    # GC, STATUS

    async def _collect(self, request: Request, foreign: Delegate | None) -> None:
        garbage = Garbage(request)
        async with self._networks.one_at_a_time(request.network):
            if record := self._networks.find(request.network):
                await garbage.collect(self._engine, record)
        if foreign is not None:
            await garbage.gathering(foreign.run_if_it_can("GC", garbage.left()))
        garbage.refuse()

    async def _status(self, request: Request, foreign: Delegate | None) -> None:
        await refuse_unready(
            self._engine, self._networks.find(request.network), translate(request, self._engine.drivers)
        )
        if foreign is not None:
            await foreign.run_if_it_can("STATUS")


def endpoint_id(request: Request) -> str:
    """Return the id of the endpoint that a request is about."""
    return sha256(f"cni {request.network} {request.container} {request.ifname}".encode()).hexdigest()


def _former_addresses(request: Request) -> list[IPAddress]:
    """Return the addresses in the result of the endpoint's ADD; a DEL need not have it."""
    before = request.get("prevResult")
    try:
        return [ip.address.ip for ip in result.parse(before, request.version).ips] if isinstance(before, dict) else []
    except CniError:
        return []


def _spec(request: Request, wanted: Wanted, record: NetworkRecord, leased: Result | None) -> AttachSpec:
    net = record.network
    gateways: dict[int, IPAddress] = {}
    for gateway in (subnet.gateway for subnet in net.subnets):
        if gateway is not None:
            gateways.setdefault(gateway.version, gateway.ip)
    given: tuple[IPInterface, ...] = ()
    if leased is not None:
        given = tuple(ip.address for ip in leased.ips)
        gateways |= {ip.gateway.version: ip.gateway for ip in leased.ips if ip.gateway}
        wanted = _with_routes(wanted, leased)
    families: set[int] = {address.version for address in given} or set(net.families())
    for port in wanted.ports:
        if port.host_address is not None and port.host_address.version not in families:
            words = f"network {net.name!r} has no address of that family"
            raise CniError(Code.CONFIG, f"runtimeConfig.portMappings: hostIP={port.host_address}", words)
    return AttachSpec(
        net.id,
        request.netns,
        request.ifname,
        wanted.name,
        wanted.aliases,
        wanted.addresses,
        wanted.mac,
        wanted.ports,
        id=endpoint_id(request),
        container=request.container,
        front_end=FrontEnd.CNI,
        leased=given,
        groups=wanted.groups,
        routes=wanted.routes_in(net, gateways),
        options=wanted.limits,
        pinned=wanted.pinned,
        caller=request.caller,
        hairpin=wanted.hairpin,
        ipam=kept(request) if request.foreign_ipam == DHCP else "",
    )


def _with_routes(wanted: Wanted, leased: Result) -> Wanted:
    """Add the routes of another IPAM plugin. As with ours, they replace the default routes by the gateways.

    Raises:
        CniError: code 2: one has an attribute that we do not set. In the main table, one for another table would lead
            other packets.
    """
    if not leased.routes:
        return wanted
    for route in leased.routes:
        usual = {"table": _MAIN, "scope": _ON_LINK if route.gw is None else _GLOBAL}
        for name, value in route.extra.items():
            if value not in (0, usual.get(name, 0)):
                words = f"netplug does not set {name} {value} of the IPAM plugin's route to {route.dst}"
                hint = f"leave {name} out of the IPAM plugin's configuration"
                raise CniError(Code.UNSUPPORTED, words, hint)
    theirs = tuple(RouteIn(dst=route.dst, gw=route.gw) for route in leased.routes)
    return replace(wanted, routes=(*(wanted.routes or ()), *theirs))


def _foreign_subnets(leased: Result) -> tuple[SubnetSpec, ...]:
    """Return the subnets of a network whose addresses another IPAM plugin gives out."""
    found: dict[Any, SubnetSpec] = {}
    for ip in leased.ips:
        net = ip.address.network
        gateway = ip.gateway or (net[1] if net[1] != ip.address.ip else None)
        found.setdefault(net, SubnetSpec(net, gateway, space=EXTERNAL, v6=net.version == 6))
    return tuple(found.values())


def _outcome(code: int) -> str:
    """Return the word for a code; one for all codes of other people's plugins."""
    return Code(code).name.lower() if code in set(Code) else "plugin"


def refusal(exc: Exception, version: str) -> Reply:
    """Return the reply to a call that failed. `version`: the configuration's; empty if it is not known."""
    if isinstance(exc, CniError):
        error = exc
    elif isinstance(exc, StoreError):
        log.warning("request.failed", error=str(exc))
        error = CniError(Code.TRY_AGAIN, f"store: {exc}")
    elif isinstance(exc, Reportable) and exc.kind in CODES:
        error = CniError(CODES[exc.kind], exc.message, exc.hint)
    else:
        log.error("request.failed", error=str(exc), exc_info=exc)
        error = CniError(Code.INTERNAL, f"internal error: {exc}", f"see {LOG}")
    current().fail(_outcome(error.code), str(error))
    log.info("request.refused", code=int(error.code), error=str(error))
    data: dict[str, Any] = {"cniVersion": version} if version else {}
    data |= {"code": int(error.code), "msg": printable(error.msg)}
    return Reply(1, json.dumps(data | ({"details": printable(error.details)} if error.details else {})) + "\n")
