"""Runs the programs of iptables: reads the filter tables of both flavours, and changes the gate (`gate_rules`)."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import structlog

from netplug.drivers.steps import Gate, Passage
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.firewall import legacy_tables
from netplug.kernel.firewall.gate_rules import FORWARD, Filter, lines_for, lines_without, outcome, ways_of
from netplug.kernel.firewall.legacy_watch import LegacyWatch

log = structlog.get_logger(__name__)

FLAVOURS = ("nft", "legacy")
NFT_FAMILIES = {4: "ip", 6: "ip6"}
"""The families of its tables in nf_tables, by IP version."""
DEADLINE_S = 20
"""Of a process. 10000 rules take 0.1 s; other users of iptables-legacy may hold its lock for some seconds."""
LOCK_WAIT_S = 10
"""How long iptables-legacy waits for its lock."""

_PROGRAMS = {4: "iptables", 6: "ip6tables"}


class UnavailableError(Exception):
    """A flavour of iptables cannot be used; says why."""


class Iptables:
    """The filter tables of one IP version in this namespace, of both flavours.

    `lack`: why a flavour that has rules could not be read when that was last tried. `last`: the tables as last read.
    """

    def __init__(self, family: int, watch: LegacyWatch) -> None:
        self.family = family
        self._watch = watch
        self.lack: dict[str, str] = {}
        self._expected = 0
        self.last: dict[str, Filter] = {}
        self._lock = asyncio.Lock()
        self._programs: dict[str, str] = {}

    async def read(self, nft_tables: AbstractSet[str]) -> dict[str, Filter]:
        """Return the filter tables that there are, by flavour. `nft_tables`: names of nf_tables' of this IP version.

        Where there is none, no process is started.
        """
        there = {flavour for flavour, names in self.tables(nft_tables) if "filter" in names}
        found: dict[str, Filter] = {}
        for flavour in (it for it in FLAVOURS if it in there):
            try:
                found[flavour] = await self._read(flavour)
            except UnavailableError as error:
                if self.lack.get(flavour) != str(error):
                    log.warning("firewall.unread", family=self.family, flavour=flavour, reason=str(error))
                self.lack[flavour] = str(error)
            else:
                self.lack.pop(flavour, None)
        self.last = {flavour: it for flavour, it in (self.last | found).items() if flavour in there}
        self.lack = {flavour: why for flavour, why in self.lack.items() if flavour in there}
        return found

    def tables(self, in_nft: AbstractSet[str]) -> Iterable[tuple[str, AbstractSet[str]]]:
        """Return the names of all tables, by flavour. `in_nft`: those of nf_tables of this IP version."""
        return ("nft", in_nft), ("legacy", legacy_tables.names(self.family))

    def has_legacy(self) -> bool:
        """Return whether there is a table filter of iptables-legacy."""
        return "filter" in legacy_tables.names(self.family)

    def may_drop_legacy(self) -> bool:
        """Return whether table filter of iptables-legacy has rules, or a policy DROP."""
        return self._watch.may_drop(self.family)

    async def save(self, flavour: str, table: str) -> str:
        """Return what iptables-save prints of a table.

        Raises:
            UnavailableError: it cannot be read.
        """
        makes = flavour == "legacy" and table == "filter" and not self.has_legacy()
        if makes:  # its program makes a table by looking at it
            self._watch.expect(self.family)
        try:
            return await self._run(f"{self._program(flavour)}-save", "-t", table)
        finally:
            if makes:
                self._watch.note(self.family)

    async def restore(self, flavour: str, table: str, lines: Sequence[str]) -> None:
        """Change a table by these lines.

        Raises:
            UnavailableError: it cannot be changed.
        """
        if not lines:
            return
        text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
        self._expected = int(flavour == "nft")
        if flavour == "legacy":
            self._watch.expect(self.family)
        try:
            await self._run(f"{self._program(flavour)}-restore", "--noflush", "-w", str(LOCK_WAIT_S), text=text)
        finally:
            self._expected = 0
            if flavour == "legacy":
                self._watch.note(self.family)

    def is_own_commit(self) -> bool:
        """Return whether a commit to nf_tables, of which the kernel tells, is that of `restore`: it makes one."""
        expected, self._expected = self._expected, 0
        return bool(expected)

    async def ensure(self, steps: Sequence[Gate | Passage]) -> list[Outcome]:
        """Bring the gate of one flavour about, in one transaction."""
        flavour = steps[0].flavour
        async with self._lock:
            try:
                before = await self._read(flavour)
                links = before.passages() | ways_of(steps)
                outcomes = [outcome(step, before) for step in steps]
                if any(it is not Outcome.EQUAL for it in outcomes):
                    await self.restore(flavour, "filter", lines_for(before, links))
            except UnavailableError as error:
                raise StepError(
                    "unavailable", steps[0], str(error), hint=f"see what {_PROGRAMS[self.family]} says"
                ) from error
        return outcomes

    async def remove(self, steps: Sequence[Gate | Passage]) -> None:
        """Remove the gate, or some links from it; absent is success, and so is a host without iptables."""
        flavour = steps[0].flavour
        async with self._lock:
            try:
                before = await self._read(flavour)
                if any(isinstance(step, Gate) for step in steps):
                    lines = lines_without(before)
                elif FORWARD in before.rules:
                    lines = lines_for(before, before.passages() - ways_of(steps))
                else:
                    lines = []
                await self.restore(flavour, "filter", lines)
            except UnavailableError as error:
                if self._program(flavour, tolerant=True):
                    raise StepError("internal", steps[0], str(error)) from error

    async def _read(self, flavour: str) -> Filter:
        saved = await self.save(flavour, "filter")
        try:
            return Filter.parse(saved)
        except (ValueError, KeyError) as error:
            raise UnavailableError(f"{self._program(flavour)}-save prints what cannot be read: {error}") from error

    def _program(self, flavour: str, *, tolerant: bool = False) -> str:
        """Return the name of a flavour's program. Not every distribution has one for each."""
        found = self._programs.get(flavour)
        if found is None:
            base = _PROGRAMS[self.family]
            if shutil.which(f"{base}-{flavour}"):
                found = f"{base}-{flavour}"
            elif shutil.which(base) and _flavour_of(base) == flavour:
                found = base
            elif tolerant:
                return ""
            else:
                raise UnavailableError(f"the host has rules of {base} ({flavour}), and no program {base}-{flavour}")
            self._programs[flavour] = found
        return found

    async def _run(self, *command: str, text: str = "") -> str:
        def run() -> subprocess.CompletedProcess[bytes]:
            # In a thread: asyncio's own subprocesses cost as much, and need a watcher for each child. Foreign rules
            # need not be valid text: a comment may have any bytes. They are kept unchanged.
            sent = text.encode(errors="surrogateescape")
            return subprocess.run(command, input=sent, capture_output=True, timeout=DEADLINE_S, check=False)

        try:
            done = await asyncio.to_thread(run)
        except OSError as error:
            raise UnavailableError(f"{command[0]} cannot be started: {error.strerror or error}") from error
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{command[0]} did not end within {DEADLINE_S} s") from error
        if done.returncode:
            words = " ".join(done.stderr.decode(errors="replace").split())
            raise UnavailableError(f"{command[0]} fails: {words or done.returncode}")
        return done.stdout.decode(errors="surrogateescape")


def _flavour_of(program: str) -> str:
    try:
        done = subprocess.run((program, "-V"), capture_output=True, timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "nft" if b"nf_tables" in done.stdout else "legacy"
