"""Steps that are requests to rtnetlink, or that wait for its mutex as well (`Sysctl`): done together by a thread.

What the loop does of it is waiting: for the thread, and for links of the same name that are being deleted.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from netplug.drivers.steps import Hairpin, Shape, Step, Veth
from netplug.errors import NetplugError
from netplug.kernel.api import Done, Outcome, StepError
from netplug.kernel.handlers import Handler, Handlers, Lane, S
from netplug.kernel.links.bridges import LinkBusyError
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.netlink.link_state import LinkState
from netplug.kernel.netlink.worker import Worker
from netplug.kernel.progress import Progress, naming
from netplug.kernel.sandbox.netns import Sandboxes, run_here

if TYPE_CHECKING:
    from netplug.kernel.context import Context

BUSY_TRIES = 3
"""How often to wait for the deletion of a link whose name is wanted again."""

Rest: TypeAlias = Callable[[], None]
"""What is left of a removal that blocks for long without the mutex; it is done in another thread."""


class RequestHandler(Handler[S]):
    """A handler whose work blocks on the kernel: it is done in one thread, step after step.

    `nl`: a netlink socket of the host's namespace. Whatever takes longer than `worker.DEADLINE_S` is abandoned, and
    what came about then is removed afterwards.
    """

    def __init__(self, context: "Context") -> None:
        self._lane = context.requests
        self.nl = context.nl

    def lane(self, step: S) -> Lane:  # noqa: ARG002
        """Return the thread."""
        return self._lane

    @abstractmethod
    def ensure(self, step: S, sandboxes: Sandboxes) -> Outcome | Done:
        """Apply a step. Blocks. `sandboxes`: those that were entered for steps before it.

        Raises:
            LinkBusyError: a link that is in the way is being deleted; it is tried again afterwards.
            StepError, OSError: it cannot be done.
        """

    @abstractmethod
    def remove(self, step: S, sandboxes: Sandboxes) -> Rest | None:
        """Remove what a step names, and return what is left to do; absent is success. Blocks."""

    def link(self, step: S) -> str:  # noqa: ARG002
        """Return the name of the host's link that the step makes, if any."""
        return ""

    def inside(self, step: Any, sandboxes: Sandboxes) -> Netlink:
        """Return a netlink socket of the namespace of a step that has a `netns` and a `netns_id`.

        Raises:
            FileNotFoundError: it is gone.
        """
        return sandboxes.get(step.netns, step.netns_id)[1] if step.netns else self.nl


