"""firewalld's zone of our links (step `Zone`).

A zone can only be made in firewalld's permanent configuration, and firewalld knows it after a reload. That takes half a
second, and forgets what only the running firewalld was told. So a reload is asked for if there is no such zone yet, and
never else. Links are added both to the running firewalld and for its next start. Whether a link has a zone is seen in
firewalld's rules: firewalld is asked only if there is something to do, and a host without it costs nothing.

What the administrator has decided stays: a link in another zone, and a zone ``netplug`` that we did not make.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from netplug.drivers.firewalld import command
from netplug.drivers.zones import ZONE, Zone
from netplug.kernel.api import MISSING, Done, Outcome, StepError
from netplug.kernel.context import Context
from netplug.kernel.firewall import firewalld
from netplug.kernel.firewall.firewalld_bus import (
    PERMANENT,
    RUNTIME,
    AbsentError,
    Bus,
    RefusedError,
    UnavailableError,
    connected,
    variants,
)
from netplug.kernel.handlers import BatchHandler
from netplug.kernel.survey import Survey

log = structlog.get_logger(__name__)

FILE = Path("/etc/firewalld/zones") / f"{ZONE}.xml"
"""Where firewalld keeps the zone for its next start."""
DESCRIPTION = "Links of networks of netplug, whose own rules filter them. Made and removed by netplug."
"""Marks a zone as made by us."""
_ANSWER_S = 5.0
"""For all that is asked at once. A reload takes half a second, a start some seconds: what is late is done later."""
_REST_S = 10.0
"""No new attempt so soon after one that got no answer: others wait for it."""
_MADE = {"short": ZONE, "description": DESCRIPTION, "target": "ACCEPT", "forward": True}
"""Settings of the zone as we make it, besides its links."""
_T = TypeVar("_T")


class ZoneHandler(BatchHandler[Zone]):
    """firewalld's zone of our links."""

    in_thread = False

    def __init__(self, context: Context) -> None:
        self._tables = context.reader
        self._lock = asyncio.Lock()
        self._why = ""
        self._rest_until = 0.0

    def batch(self, step: Zone) -> Hashable:  # noqa: ARG002
        """Return the same for all."""
        return ZONE

    async def ensure(self, steps: Sequence[Zone]) -> Sequence[Outcome | Done]:
        """Have firewalld put links into the zone.

        A firewalld that cannot be asked is no error: the network is built, and `drift` says what it lacks.

        Raises:
            StepError: firewalld refuses.
        """
        async with self._lock:
            if not (new := self._without_zone(steps)):
                return [Outcome.EQUAL] * len(steps)
            links = [step.link for step in new]
            try:
                if asyncio.get_running_loop().time() < self._rest_until:
                    raise UnavailableError(self._why)  # noqa: TRY301
                added = await self._ask(_add, links)
            except RefusedError as error:
                words = f"firewalld does not take {', '.join(links)} into its zone {ZONE!r}: {error}"
                raise StepError("unavailable", new[0], words, hint=command(*links)) from error
            except UnavailableError as error:
                self._note(str(error), links)
                added = []
            else:
                self._note("", links)
        return [Outcome.CREATED if step.link in added else Outcome.EQUAL for step in steps]

    async def remove(self, steps: Sequence[Zone]) -> None:
        """Have firewalld forget links, and with the last of them the zone.

        Raises:
            StepError: firewalld refuses, or does not answer.
        """
        links = [step.link for step in steps]
        found = firewalld.zones(self._tables)
        if found is None and not await asyncio.to_thread(FILE.exists):
            return
        # Where its rules were flushed, it cannot remove any.
        seen = [link for link in links if found and found.zone(link) == ZONE]
        async with self._lock:
            try:
                await self._ask(partial(_remove, seen=seen), links)
            except AbsentError:
                await asyncio.to_thread(_remove_file, links)
            except (RefusedError, UnavailableError) as error:
                words = f"firewalld does not remove {', '.join(links)} from its zone {ZONE!r}: {error}"
                hint = f"firewall-cmd --permanent --delete-zone={ZONE} && firewall-cmd --reload"
                raise StepError("unavailable", steps[0], words, hint=hint) from error

    def drift(self, step: Zone, survey: Survey) -> str:  # noqa: ARG002
        """Say that firewalld runs and no zone has the link; and if we could not change that, why, and how to."""
        if not self._without_zone((step,)):
            return ""
        return f"{MISSING}: {self._why}: {command(step.link)}" if self._why else MISSING

    def _without_zone(self, steps: Sequence[Zone]) -> list[Zone]:
        found = firewalld.zones(self._tables)
        return [step for step in steps if found and not found.zone(step.link)]

    async def _ask(self, what: Callable[[Bus, Sequence[str]], Awaitable[_T]], links: Sequence[str]) -> _T:
        try:
            async with asyncio.timeout(_ANSWER_S), connected() as bus:
                return await what(bus, links)
        except TimeoutError:
            self._rest_until = asyncio.get_running_loop().time() + _REST_S
            raise UnavailableError("firewalld does not answer") from None

    def _note(self, why: str, links: Sequence[str]) -> None:
        if why and why != self._why:
            log.warning("firewalld.unavailable", why=why, mend=command(*links))
        self._why = why


