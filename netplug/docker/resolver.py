"""DNS in Docker's sandboxes, where no plugin call can set a name server.

Containers of a user-defined network ask Docker's resolver at 127.0.0.11, inside their sandbox. It knows only containers
of this Docker. So netplug listens there in its place, and forwards to it what netplug does not know: everything that
Docker's resolver can do still works. The sandbox identifies the client. Docker may name a sandbox before it exists;
then netplug tries again, at once when Docker reports that the container has started.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

import structlog

from netplug.dns.forward_rules import Rules, Server, everything
from netplug.dns.pending import Client
from netplug.dns.server import Listener
from netplug.dns.upstream import Forwarder
from netplug.dns.wire import ROOT
from netplug.dns.zone import View
from netplug.engine import Engine
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord
from netplug.engine.registry import Record
from netplug.engine.sandboxes import identity
from netplug.errors import NetplugError
from netplug.kernel.sandbox.api import Interception
from netplug.names.server import NameServer

log = structlog.get_logger(__name__)

DOCKER_RESOLVER = IPv4Address("127.0.0.11")
"""Address of Docker's resolver in each sandbox (moby, libnetwork/sandbox_dns_unix.go: resolverIPSandbox)."""
FIRST_RETRY_S, LONGEST_RETRY_S, PATIENCE_S = 0.005, 0.5, 15.0
"""First and longest pause between attempts, and their end. The runtime starts between Join and the namespace."""
HOST_RESOLVERS = "the host's resolvers"
"""Stands for the gateway in views of sandboxes whose external names are forwarded to the host's current resolvers."""
_SOCKETS = 2
"""Few source ports suffice, since only the container itself could forge answers on its loopback link."""


@dataclass(slots=True)
class _Serving:
    """A sandbox with our resolver. `sandbox_id`: identifies it, since its path may be reused."""

    sandbox_id: str
    interception: Interception
    listener: Listener
    forwarder: Forwarder
    docker_rules: tuple[Rules, Rules]
    forward: Callable[[View, Client], None]

    def set_view(self, view: View | None) -> None:
        """Set what the sandbox sees. Questions pending at Docker's resolver are repeated if the resolvers changed."""
        before = self.listener.everyone
        self.listener.admit_all(view)
        if view is not None and view is not before and view.via == HOST_RESOLVERS:
            for rules in self.docker_rules:
                for client in self.forwarder.take(rules):
                    self.forward(view, client)

    def close(self) -> None:
        self.listener.close()
        self.forwarder.close()