class RequestLane:
    """The thread, in the network namespace of the thread that first asks for something. Belongs to one event loop.

    `links`: how those are to be that are made, or were, and not removed, by name. `hairpins`: of ports that shall be in
    hairpin mode. `limited`: those with limits of rates. They stay the same objects. `on_mtus`: told of the MTUs of
    veths before these are made.
    """

    def __init__(self, handlers: Handlers, reaper: Reaper, on_mtus: Callable[[set[int]], None]) -> None:
        self.links: dict[str, LinkState] = {}
        self._on_mtus = on_mtus
        self.hairpins: set[str] = set()
        self.limited: set[str] = set()
        self._handlers = handlers
        self._reaper = reaper
        self._worker = Worker()
        self._loop = asyncio.get_running_loop()

    async def ensure(self, steps: Sequence[Step], progress: Progress) -> None:
        """Apply steps; see `Lane`.

        Raises:
            StepError: with the step that failed. Of one that the kernel did not answer for, what may come of it later
                is taken back then.
        """
        sandboxes, tries, at = Sandboxes(run_here), 0, 0
        found: list[Outcome | Done] = []
        # At once: word of them comes while they are made.
        new = self._links(steps) - self.links.keys()
        for step in steps:
            self.note(step)
        try:
            while at < len(steps):
                try:
                    await self._vacant(steps[at:])
                    await self._worker.each(
                        steps[at:],
                        lambda step: self._handler(step).ensure(step, sandboxes),
                        found,
                        lambda step, late: self._take_back(step, late, sandboxes),
                    )
                except LinkBusyError as busy:
                    tries = tries + 1 if len(found) == at else 1
                    await self._settled(steps[len(found)], tries, busy)
                except Exception:
                    with naming(steps[len(found)]):
                        raise
                finally:
                    progress.record_all(steps[at : len(found)], found[at:])
                    at = len(found)
        finally:
            for name in new & self._links(steps[at:]):
                self.links.pop(name, None)
            self._worker.afterwards(sandboxes.close)

    async def remove(self, steps: Sequence[Step]) -> list[Exception]:
        """Remove what steps name, in order, and return what failed of it; see `Kernel`."""
        for name in self._links(steps):
            self.links.pop(name, None)
        self.hairpins.difference_update(step.link for step in steps if isinstance(step, Hairpin))
        self.limited.difference_update(name for step in steps if isinstance(step, Shape) for name in _limited(step))
        sandboxes = Sandboxes(run_here)
        found: list[StepError | Rest | None] = []
        errors: list[Exception] = []
        try:
            await self._worker.each(
                steps,
                lambda step: self._removed(step, sandboxes),
                found,
                lambda _, late: late() if callable(late) else None,
            )
            for step, rest in zip(steps, found, strict=True):
                if callable(rest):
                    try:
                        with naming(step):
                            await asyncio.to_thread(rest)
                    except StepError as error:
                        errors.append(error)
        except TimeoutError:
            words = "the kernel does not answer for {!r}"
            errors += [
                StepError("unavailable", step, words.format(step.key))
                for number, step in enumerate(steps)
                if number >= len(found) or callable(found[number])
            ]
        finally:
            self._worker.afterwards(sandboxes.close)
        return [*(item for item in found if isinstance(item, StepError)), *errors]

    def note(self, step: Step) -> None:
        """Note how the link of a step is to be, if it has one: what others make of it is a foreign change."""
        if isinstance(step, Hairpin):
            self.hairpins.add(step.link)
        elif isinstance(step, Shape):
            self.limited.update(_limited(step))
        if name := self._handler(step).link(step):
            self.links[name] = LinkState.wanted(step)
            if isinstance(step, Veth):
                self._on_mtus({step.mtu})

    async def settle(self) -> None:
        """Wait until the kernel has ended what it did not answer in time: it may still change what steps name.

        Raises:
            NetplugError: it does not end.
        """
        try:
            await self._worker.settle()
        except TimeoutError as error:
            raise NetplugError("unavailable", "the kernel does not answer: an earlier request still runs") from error

    def schedule_delete(self, name: str, group: int) -> None:
        """Have a link deleted that is in a group of the reaper; in the thread."""
        self._loop.call_soon_threadsafe(self._reaper.add, name, group)

    async def close(self) -> None:
        """End the thread."""
        await self._worker.close()

    def _handler(self, step: Step) -> RequestHandler[Any]:
        handler = self._handlers.of(step)
        assert isinstance(handler, RequestHandler)  # noqa: S101 - it named this lane
        return handler

    def _links(self, steps: Sequence[Step]) -> set[str]:
        return {name for step in steps if (name := self._handler(step).link(step))}

    async def _vacant(self, steps: Sequence[Step]) -> None:
        """Wait until no link of these names is still to be deleted."""
        for step in steps:
            name = self._handler(step).link(step)
            if name and self._reaper.has(name):
                with naming(step):
                    await self._reaper.settle(name)

    async def _settled(self, step: Step, tries: int, busy: LinkBusyError) -> None:
        """Wait for deletions that others have left as well."""
        if tries > BUSY_TRIES or not self._handler(step).link(step):
            raise busy.otherwise or StepError("exists", step, f"link {step.key!r} is being deleted")
        with naming(step):
            await self._reaper.settle()
            await self._reaper.sweep()
            await self._reaper.settle()

    def _removed(self, step: Step, sandboxes: Sandboxes) -> StepError | Rest | None:
        """Remove something; return what failed, or what is left to do."""
        try:
            with naming(step):
                return self._handler(step).remove(step, sandboxes)
        except StepError as error:
            return error

    def _take_back(self, step: Step, late: Outcome | Done, sandboxes: Sandboxes) -> None:
        """Undo what came about after we had said that it did not."""
        done = late if isinstance(late, Done) else Done(late)
        if done.outcome is Outcome.CREATED and (rest := self._handler(step).remove(step, sandboxes)):
            rest()
        for there in done.before:
            self._handler(there).ensure(there, sandboxes)


def _limited(step: Shape) -> tuple[str, str]:
    """Return the links with buckets of a step."""
    return step.link, step.ifb
