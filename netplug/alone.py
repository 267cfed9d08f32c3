"""A CNI command without a daemon: the same engine in this process, on the same state, under the same lock.

`netplug.cni_shim` becomes this when no daemon answers. Calls take turns; a daemon that starts meanwhile waits for the
one that is at work, and those behind it find the daemon.
"""

import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack, suppress

from netplug import cni_shim
from netplug import log as logging
from netplug.claims import SharedLeases
from netplug.cluster import Cluster
from netplug.cluster.identity import Gate, Identity, Machine
from netplug.cluster.underlay import Underlay
from netplug.cluster.visiting import visited
from netplug.cluster.vtep import Finder
from netplug.composing import drivers, linux_kernel, site_prefix, spaces
from netplug.config import Settings, load
from netplug.daemon import TURN
from netplug.drivers.plan import Plan
from netplug.drivers.steps import HostPort, Resolver
from netplug.engine import Engine
from netplug.errors import NetplugError
from netplug.frontends.cni import CniService, refusal
from netplug.frontends.cni_wire import Call, Reply
from netplug.ipam.allocator import Allocator
from netplug.ipam.start import HashedStart
from netplug.leases import StoredLeases
from netplug.lock import Held, lock_file, turn
from netplug.namespace import claim_namespace
from netplug.reconcile import Reconciler
from netplug.store.access import EtcdAccess
from netplug.store.sqlite import SqliteStore

PATIENCE_S = 110.0
"""Runtimes give a plugin two minutes and more; fifty calls at once take turns of a second."""
_LOOKING = frozenset({"CHECK", "STATUS"})
"""Commands that tell what is wrong, and so must not mend it before."""


def main() -> int:
    """Answer the call of this environment."""
    name, *arguments = sys.argv[1:]
    env = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    if not env.get("CNI_COMMAND") and arguments:
        env = {"NETAVARK_COMMAND": arguments[0], "NETAVARK_NETNS": arguments[-1]}
    call = Call(name, env, sys.stdin.buffer.read(), os.getpid())
    reply = answer(call)
    sys.stdout.write(reply.stdout)
    sys.stderr.write(reply.stderr)
    return reply.code


def answer(call: Call) -> Reply:
    """Do what a call asks for, here or, when a daemon has come, there."""
    try:
        settings = load()
        logging.configure(settings.log_format, "error")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with turn(settings.state_dir / TURN, deadline - time.monotonic()):
                try:
                    with lock_file(settings.state_dir / "lock"):
                        return asyncio.run(_answer(call, settings))
                except Held:
                    if time.monotonic() >= deadline:
                        raise
            if found := Reply.parse(cni_shim.ask(str(settings.cni_socket), call.render())):
                return found
    except NetplugError as exc:
        return refusal(exc, "")


async def _answer(call: Call, settings: Settings) -> Reply:
    async with AsyncExitStack() as stack:
        stack.enter_context(claim_namespace())
        store = await SqliteStore.open(settings.state_dir / "netplug.db")
        stack.push_async_callback(store.close)
        kernel = await linux_kernel()
        stack.push_async_callback(kernel.close)
        identity = await Identity.load(store, Machine.read())
        shared = await visited(store, settings, stack, identity.id)
        gate = Gate(shared[0]) if shared else None
        leases = SharedLeases(store, gate, identity.id) if gate else StoredLeases(store)
        bases = spaces(await site_prefix(store), settings.address_pool)
        engine = Engine(kernel, store, Allocator(leases, bases, start=HashedStart(identity.id)), drivers())
        if shared and gate and isinstance(leases, SharedLeases):
            # Nothing is followed, so the VTEP is not looked for.
            under = Underlay(engine, store, Finder(settings.vtep, settings.etcd or EtcdAccess(())), shared[1])
            cluster = Cluster(engine, store, gate, leases, identity=identity, name=settings.host_name, under=under)
            await cluster.membership.visit()
        reconciler = Reconciler(engine)
        if call.env.get("CNI_COMMAND") in _LOOKING:
            await reconciler.load()
            await _open_sockets(engine)
        else:
            await reconciler.start()
        return await CniService(engine).answer(call)


async def _open_sockets(engine: Engine) -> None:
    """Open what is of the process at work, and hence always missing at its start: host ports, the name server's.

    What the latter need may be missing too, and is then found to be.
    """
    registry = engine.registry
    ports = [step for one in registry.endpoints() for step in one.exposed if isinstance(step, HostPort)]
    await engine.executor.apply(Plan(tuple(ports)))
    plans = [*(one.plan for one in registry.networks()), *(one.plan for one in registry.endpoints())]
    for step in (step for plan in plans for step in plan if isinstance(step, Resolver)):
        with suppress(NetplugError):
            await engine.executor.apply(Plan((step,)))


if __name__ == "__main__":
    sys.exit(main())
