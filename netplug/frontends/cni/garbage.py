"""GC: what a runtime left behind on a network is freed.

A runtime lists what is attached as far as it knows, and several may use one network, by one configuration or by several
of one name (containernetworking/cni issue 1086). So what another runtime attached is garbage only when its sandbox is
gone.
"""

from collections.abc import Awaitable, Mapping
from typing import Any

import structlog

from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.sandboxes import is_there
from netplug.errors import NetplugError
from netplug.frontends.cni.wire import CniError, Code, Request
from netplug.kernel.host import runtimes

log = structlog.get_logger(__name__)

CODES = {
    "invalid": Code.CONFIG,
    "not_found": Code.NOT_FOUND,
    "exists": Code.EXISTS,
    "forbidden": Code.FORBIDDEN,
    "unavailable": Code.TRY_AGAIN,
    "unreachable": Code.TRY_AGAIN,
}
_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""What GC must leave; the second is what the specification said until 2024."""


class Garbage:
    """One GC. It goes on over failures, and tells of them at the end.

    Raises:
        CniError: the request does not say what is attached: to take that for "nothing" would cut off all.
    """

    def __init__(self, request: Request) -> None:
        self._runtime = request.caller.runtime
        self._valid = valid_attachments(request)
        self._others: set[tuple[str, str]] = set()
        self._errors: list[CniError] = []

    async def collect(self, engine: Engine, record: NetworkRecord) -> None:
        """Free what is garbage; the network too, if a configuration made it and nothing is in it any more."""
        ident = record.network.id
        for built in engine.registry.endpoints(ident):
            if built.front_end is FrontEnd.CNI and await self._is_garbage(engine, built):
                await self.gathering(engine.endpoints.delete(ident, built.endpoint.id))
        if record.front_end is FrontEnd.CNI and not engine.registry.endpoints(ident):
            await self.gathering(engine.networks.delete(ident, by=FrontEnd.CNI))

    async def _is_garbage(self, engine: Engine, built: EndpointRecord) -> bool:
        attached = (built.container, built.ifname)
        if attached in self._valid:
            return False
        if runtimes.same_runtime(built.runtime, self._runtime) or not await is_there(engine.kernel, built):
            return True
        self._others.add(attached)
        log.info("gc.kept", endpoint=short(built.endpoint.id), container=built.container, runtime=built.runtime)
        return False

    def left(self) -> Mapping[str, Any]:
        """Return what is still attached as a plugin for which we do GC has to be told: others' endpoints too."""
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in self._valid | self._others]
        return {_ATTACHMENTS[0]: listed}

    async def gathering(self, work: Awaitable[object]) -> None:
        """Do something, and note its failure."""
        try:
            await work
        except (CniError, NetplugError) as exc:
            error = exc if isinstance(exc, CniError) else CniError(CODES.get(exc.kind, Code.INTERNAL), str(exc))
            self._errors.append(error)

    def refuse(self) -> None:
        """Tell of the failures.

        Raises:
            CniError: there were any.
        """
        if self._errors:
            raise CniError(self._errors[0].code, "; ".join(map(str, self._errors)))


def valid_attachments(request: Request) -> frozenset[tuple[str, str]]:
    """Return (container, interface) of the attachments that GC must leave; null is none, as Go writes an empty list.

    Raises:
        CniError: they are not said: to take that for "none" would cut off all.
    """
    given = {key.lower(): value for key, value in request.raw.items()}
    key = next((key for key in _ATTACHMENTS if key in given), "")
    if not key:
        words = f"{_ATTACHMENTS[0]} is missing: GC has to be told what is still attached"
        raise CniError(Code.CONFIG, words, "an empty list where nothing is")
    found: Any = given[key] or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise CniError(Code.CONFIG, f"{key} is not a list of objects")
    return frozenset((str(item.get("containerID", "")), str(item.get("ifname", ""))) for item in found)
