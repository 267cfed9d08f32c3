"""Steps that are requests to rtnetlink, or that wait for its mutex as well (`Sysctl`): done together by a thread.

What the loop does of it is waiting: for the thread, and for links of the same name that are being deleted.
"""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from netplug.drivers.steps import (
    Address,
    Announce,
    Bridge,
    Hairpin,
    Ifb,
    Loopback,
    Macvlan,
    Route,
    Shape,
    Step,
    Sysctl,
    Veth,
)
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.kernel.api import Done, Outcome, StepError
from netplug.kernel.doing import Notes, named
from netplug.kernel.host import sysctl
from netplug.kernel.links import addresses, bridges, macvlan, neighbours, shaping, vxlan
from netplug.kernel.links.announcements import Announcements
from netplug.kernel.links.forwarding_entries import ForwardingEntries
from netplug.kernel.links.reaper import Reaper
from netplug.kernel.netlink.connection import Netlink
from netplug.kernel.netlink.worker import Worker
from netplug.kernel.sandbox import loopback
from netplug.kernel.sandbox.netns import Sandboxes, run_here

LINKS = (Bridge, Veth, Macvlan, Ifb, Vxlan)
REQUESTS = (*LINKS, Hairpin, Shape, Address, Route, Loopback, Fdb, Neighbour, Announce, Sysctl)
Request: TypeAlias = (
    Bridge
    | Veth
    | Macvlan
    | Ifb
    | Vxlan
    | Hairpin
    | Shape
    | Address
    | Route
    | Loopback
    | Fdb
    | Neighbour
    | Announce
    | Sysctl
)

BUSY_TRIES = 3
"""How often to wait for the deletion of a link whose name is wanted again."""


