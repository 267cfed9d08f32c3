"""`netplug uninstall`: what netplug made on this host goes, whether a daemon lives or not.

Records say what was made, with the values of sysctls before. Marks find the rest, also without a record. Records stay
unless they are purged: a later start builds the networks again.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from netplug.config import Settings
from netplug.daemon.composition import OpenKernel, compose, linux_kernel, open_host
from netplug.daemon.lock import DAEMONLESS_LOCK, Held, exclusive, lock_file
from netplug.daemon.namespace_lock import LOCKS, NAMESPACE, claim_namespace
from netplug.drivers.steps import LINK
from netplug.engine import Engine, host_link
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.engine.sandboxes import has_processes
from netplug.errors import NetplugError
from netplug.kernel.api import HostKernel
from netplug.kernel.host.api import Way

PATIENCE_S = 20.0
"""How long to wait for the daemon's end, or for that of a command that works without one."""
_POLL_S = 0.1
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed of the kernel.

    `networks`: those whose records stay; `of_docker`: those of them that Docker has. `left`: what could not be removed.
    """

    networks: tuple[str, ...] = ()
    of_docker: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Uninstallation:
    """Takes away what is in the kernel. `kernel`: opens it; `namespace`, `locks`: see `claim_namespace`."""

    settings: Settings
    force: bool = False
    kernel: OpenKernel = linux_kernel
    namespace: str = NAMESPACE
    locks: Path = LOCKS

    async def run(self) -> Removal:
        """Remove all of it.

        Raises:
            NetplugError: "forbidden", containers are attached; "unavailable", a daemon runs.
            StoreError: the records cannot be read.
        """
        async with AsyncExitStack() as stack:
            await self._lock(stack)
            if not self.settings.database.exists():
                kernel = await self.kernel()
                stack.push_async_callback(kernel.close)
                await _forget_host_names(kernel)
                return Removal(left=await _sweep(kernel))
            host = await open_host(self.settings, stack, kernel=self.kernel)
            engine = (await compose(host, None, docker=False)).engine
            return await self._remove(engine)

    async def _lock(self, stack: AsyncExitStack) -> None:
        """Take the daemon's locks. One that was asked to end may hold them for a moment."""
        state, deadline = self.settings.state_dir, time.monotonic() + PATIENCE_S
        while True:
            with ExitStack() as held:
                try:
                    if state.is_dir():
                        with exclusive(state / DAEMONLESS_LOCK, 0):
                            held.enter_context(lock_file(state / "lock"))
                    held.enter_context(claim_namespace(self.namespace, self.locks))
                    stack.enter_context(held.pop_all())
                except Held:
                    if time.monotonic() >= deadline:
                        raise
                else:
                    return
            await asyncio.sleep(_POLL_S)

    async def _remove(self, engine: Engine) -> Removal:
        await engine.registry.load()
        attached = [it for it in engine.registry.endpoints() if await _lives(engine.kernel, it)]
        if attached and not self.force:
            raise refusal([it.name or it.endpoint.id[:12] for it in attached])
        await engine.journal.recover()
        await engine.registry.load()
        await engine.base_plan.load()
        trouble = await _stop_asking(engine)
        plans = [it.plan + it.exposed for it in engine.registry.endpoints()]
        plans += [it.plan for it in engine.registry.networks()]
        plans.append(engine.base_plan.plan)
        for plan in plans:
            with suppress(ExceptionGroup):  # what is left is found by its mark
                await engine.executor.revert(plan)
        left = await _sweep(engine.kernel)
        records = sorted(engine.registry.networks(), key=lambda it: it.network.name)
        docker = tuple(it.network.name for it in records if it.front_end is FrontEnd.DOCKER)
        return Removal(tuple(it.network.name for it in records), docker, (*trouble, *left))


def refusal(names: Sequence[str]) -> NetplugError:
    """Return the refusal because of containers that are attached."""
    some = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
    number = "1 container is" if len(names) == 1 else f"{len(names)} containers are"
    words = f"{number} attached and would lose their network: {some}"
    return NetplugError("forbidden", words, hint="stop them first, or --force")


async def _lives(kernel: HostKernel, record: EndpointRecord) -> bool:
    """Return whether a container is attached: its link is there, or a process runs in its sandbox."""
    there = {link.name for link in (await kernel.facts()).links}
    links = {step.key.removeprefix(LINK) for step in record.plan if step.key.startswith(LINK)}
    return not there.isdisjoint(links) or await has_processes(kernel.sandboxes, record)


async def _stop_asking(engine: Engine) -> tuple[str, ...]:
    """Have the host ask for names no more, and return what stands in the way: the rest is removed all the same."""
    await engine.host_names.load()
    try:
        await engine.host_names.turn_off()
    except NetplugError as exc:
        return (f"names of the host ({exc.message})",)
    return ()


async def _forget_host_names(kernel: HostKernel) -> None:
    """Take back, without a record, what says that the host asks us. systemd-resolved forgets it with the link."""
    for way in (Way.FILE, Way.RESOLVCONF):
        with suppress(NetplugError):
            await kernel.resolution.forget(way, host_link.authority(way, ""))


async def _sweep(kernel: HostKernel) -> tuple[str, ...]:
    """Remove what bears our mark, and return what is left."""
    await kernel.settle()
    found = (await kernel.owned()).steps()
    with suppress(ExceptionGroup):
        await kernel.remove(found[::-1])
    await kernel.settle()
    return tuple(step.key for step in (await kernel.owned()).steps())
