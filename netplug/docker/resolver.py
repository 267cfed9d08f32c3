"""Names in Docker's sandboxes, where no plugin call can set a name server.

Containers of a user-defined network ask Docker's own at 127.0.0.11, inside their sandbox. It knows this Docker's
containers alone, so we listen there in its place, and ask it ourselves what we do not know: all that Docker can do
stays. The client is known by construction. A sandbox may be named by Docker before it is there; it is looked for until
then, and at once when Docker says that its container started.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

import structlog

from netplug.dns.forward_rules import Rules, Server, everything
from netplug.dns.pending import Client
from netplug.dns.server import Counts, Listener
from netplug.dns.upstream import Forwarder
from netplug.dns.wire import ROOT
from netplug.dns.zone import View
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.registry import Record
from netplug.engine.sandboxes import identity
from netplug.errors import NetplugError
from netplug.kernel.api import Interception
from netplug.names.server import NameServer

log = structlog.get_logger(__name__)

DOCKERS = IPv4Address("127.0.0.11")
"""Where Docker's resolver is in each sandbox (moby, libnetwork/sandbox_dns_unix.go: resolverIPSandbox)."""
FIRST_S, LAST_S, PATIENCE_S = 0.005, 0.5, 15.0
"""When a sandbox is looked for again; between Join and the namespace lies the start of the container's runtime."""
FOLLOWING = "the host's resolvers"
"""What stands for the gateway in views of sandboxes whose names of others are asked where the host's are now."""
_SOCKETS = 2
"""Nobody but the container itself could guess at ports on its loopback link."""


@dataclass(slots=True)
class _Serving:
    """A sandbox that is served. `sandbox_id`: which one, as another may come to be at its path."""

    sandbox_id: str
    interception: Interception
    listener: Listener
    forwarder: Forwarder
    dockers: Rules
    outward: Callable[[View, Client], None]

    def look_at(self, view: View | None) -> None:
        """Have the sandbox see that. What is under way at Docker's resolver is asked anew if others are asked now."""
        before, self.listener.everyone = self.listener.everyone, view
        if view is not None and view is not before and view.via == FOLLOWING:
            for client in self.forwarder.take(self.dockers):
                self.outward(view, client)

    def close(self) -> None:
        self.listener.close()
        self.forwarder.close()