class Requests:
    """Does them, in the network namespace of the thread that first asks it to. Belongs to one event loop.

    `links`: the names of those that are made, or were, and not removed.
    """

    def __init__(
        self, nl: Netlink, reaper: Reaper, announcements: Announcements, forwarding_entries: ForwardingEntries
    ) -> None:
        self.links: set[str] = set()
        self._nl = nl
        self._reaper = reaper
        self._announcements = announcements
        self._forwarding_entries = forwarding_entries
        self._worker = Worker()
        self._loop = asyncio.get_running_loop()

    async def ensure(self, steps: Sequence[Request], notes: Notes) -> None:
        """Bring steps about, in order, and note what was found of each.

        Raises:
            StepError: with the step that failed. Of one that the kernel did not answer for, what may come of it later
                is taken back then.
        """
        sandboxes, tries, at = Sandboxes(run_here), 0, 0
        found: list[Outcome | Done] = []
        # At once: word of them comes while they are made.
        new = {step.name for step in steps if isinstance(step, LINKS)} - self.links
        self.links |= new
        try:
            while at < len(steps):
                try:
                    await self._vacant(steps[at:])
                    await self._worker.each(
                        steps[at:],
                        lambda step: self._ensure(step, sandboxes),
                        found,
                        lambda step, late: self._take_back(step, late, sandboxes),
                    )
                except bridges.LinkBusyError:
                    tries = tries + 1 if len(found) == at else 1
                    await self._settled(steps[len(found)], tries)
                except Exception:
                    with named(steps[len(found)]):
                        raise
                finally:
                    notes.take(steps[at : len(found)], found[at:])
                    at = len(found)
        finally:
            self.links -= new.intersection(step.name for step in steps[at:] if isinstance(step, LINKS))
            self._worker.afterwards(sandboxes.close)

    async def remove(self, steps: Sequence[Request]) -> list[Exception]:
        """Remove what steps name, in order, and return what failed of it; see `Kernel`."""
        self.links.difference_update(step.name for step in steps if isinstance(step, LINKS))
        sandboxes = Sandboxes(run_here)
        found: list[StepError | Macvlan | None] = []
        errors: list[Exception] = []
        try:
            await self._worker.each(steps, lambda step: self._removed(step, sandboxes), found)
            for step in (item for item in found if isinstance(item, Macvlan)):
                try:
                    with named(step):
                        await asyncio.to_thread(macvlan.remove_moved, step, sandboxes.get)
                except StepError as error:
                    errors.append(error)
        except TimeoutError:
            words = "the kernel does not answer for {!r}"
            errors += [StepError("unavailable", step, words.format(step.key)) for step in steps[len(found) :]]
        finally:
            self._worker.afterwards(sandboxes.close)
        return [*(item for item in found if isinstance(item, StepError)), *errors]

    async def close(self) -> None:
        """End the thread."""
        await self._worker.close()

    async def _vacant(self, steps: Sequence[Request]) -> None:
        """Wait until no link of these names is still to be deleted."""
        for step in steps:
            if isinstance(step, LINKS) and self._reaper.has(step.name):
                with named(step):
                    await self._reaper.settle(step.name)

    async def _settled(self, step: Step, tries: int) -> None:
        """Wait for deletions that others have left as well."""
        if tries > BUSY_TRIES or not isinstance(step, LINKS):
            raise StepError("exists", step, f"link {step.key!r} is being deleted")
        with named(step):
            await self._reaper.settle()
            await self._reaper.sweep()
            await self._reaper.settle()

    def _ensure(self, step: Request, sandboxes: Sandboxes) -> Outcome | Done:
        match step:
            case Bridge() | Veth() | Macvlan() | Ifb() | Vxlan():
                return self._ensure_link(step, sandboxes)
            case Address():
                return addresses.ensure_address(self._inside(step, sandboxes), step)
            case Route():
                new_link = (step.netns or "", step.link) in sandboxes.new_links
                return addresses.ensure_route(self._inside(step, sandboxes), step, new_link=new_link)
            case Loopback():
                return loopback.ensure(self._inside(step, sandboxes))
            case Hairpin():
                return bridges.ensure_hairpin(self._nl, step)
            case Shape():
                return shaping.ensure(self._nl, step)
            case Fdb() | Neighbour():
                self._forwarding_entries.add(step)
                return neighbours.ensure(self._nl, step)
            case Announce():
                return self._announcements.ensure(step)
            case Sysctl():
                return sysctl.ensure(step)

    def _ensure_link(self, step: Bridge | Veth | Macvlan | Ifb | Vxlan, sandboxes: Sandboxes) -> Outcome:
        match step:
            case Bridge():
                return bridges.ensure_bridge(self._nl, step)
            case Veth():
                outcome = bridges.ensure_veth(self._nl, step, sandboxes.get)
                if step.netns and outcome is Outcome.CREATED:
                    sandboxes.new_links.add((step.netns, step.peer))
                return outcome
            case Macvlan():
                return macvlan.ensure_macvlan(self._nl, step, sandboxes.get)
            case Ifb():
                return shaping.ensure_ifb(self._nl, step)
            case Vxlan():
                return vxlan.ensure(self._nl, step, self._reaper.group)

    def _removed(self, step: Request, sandboxes: Sandboxes) -> StepError | Macvlan | None:
        """Remove something; return what failed, or a macvlan that is still to be looked for in its sandbox."""
        try:
            with named(step):
                found = self._remove(step, sandboxes)
        except StepError as error:
            return error
        return step if isinstance(step, Macvlan) and not found else None

    def _remove(self, step: Request, sandboxes: Sandboxes) -> bool:
        """Remove something; False: it is a link, and the host has none such."""
        match step:
            case Bridge() | Veth() | Macvlan() | Ifb() | Vxlan():
                group = self._reaper.group
                if not bridges.schedule_delete(self._nl, step, group):
                    return False
                self._loop.call_soon_threadsafe(self._reaper.add, step.name, group)
            case Hairpin():
                bridges.remove_hairpin(self._nl, step)
            case Shape():
                shaping.remove(self._nl, step)
            case Fdb() | Neighbour():
                self._forwarding_entries.forget(step)
                neighbours.remove(self._nl, step)
            case Announce():
                self._announcements.cancel(step)
            case Sysctl():
                sysctl.remove(step)
            case Address() | Route():
                self._remove_inside(step, sandboxes)
        return True

    def _remove_inside(self, step: Address | Route, sandboxes: Sandboxes) -> None:
        try:
            nl = self._inside(step, sandboxes)
        except FileNotFoundError:
            return  # and the object with it
        if isinstance(step, Address):
            addresses.remove_address(nl, step)
        else:
            addresses.remove_route(nl, step)

    def _take_back(self, step: Request, late: Outcome | Done, sandboxes: Sandboxes) -> None:
        """Undo what came about after we had said that it did not."""
        done = late if isinstance(late, Done) else Done(late)
        if done.outcome is Outcome.CREATED and not self._remove(step, sandboxes) and isinstance(step, Macvlan):
            macvlan.remove_moved(step, sandboxes.get)
        for there in done.before:
            if isinstance(there, REQUESTS):
                self._ensure(there, sandboxes)

    def _inside(self, step: Address | Route | Loopback, sandboxes: Sandboxes) -> Netlink:
        return sandboxes.get(step.netns, step.netns_id)[1] if step.netns else self._nl
