"""`netplug-ipam`, the ``ipam.type`` of another plugin: requests and results of `engine.leasing`."""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256

from netplug.engine import Engine
from netplug.engine.records import EndpointSpec, FrontEnd
from netplug.frontends.cni.checks import refuse_missing, refuse_unready
from netplug.frontends.cni.config import translate_ipam
from netplug.frontends.cni.garbage import Garbage
from netplug.frontends.cni.outcome import addresses_of
from netplug.frontends.cni.result import Result, RouteOf, parse, render
from netplug.frontends.cni.wire import CniError, Code, Command, Request


class IpamPlugin:
    """The commands of an IPAM plugin. The caller runs one at a time for each network."""

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
        """Run the command of a request; raises as `CniService.answer` expects."""
        return await self._commands[request.command](request)

    async def _add(self, request: Request) -> Result:
        wanted = translate_ipam(request, self._engine.drivers)
        spec = EndpointSpec(
            _id(request),
            "",
            name=wanted.name,
            front_end=FrontEnd.CNI,
            ifname=request.ifname,
            container=request.container,
            groups=wanted.groups,
            caller=request.caller,
        )
        leasing = self._engine.leasing
        async with leasing.leased(wanted.network, spec, wanted.addresses, request.netns) as (record, built):
            routes = tuple(RouteOf(route.dst, route.gw) for route in wanted.routes or ())
            result = Result((), addresses_of(record, built, None, None), routes, wanted.dns)
            render(result, request.version)
        return result

    async def _delete(self, request: Request) -> None:
        await self._engine.leasing.release(request.network, _id(request))

    async def _check(self, request: Request) -> None:
        before = request.get("prevResult")
        if not isinstance(before, dict):
            raise CniError(Code.CONFIG, "required prevResult missing")
        built = self._engine.leasing.find(request.network, _id(request))
        if built is None:
            words = f"no address of network {request.network!r} is leased to {request.container} {request.ifname}"
            raise CniError(Code.NOT_FOUND, words)
        refuse_missing(built, parse(before, request.version))

    async def _collect(self, request: Request) -> None:
        garbage = Garbage(request)
        if record := self._engine.implicit_networks.find(request.network):
            await garbage.collect(self._engine, record)
        garbage.refuse()

    async def _status(self, request: Request) -> None:
        record = self._engine.implicit_networks.find(request.network)
        await refuse_unready(self._engine, record, translate_ipam(request, self._engine.drivers))


def _id(request: Request) -> str:
    return sha256(f"cni-ipam {request.network} {request.container} {request.ifname}".encode()).hexdigest()
