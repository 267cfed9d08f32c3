"""A CNI command without a daemon: the same engine in this process, on the same state, under the same lock.

It also answers the calls that wait in the queue, see `daemonless_queue`. A daemon that starts meanwhile waits for it;
later calls then reach the daemon.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from netplug import log as logging
from netplug.config import Settings, load
from netplug.daemon.composition import compose, open_host, open_known
from netplug.daemon.daemonless_queue import Backoff, CallQueue
from netplug.daemon.lock import DAEMONLESS_LOCK, SOCKET_MODE, Held, claim_socket, exclusive, lock_file, release_socket
from netplug.daemon.namespace_lock import claim_namespace
from netplug.drivers.plan import Plan
from netplug.drivers.steps import HostPort, Resolver
from netplug.engine import Engine
from netplug.errors import NetplugError
from netplug.frontends import netavark
from netplug.frontends.cni import shim
from netplug.frontends.cni.server import serving_cni
from netplug.frontends.cni.service import CniService, refusal
from netplug.frontends.cni.wire import Call, Reply

SERVING_S = 3.0
"""How long this process serves the queue; then the next call takes over, so that a daemon can start in between."""
_LOOK_S = 0.02
_LOOKING = frozenset({"CHECK", "STATUS"})
"""Commands that report differences, so nothing is repaired before them. CHECK repairs nothing; STATUS repairs what it
can, and reports the rest.
"""


def answer(request: bytes, line: CallQueue) -> Reply:
    """Execute a call here, or in a daemon that has started. `line`: the queue, whose calls are answered too."""
    logging.configure(level="error")  # stdout is for the answer, even if the settings are invalid
    call = Call.parse(request, os.getpid())
    try:
        return _in_turn(call, request, line)
    except Exception as exc:  # noqa: BLE001 - the runtime must get an answer in any case
        return netavark.refusal(exc) if call.netavark else refusal(exc, "")


def _in_turn(call: Call, request: bytes, line: CallQueue) -> Reply:
    settings = load()
    logging.configure(settings.log_format, "error")
    pauses = Backoff()
    while True:
        with exclusive(settings.state_dir / DAEMONLESS_LOCK, line.left_s()):
            try:
                with lock_file(settings.state_dir / "lock"):
                    return asyncio.run(_answer(call, settings, line))
            except Held:
                if line.left_s() <= 0:
                    raise
        if found := Reply.parse(shim.ask(str(settings.cni_socket), request)):
            return found
        pauses.pause()  # a daemon is starting or stopping, or has another socket


async def _answer(call: Call, settings: Settings, line: CallQueue) -> Reply:
    async with AsyncExitStack() as stack:
        stack.enter_context(claim_namespace())
        host = await open_host(settings, stack)
        parts = await compose(host, await open_known(host), docker=False)
        if parts.cluster:
            await parts.cluster.membership.admit_command()
        engine, reconciler, service, _ = parts.engine, parts.reconciler, parts.cni, parts.events
        if call.env.get("CNI_COMMAND") in _LOOKING:
            await reconciler.load()
            await _open_sockets(engine)
            return await service.answer(call)
        await reconciler.start()
        async with _serving(service, settings.cni_socket):
            reply = await service.answer(call)
            with suppress(TimeoutError):
                async with asyncio.timeout(SERVING_S):
                    while line.goes_on():  # noqa: ASYNC110 - a file lock has no event
                        await asyncio.sleep(_LOOK_S)
        return reply


@asynccontextmanager
async def _serving(service: CniService, path: Path) -> AsyncIterator[None]:
    """Serve other calls within the block, unless another process serves the socket."""
    try:
        sock = claim_socket(path, SOCKET_MODE)
    except NetplugError:
        yield
        return
    try:
        sock.setblocking(False)
        async with serving_cni(service, sock.dup()):
            yield
    finally:
        release_socket(sock)


async def _open_sockets(engine: Engine) -> None:
    """Open the sockets of this process, which are always missing at its start: host ports and the name server.

    A resolver fails if its network's link is missing; the comparison then reports that link.
    """
    registry = engine.registry
    ports = [step for one in registry.endpoints() for step in one.exposed if isinstance(step, HostPort)]
    await engine.executor.apply(Plan(tuple(ports)))
    plans = [*(one.plan for one in registry.networks()), *(one.plan for one in registry.endpoints())]
    for step in (step for plan in plans for step in plan if isinstance(step, Resolver)):
        with suppress(NetplugError):
            await engine.executor.apply(Plan((step,)))