class SandboxResolvers:
    """The sandboxes of Docker that we serve, by path."""

    def __init__(self, engine: Engine, server: NameServer) -> None:
        self._engine = engine
        self._server = server
        self._open: dict[str, _Serving] = {}
        self._missing: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._due: set[str] = set()
        self._lock = asyncio.Lock()
        engine.registry.watchers.append(self._on_change)
        server.watchers.append(lambda: self._look_at(set(self._open)))

    async def run(self) -> None:
        """Serve what comes, and let go of what leaves, until cancelled."""
        delay = FIRST_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay if self._missing else None):
                    await self._changed.wait()
                    delay = FIRST_S
            self._changed.clear()
            delay = min(delay * 2, LAST_S)
            due, self._due = self._due | self._missing.keys(), set()
            for sandbox in due:
                await self.serve(sandbox)

    async def serve(self, sandbox: str) -> None:
        """Do what `settle` does; a failure is in the log, and keeps no other sandbox from being served."""
        await self._engine.supervisor.attempt(f"dns of sandbox {sandbox}", self.settle(sandbox))

    def look(self) -> None:
        """Look at once for the sandboxes that are missing: a container started."""
        self._changed.set()

    async def settle(self, sandbox: str) -> None:
        """Serve a sandbox, or let go of it, as its networks want; that it is not there yet is no failure."""
        async with self._lock:
            view = self._view(sandbox)
            if view is None:
                self._missing.pop(sandbox, None)
                await self._let_go(sandbox)
                return
            sandbox_id = await identity(self._engine.kernel, sandbox) or ""
            if serving := self._open.get(sandbox):
                if serving.sandbox_id == sandbox_id:
                    return
                await self._let_go(sandbox)
            try:
                interception = await self._engine.kernel.intercept(sandbox, DOCKERS)
            except NetplugError as exc:
                self._wait(sandbox, exc)
                return
            self._missing.pop(sandbox, None)
            self._open[sandbox] = self._serve(sandbox, sandbox_id, interception, view)
            log.debug("dns.intercepted", sandbox=sandbox)

    async def _let_go(self, sandbox: str) -> None:
        if serving := self._open.pop(sandbox, None):
            serving.close()
            await asyncio.to_thread(serving.interception.end)

    async def close(self) -> None:
        """Leave Docker's resolvers alone everywhere, for good."""
        with suppress(ValueError):  # done before
            self._engine.registry.watchers.remove(self._on_change)
        async with self._lock:
            for sandbox in list(self._open):
                await self._let_go(sandbox)

    # What the registry tells

    def _on_change(self, before: Record | None, after: Record | None) -> None:
        records = [record for record in (before, after) if record is not None]
        if any(isinstance(record, NetworkRecord) for record in records):
            touched = set(self._open)
        else:
            touched = {
                record.sandbox
                for record in records
                if isinstance(record, EndpointRecord) and record.sandbox and record.front_end is FrontEnd.DOCKER
            }
        self._look_at(touched)

    def _look_at(self, sandboxes: Iterable[str]) -> None:
        """Have sandboxes see what is theirs now."""
        for sandbox in sandboxes:
            serving = self._open.get(sandbox)
            view = self._view(sandbox)
            if serving is not None:
                serving.look_at(view)
                if view is not None:
                    serving.listener.counts = self._counts(view)
            if (serving is None) is not (view is None):
                self._due.add(sandbox)
                self._changed.set()

    def _view(self, sandbox: str) -> View | None:
        """Return what a sandbox may see; None when we have nothing to serve it.

        Docker's resolver asks for ever whom the host asked when the container started. Once the host asks others, or a
        setting says whom to ask, so do we, for those that have no servers of their own.
        """
        records = [record for record in self._engine.registry.in_sandbox(sandbox) if record.linked]
        docker = [record for record in records if record.front_end is FrontEnd.DOCKER]
        view = self._server.zones.view({record.endpoint.network for record in records}, str(DOCKERS))
        if not docker or view is None:
            return None
        started = min(record.resolves for record in docker)
        if started and (self._server.since > started or self._server.asks_some(view)):
            view = self._server.view((index.network.id for index in view.indexes), FOLLOWING)
            assert view is not None  # noqa: S101 - the same networks
        else:
            view.rules = self._server.rules_of_domains(view)
        view.forwarded, view.shared = (ROOT,), True
        return view

    def _counts(self, view: View) -> Counts:
        return self._server.counts[view.indexes[0].network.id]

    def _wait(self, sandbox: str, exc: NetplugError) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._missing.setdefault(sandbox, now) < PATIENCE_S:
            return
        del self._missing[sandbox]
        log.warning("dns.unserved", sandbox=sandbox, error=exc.message)

    def _serve(self, sandbox: str, sandbox_id: str, interception: Interception, view: View) -> _Serving:
        forwarder = Forwarder(opener=interception.open, slots=_SOCKETS, mixed_case=False)
        dockers = everything(Server(DOCKERS))
        outward = self._outward(forwarder, dockers)
        listener = Listener(
            interception.udp,
            interception.tcp,
            sandbox,
            outward,
            everyone=view,
            counts=self._counts(view),
            connections=self._server.connections,
        )
        return _Serving(sandbox_id, interception, listener, forwarder, dockers, outward)

    def _outward(self, forwarder: Forwarder, dockers: Rules) -> Callable[[View, Client], None]:
        """Return what asks Docker's resolver, but for names of which we know whom to ask.

        It may know a name of one label, and one in a network of which we have not been told all.
        """

        def ask(view: View, client: Client) -> None:
            name = client.question.name
            if len(name) > name[0] + 2 and not name.endswith(view.network_zones) and view.rules.servers(name):
                self._server.forwarder.ask(view.rules, client)
            else:
                forwarder.ask(dockers, client)

        return ask