async def _add(bus: Bus, links: Sequence[str]) -> list[str]:
    """Put links into the zone, and return which: those of which firewalld's configuration says nothing else."""
    chosen = {link: await bus.call(PERMANENT, "config.getZoneOfInterface", "s", link) for link in links}
    links = [link for link, zone in chosen.items() if zone in {"", ZONE}]
    if not links:
        said = ", ".join(f"{link} in zone {zone!r}" for link, zone in chosen.items())
        raise UnavailableError(f"its permanent configuration has {said}, which it knows after a reload")
    new = [link for link in links if not chosen[link]]
    ours = await _add_permanently(bus, new)
    try:
        if not await _is_running(bus, ours=ours):
            await bus.call(RUNTIME, "reload")
        for link in links:
            if not await bus.call(RUNTIME, "zone.getZoneOfInterface", "s", link):
                await bus.call(RUNTIME, "zone.addInterface", "ss", ZONE, link)
    except RefusedError:
        if ours:
            await _remove_permanently(bus, new)
        raise
    return links


async def _add_permanently(bus: Bus, links: Sequence[str]) -> bool:
    """Add links to the zone in the permanent configuration if the zone is ours, and return whether it is."""
    if ZONE not in await bus.call(PERMANENT, "config.getZoneNames"):
        await bus.call(PERMANENT, "config.addZone2", "sa{sv}", ZONE, variants({**_MADE, "interfaces": links}))
        return True
    path, settings = await _settings(bus)
    if not _is_ours(settings):
        return False
    for link in links:
        await bus.call(path, "config.zone.addInterface", "s", link)
    return True


async def _is_running(bus: Bus, *, ours: bool) -> bool:
    """Return whether the running firewalld has the zone. `ours`: it shall be ours, not a former one of this name."""
    if ZONE not in await bus.call(RUNTIME, "zone.getZones"):
        return False
    return not ours or _is_ours(_plain(await bus.call(RUNTIME, "zone.getZoneSettings2", "s", ZONE)))


async def _remove(bus: Bus, links: Sequence[str], *, seen: Sequence[str]) -> None:
    """Take links out of the zone; if it is ours and has no others, and nobody changed it, remove it.

    The running firewalld forgets the zone with the next reload, which is not worth to be asked for.

    Args:
        bus: of firewalld.
        links: to take out of its permanent configuration.
        seen: to take out of the running firewalld.
    """
    if ZONE in await bus.call(PERMANENT, "config.getZoneNames"):
        await _remove_permanently(bus, links)
    for link in seen:
        if await bus.call(RUNTIME, "zone.getZoneOfInterface", "s", link) == ZONE:
            await bus.call(RUNTIME, "zone.removeInterface", "ss", ZONE, link)


async def _remove_permanently(bus: Bus, links: Sequence[str]) -> None:
    path, settings = await _settings(bus)
    if not _is_ours(settings):
        return
    present: list[str] = settings.pop("interfaces", [])
    if settings == _MADE and set(present) <= set(links):
        await bus.call(path, "config.zone.remove")
        return
    for link in (link for link in links if link in present):
        await bus.call(path, "config.zone.removeInterface", "s", link)


async def _settings(bus: Bus) -> tuple[str, dict[str, Any]]:
    """Return the object of the zone in the permanent configuration, and its settings without empty ones."""
    path = await bus.call(PERMANENT, "config.getZoneByName", "s", ZONE)
    return path, _plain(await bus.call(path, "config.zone.getSettings2"))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: it.value for name, it in settings.items() if it.value}


def _is_ours(settings: Mapping[str, object]) -> bool:
    return settings.get("description") == DESCRIPTION


def _remove_file(links: Sequence[str]) -> None:
    """Do as `_remove` while firewalld does not run (firewalld.zone(5))."""
    try:
        text = FILE.read_text()
    except FileNotFoundError:
        return
    if DESCRIPTION not in text:
        return
    for link in links:
        text = re.sub(rf'\s*<interface name="{re.escape(link)}"\s*/>', "", text)
    if "<interface" in text:
        new = FILE.with_suffix(".xml.netplug")
        try:
            new.write_text(text)
            new.replace(FILE)  # as a whole: on a full disk it stays as it is
        finally:
            new.unlink(missing_ok=True)
    else:
        FILE.unlink()