class SandboxResolvers:
    """Serves DNS in Docker's sandboxes."""

    def __init__(self, engine: Engine, server: NameServer) -> None:
        self._engine = engine
        self._server = server
        self._open: dict[str, _Serving] = {}
        self._missing: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._due: set[str] = set()
        self._lock = asyncio.Lock()
        engine.registry.watchers.append(self._on_change)
        server.watchers.append(lambda: self._update_views(set(self._open)))

    async def run(self) -> None:
        """Begin and end the service of sandboxes after changes, until cancelled."""
        delay = FIRST_RETRY_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay if self._missing else None):
                    await self._changed.wait()
                    delay = FIRST_RETRY_S
            self._changed.clear()
            delay = min(delay * 2, LONGEST_RETRY_S)
            due, self._due = self._due | self._missing.keys(), set()
            for sandbox in due:
                await self.serve(sandbox)

    async def serve(self, sandbox: str) -> None:
        """Like `settle`, but log a failure, so that other sandboxes are served."""
        await self._engine.supervisor.attempt(f"dns of sandbox {sandbox}", self.settle(sandbox))

    def container_started(self) -> None:
        """Try missing sandboxes again at once."""
        self._changed.set()

    async def settle(self, sandbox: str) -> None:
        """Begin or end the service of a sandbox, as its networks require. The sandbox need not exist yet."""
        async with self._lock:
            view = self._view(sandbox)
            if view is None:
                self._missing.pop(sandbox, None)
                await self._end(sandbox)
                return
            sandbox_id = await identity(self._engine.kernel.sandboxes, sandbox) or ""
            if serving := self._open.get(sandbox):
                if serving.sandbox_id == sandbox_id:
                    return
                await self._end(sandbox)
            try:
                interception = await self._engine.kernel.sandboxes.intercept(sandbox, DOCKER_RESOLVER)
            except NetplugError as exc:
                self._wait(sandbox, exc)
                return
            self._missing.pop(sandbox, None)
            now = self._view(sandbox)  # networks may have come and gone meanwhile, when there was nobody to tell
            self._open[sandbox] = self._serve(sandbox, sandbox_id, interception, now or view)
            if now is None:
                await self._end(sandbox)
                return
            log.debug("dns.intercepted", sandbox=sandbox)

    async def _end(self, sandbox: str) -> None:
        if serving := self._open.pop(sandbox, None):
            serving.close()
            await asyncio.to_thread(serving.interception.end)

    def unserved(self) -> list[EndpointRecord]:
        """Return the endpoints of Docker whose sandboxes are to be served and are not (yet), by name."""
        registry = self._engine.registry
        networks = {it.network.id for it in registry.networks() if it.network.options.dns}
        docker = (it for it in registry.endpoints() if it.front_end is FrontEnd.DOCKER and it.linked)
        found = (it for it in docker if it.endpoint.network in networks and it.sandbox not in self._open)
        return sorted(found, key=lambda it: it.name)

    async def close(self) -> None:
        """Restore Docker's resolvers in all sandboxes."""
        with suppress(ValueError):  # done before
            self._engine.registry.watchers.remove(self._on_change)
        async with self._lock:
            for sandbox in list(self._open):
                await self._end(sandbox)

    # Changes of the registry

    def _on_change(self, before: Record | None, after: Record | None) -> None:
        records = [record for record in (before, after) if record is not None]
        networks = [record for record in records if isinstance(record, NetworkRecord)]
        if networks:
            touched = set(self._open)
            if len({record.network.options.dns for record in networks}) > 1:
                # Served from now on, or no longer.
                endpoints = self._engine.registry.endpoints(networks[0].network.id)
                touched |= {one.sandbox for one in endpoints if one.sandbox and one.front_end is FrontEnd.DOCKER}
        else:
            touched = {
                record.sandbox
                for record in records
                if isinstance(record, EndpointRecord) and record.sandbox and record.front_end is FrontEnd.DOCKER
            }
        self._update_views(touched)

    def _update_views(self, sandboxes: Iterable[str]) -> None:
        """Update the views of sandboxes."""
        for sandbox in sandboxes:
            serving = self._open.get(sandbox)
            view = self._view(sandbox)
            if serving is not None:
                serving.set_view(view)
                if view is not None:
                    self._count(serving.listener, sandbox, view)
            if (serving is None) is not (view is None):
                self._due.add(sandbox)
                self._changed.set()

    def _view(self, sandbox: str) -> View | None:
        """Return what a sandbox sees; None if it is not to be served.

        Docker's resolver forwards to the resolvers that the host had when the container started. If the host has others
        by now, or a setting names some, netplug forwards to these, unless the container has resolvers of its own.
        """
        records = [record for record in self._engine.registry.in_sandbox(sandbox) if record.linked]
        docker = [record for record in records if record.front_end is FrontEnd.DOCKER]
        view = self._server.zones.view({record.endpoint.network for record in records}, str(DOCKER_RESOLVER))
        if not docker or view is None:
            return None
        started = min(record.resolves for record in docker)
        if started and (self._server.host_resolvers.since > started or self._server.has_resolvers(view)):
            view = self._server.view((index.network.id for index in view.indexes), HOST_RESOLVERS)
            assert view is not None  # noqa: S101 - the same networks
        else:
            view.rules = self._server.rules_of_domains(view)
        view.forwarded, view.shared = (ROOT,), True
        return view

    def _count(self, listener: Listener, sandbox: str, view: View) -> None:
        """Count questions for one network of the sandbox, and for its endpoint there."""
        network = view.indexes[0].network.id
        listener.counts = self._server.counts[network]
        for record in self._engine.registry.in_sandbox(sandbox):
            if record.linked and record.endpoint.network == network:
                listener.admit_all(view, self._server.tallies[record.endpoint.id])

    def _wait(self, sandbox: str, exc: NetplugError) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._missing.setdefault(sandbox, now) < PATIENCE_S:
            return
        del self._missing[sandbox]
        log.warning("dns.unserved", sandbox=sandbox, error=exc.message)

    def _serve(self, sandbox: str, sandbox_id: str, interception: Interception, view: View) -> _Serving:
        forwarder = Forwarder(opener=interception.open, slots=_SOCKETS, mixed_case=False)
        dockers = Server(DOCKER_RESOLVER)
        docker_rules = everything(dockers), everything(dockers, self._server.guard)
        forward = self._forward(forwarder, *docker_rules)
        listener = Listener(
            interception.udp,
            interception.tcp,
            sandbox,
            forward,
            everyone=view,
            connections=self._server.connections,
        )
        self._count(listener, sandbox, view)
        return _Serving(sandbox_id, interception, listener, forwarder, docker_rules, forward)

    def _forward(self, forwarder: Forwarder, docker_rules: Rules, outside: Rules) -> Callable[[View, Client], None]:
        """Return a function that forwards to the rules of the view if they cover the name, else to Docker's resolver.

        Names of one label, and names in our networks, go to Docker's resolver: it may know them. `outside`: to the
        same, for all other names.
        """

        def ask(view: View, client: Client) -> None:
            name = client.question.name
            known = len(name) <= name[0] + 2 or name.endswith(view.network_zones)
            if not known and view.rules.servers(name):
                self._server.forwarder.ask(view.rules, client)
            else:
                forwarder.ask(docker_rules if known or self._server.trusts(name) else outside, client)

        return ask
