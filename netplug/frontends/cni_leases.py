"""Leases of DHCP servers: asked for again, as anything else of ours is looked at again.

The reference dhcp plugin's daemon keeps them in memory; one that starts anew has forgotten them, and the server may
give the address to somebody else. Its ADD is what renews a lease that it has and asks for one that it has not.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import structlog

from netplug.drivers.naming import short
from netplug.engine import Engine
from netplug.engine.conditions import Difference
from netplug.engine.records import EndpointRecord
from netplug.engine.sandboxes import is_there
from netplug.frontends.cni_delegate import Delegate
from netplug.frontends.cni_wire import Call, CniError, Request, read

log = structlog.get_logger(__name__)

INTERVAL_S = 30.0
_SOURCE = "dhcp"
_KEPT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


def kept(request: Request) -> str:
    """Return what has to be remembered of an ADD to ask its IPAM plugin again."""
    env = {key: request.env[key] for key in _KEPT if key in request.env}
    config = {key: value for key, value in request.raw.items() if key.lower() not in {"prevresult", "runtimeconfig"}}
    return json.dumps({"name": request.me, "env": env, "config": config})


class Leases:
    """Asks again for the leases of all endpoints that have one of a DHCP server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def run(self) -> None:
        """Ask now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Ask for all once, and report what is wrong."""
        asked = [built for built in self._engine.registry.endpoints() if built.ipam]
        found = [(built, await self._ask(built)) for built in asked]
        self._engine.conditions.report(
            _SOURCE, [Difference(f"endpoint {short(built.endpoint.id)}", "lease", why) for built, why in found if why]
        )

    async def _ask(self, built: EndpointRecord) -> str:
        """Ask for one, and return what is wrong with it."""
        if not await is_there(self._engine.kernel, built):
            return ""
        ours = {interface.ip for interface in built.endpoint.addresses}
        listed = ", ".join(map(str, sorted(ours, key=str)))
        try:
            delegate = _delegate(json.loads(built.ipam))
            theirs = {ip.address.ip for ip in (await delegate.add()).ips}
            if self._engine.registry.find(built.endpoint.network, built.endpoint.id) is None:
                await delegate.run("DEL")  # it has gone meanwhile
                return ""
        except CniError as exc:
            return f"the lease of {listed} is not kept: {exc}"
        if ours <= theirs:
            return ""
        given = ", ".join(map(str, sorted(theirs, key=str)))
        return f"the DHCP server gives {given} now; the container has {listed} until it is started anew"


def _delegate(said: Mapping[str, Any]) -> Delegate:
    env = {"CNI_COMMAND": "ADD", **said["env"]}
    return Delegate(read(Call(said["name"], env, json.dumps(said["config"]).encode())))
