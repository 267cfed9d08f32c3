"""Our addresses for other plugins: `netplug-ipam`, named as ``ipam.type`` of somebody else's bridge or macvlan.

The addresses are those of a network that has nothing else (mode ``ipam``), so they are listed, limited and freed like
all others.
"""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256

from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, EndpointSpec, FrontEnd, NetworkRecord
from netplug.engine.sandboxes import identity
from netplug.frontends.cni.checks import refuse_missing, refuse_unready
from netplug.frontends.cni.config import IPAM, Wanted, translate_ipam
from netplug.frontends.cni.garbage import Garbage
from netplug.frontends.cni.outcome import addresses_of
from netplug.frontends.cni.result import Result, RouteOf, parse, render
from netplug.frontends.cni.wire import CniError, Code, Command, Request


class Leasing:
    """The commands of an IPAM plugin. The caller lets one at a time work on a network."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: Mapping[Command, Callable[[Request], Awaitable[Result | None]]] = {
            Command.ADD: self._add,
            Command.DEL: self._delete,
            Command.CHECK: self._check,
            Command.GC: self._collect,
            Command.STATUS: self._status,
        }

    async def do(self, request: Request) -> Result | None:
        """Do what a request asks for; raises as `CniService.answer` expects."""
        return await self._commands[request.command](request)

    async def _add(self, request: Request) -> Result:
        wanted = translate_ipam(request)
        record = self._find(request.network)
        if record is not None:
            if record.network.options.mode != IPAM:
                words = f"network {request.network!r} is of mode {record.network.options.mode}, not {IPAM}"
                raise CniError(Code.CONFIG, words, "give the configuration another name, or use netplug's own type")
            self._engine.implicit_networks.refuse_disagreement(record, wanted.network)
            return await self._lease(request, wanted, record)
        record = await self._engine.networks.create(wanted.network)
        try:
            return await self._lease(request, wanted, record)
        except Exception:
            await self._engine.networks.delete(record.network.id, by=FrontEnd.CNI)
            raise

    async def _lease(self, request: Request, wanted: Wanted, record: NetworkRecord) -> Result:
        spec = EndpointSpec(
            _id(request),
            record.network.id,
            name=wanted.name,
            front_end=FrontEnd.CNI,
            ifname=request.ifname,
            container=request.container,
            groups=wanted.groups,
            caller=request.caller,
            elsewhere=(request.netns, await identity(self._engine.kernel, request.netns) or ""),
        )
        built = await self._engine.endpoints.create(spec, wanted.addresses)
        routes = tuple(RouteOf(route.dst, route.gw) for route in wanted.routes or ())
        result = Result((), addresses_of(record, built, None, None), routes, wanted.dns)
        try:
            render(result, request.version)
        except CniError:
            await self._engine.endpoints.delete(record.network.id, built.endpoint.id)
            raise
        return result

    async def _delete(self, request: Request) -> None:
        if record := self._find(request.network):
            await self._engine.endpoints.delete(record.network.id, _id(request))

    async def _check(self, request: Request) -> None:
        before = request.get("prevResult")
        if not isinstance(before, dict):
            raise CniError(Code.CONFIG, "required prevResult missing")
        built = self._built(request)
        if built is None:
            words = f"no address of network {request.network!r} is leased to {request.container} {request.ifname}"
            raise CniError(Code.NOT_FOUND, words)
        refuse_missing(built, parse(before, request.version))

    async def _collect(self, request: Request) -> None:
        garbage = Garbage(request)
        if record := self._find(request.network):
            await garbage.collect(self._engine, record)
        garbage.refuse()

    async def _status(self, request: Request) -> None:
        await refuse_unready(self._engine, self._find(request.network), translate_ipam(request).network)

    def _find(self, name: str) -> NetworkRecord | None:
        return next((one for one in self._engine.registry.networks() if one.network.name == name), None)

    def _built(self, request: Request) -> EndpointRecord | None:
        record = self._find(request.network)
        return self._engine.registry.find(record.network.id, _id(request)) if record else None


def _id(request: Request) -> str:
    return sha256(f"cni-ipam {request.network} {request.container} {request.ifname}".encode()).hexdigest()
