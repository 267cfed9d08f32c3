"""Names that no endpoint has: Docker may know the container, which is stopped, or in no network of netplug."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from netplug.errors import NetplugError
from netplug.insight.trace.ends import End, Ends
from netplug.insight.trace.model import Cause, Hop
from netplug.insight.trace.target import Target

if TYPE_CHECKING:
    from netplug.docker.strangers import Stranger

AskDocker: TypeAlias = Callable[[str], Awaitable["Stranger | None"]]
_UNKNOWN = frozenset({"name.unknown", "dns.failed", "dns.silent"})
_LOOKS, _LOOK_S = 100, 0.02


class Strangers:
    """Asks Docker for a name that the records do not have."""

    def __init__(self, ends: Ends, ask: AskDocker | None) -> None:
        self._ends = ends
        self._ask = ask

    async def named(self, target: Target) -> None:
        """Wait until the name of a container that has just started is known: Docker tells it after its endpoint."""
        name = "" if target.address or target.outside or target.is_host else target.name
        if not name or self._ask is None or self._ends.knows(name):
            return
        found = await self._ask(name.rpartition("/")[2])
        if found is None or not any(self._ends.knows(it) for it in found.endpoints):
            return
        for _ in range(_LOOKS):
            if self._ends.knows(name):
                return
            await asyncio.sleep(_LOOK_S)

    async def source(self, target: Target, destination: str) -> End:
        """Return who sends.

        Raises:
            NetplugError: as `Ends.source`, with what Docker knows.
        """
        try:
            return self._ends.source(target)
        except NetplugError as exc:
            if exc.kind == "not_found" and (
                found := await self._cause(target.name, f"netplug trace {{}} {destination}")
            ):
                raise NetplugError("unavailable", found.words, hint=found.mend) from None
            raise

    async def better(self, error: NetplugError, source: End, target: Target) -> NetplugError:
        """Return an error that says what Docker knows of a destination, else the one that there is."""
        found = await self._destination(source, target) if error.kind == "not_found" else None
        return NetplugError("unavailable", found.words, hint=found.mend) if found else error

    async def cause(self, source: End, target: Target, hop: Hop) -> Cause | None:
        """Return why a name is unknown: what Docker knows of it, else the cause that there is."""
        if hop.cause is None or hop.cause.kind not in _UNKNOWN:
            return hop.cause
        return await self._destination(source, target) or hop.cause

    async def _destination(self, source: End, target: Target) -> Cause | None:
        sender = source.place.name if source.records else str(source.kind)
        suffix = f":{target.port}" if target.port else ""
        suffix += "/udp" if target.proto == "udp" else ""
        network = next((it.name for it in self._ends.networks(source)), "NETWORK")
        return await self._cause(target.name, f"netplug trace {sender} {{}}{suffix}", network)

    async def _cause(self, name: str, again: str, network: str = "NETWORK") -> Cause | None:
        """`again`: the trace with "{}" for the name. `network`: in which the container should be."""
        found = await self._ask(name.rpartition("/")[2]) if self._ask else None
        return _why(found, again, network) if found else None


def _why(it: "Stranger", again: str, network: str) -> Cause:
    if it.status == "restarting":
        return Cause("stopped", f"{it.name} ends and is restarted again and again", f"docker logs {it.name}")
    if not it.runs:
        words = "was never started" if it.status == "created" else "is stopped"
        return Cause("stopped", f"{it.name} {words}", f"docker start {it.name}")
    if it.mode == "host":
        return Cause("network.host", f"{it.name} uses the host's network", again.format("host"))
    if it.shares:
        return Cause("network.shared", f"{it.name} uses the network of {it.shares}", again.format(it.shares))
    connect = f"docker network connect {network} {it.name}"
    if it.mode == "none":
        words = f"{it.name} has no network (--network none)"
        return Cause("network.none", words, f"docker network disconnect none {it.name}; {connect}")
    names = " and ".join(it.networks)
    words = f"{it.name} is in {names}, which netplug does not run" if names else f"{it.name} is in no network"
    return Cause("network.others", words, connect)
