"""The gate in iptables: what nf_tables has let pass, passes (steps `Gate` and `Passage`).

Other programs have rules in iptables (Docker, ufw, the administrator's), which drop what they do not know. A rule of
ours has a defined position among theirs only there. A host may have rules in both flavours of iptables at once, legacy
ones and those in nf_tables; a packet meets both. A host without iptables has no such rules, and needs no gate.

The position is behind all jumps to ``DOCKER-USER`` and to the chains of ufw for its users. So what these drop stays
dropped. Without such chains it is put behind the rules for certain packets, and before the first one for all packets.
"""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import TypeAlias

import structlog

from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.naming import BRIDGES
from netplug.drivers.steps import Gate, Passage
from netplug.kernel.api import MISSING, Outcome, StepError
from netplug.kernel.firewall.legacy_watch import LegacyWatch

log = structlog.get_logger(__name__)

FLAVOURS = ("nft", "legacy")
PREFIX = "NETPLUG-"
"""Chains that begin so are ours; nothing else is ever touched."""
FORWARD, INPUT = "NETPLUG-FORWARD", "NETPLUG-INPUT"
DEADLINE_S = 20
"""Of a process. 10000 rules take 0.1 s; other users of iptables-legacy may hold its lock for some seconds."""
LOCK_WAIT_S = 10
"""How long iptables-legacy waits for its lock."""

_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
_USERS = frozenset(
    {"DOCKER-USER", "ufw-before-forward", "ufw6-before-forward", "ufw-before-input", "ufw6-before-input"}
)
"""Chains in which users of Docker and ufw decide: what is dropped there stays dropped."""
_FOR_ALL = re.compile(r'(-m comment --comment ("(\\.|[^"\\])*"|\S+) )?-[jg] ')
"""A rule of iptables-save without conditions."""
_DOCKER_ISOLATION = "DOCKER-ISOLATION-STAGE-2"
"""Docker's chain (until 28) that drops what would enter one of its own bridges; later versions drop in `raw`."""
_PARENTS = {FORWARD: "FORWARD", INPUT: "INPUT"}
_READ = frozenset({"FORWARD", "INPUT", FORWARD, INPUT})


Way: TypeAlias = tuple[str, str]
"""A link, and a subnet there."""


class UnavailableError(Exception):
    """A flavour of iptables cannot be used; says why."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter table of one flavour. `rules`: of FORWARD, INPUT and our chains; of others the names are known."""

    policies: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    chains: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, saved: str) -> "Filter":
        """Read what ``iptables-save -t filter`` printed."""
        policies: dict[str, str] = {}
        rules: dict[str, list[str]] = {}
        chains: set[str] = set()
        for line in saved.split("\n"):  # and nothing else that `splitlines` takes for an end
            if line.startswith(":"):
                name, policy, *_ = line[1:].split(" ")
                chains.add(name)
                if policy != "-":
                    policies[name] = policy
                if name in _READ:
                    rules[name] = []
            elif line.startswith("-A "):
                _, name, rule = line.split(" ", 2)
                if name in _READ:
                    rules[name].append(rule)
        return cls(policies, rules, frozenset(chains))

    def foreign(self, chain: str) -> list[str]:
        """Return the rules of FORWARD or INPUT that are not ours."""
        return [rule for rule in self.rules.get(chain, ()) if f"-j {PREFIX}" not in rule]

    @property
    def decides(self) -> bool:
        """Whether a packet could be dropped here."""
        return any(self.foreign(chain) or self.policies.get(chain, "ACCEPT") != "ACCEPT" for chain in _PARENTS.values())

    def passages(self) -> set[Way]:
        """Return the links for which the gate has rules besides those of all networks, with their subnets."""
        words = (rule.split() for rule in self.rules.get(FORWARD, ()))
        return {(it[3], it[1]) for it in words if it[0] == "-s" and it[4:] == ["-j", "ACCEPT"]}


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
        return ("nft", in_nft), ("legacy", _legacy_tables(self.family))

    def has_legacy(self) -> bool:
        """Return whether there is a table filter of iptables-legacy."""
        return "filter" in _legacy_tables(self.family)

    def has_legacy_rules(self) -> bool:
        """Return whether table filter of iptables-legacy has rules."""
        return self.has_legacy() and self._watch.has_rules(self.family)

    async def save(self, flavour: str, table: str) -> str:
        """Return what iptables-save prints of a table.

        Raises:
            UnavailableError: it cannot be read.
        """
        return await self._run(f"{self._program(flavour)}-save", "-t", table)

    async def restore(self, flavour: str, table: str, lines: Sequence[str]) -> None:
        """Change a table by these lines.

        Raises:
            UnavailableError: it cannot be changed.
        """
        if not lines:
            return
        text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
        self._expected = int(flavour == "nft")
        try:
            await self._run(f"{self._program(flavour)}-restore", "--noflush", "-w", str(LOCK_WAIT_S), text=text)
        finally:
            self._expected = 0

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
                links = before.passages() | _ways(steps)
                outcomes = [_outcome(step, before) for step in steps]
                if any(outcome is not Outcome.EQUAL for outcome in outcomes):
                    await self.restore(flavour, "filter", _lines(before, links))
            except UnavailableError as error:
                raise StepError(
                    "unavailable", steps[0], str(error), hint=f"see what {_PROGRAMS[self.family]} says"
                ) from error
            self.watch(flavour, again=True)
        return outcomes

    def watch(self, flavour: str, *, again: bool = False) -> None:
        """Notice changes to the table from now on. The kernel tells of those to nf_tables itself.

        `again`: those so far were ours.
        """
        if flavour == "legacy":
            self._watch.note(self.family, again=again)

    async def remove(self, steps: Sequence[Gate | Passage]) -> None:
        """Remove the gate, or some links from it; absent is success, and so is a host without iptables."""
        flavour = steps[0].flavour
        if flavour == "legacy" and any(isinstance(step, Gate) for step in steps):
            self._watch.forget(self.family)
        async with self._lock:
            try:
                before = await self._read(flavour)
                if any(isinstance(step, Gate) for step in steps):
                    lines = _without(before)
                elif FORWARD in before.rules:
                    lines = _lines(before, before.passages() - _ways(steps))
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


def _legacy_tables(family: int) -> AbstractSet[str]:
    try:
        return set(_LEGACY_TABLES[family].read_text().split())
    except OSError:  # the kernel has none
        return frozenset()


def _flavour_of(program: str) -> str:
    try:
        done = subprocess.run((program, "-V"), capture_output=True, timeout=DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "nft" if b"nf_tables" in done.stdout else "legacy"


def drift(step: Gate | Passage, found: Mapping[str, Filter]) -> str:
    """Say what is wrong with a step; empty when nothing."""
    before = found.get(step.flavour)
    if before is None or FORWARD not in before.rules:
        return MISSING
    if isinstance(step, Passage):
        return "" if (step.link, str(step.subnet)) in before.passages() else MISSING
    if any(list(before.rules.get(name, ())) != rules for name, rules in _rules(before, before.passages()).items()):
        return "its rules differ"
    if _surplus(before):
        return "it has chains of a former release"
    if any(_is_stray(rule) for parent in _PARENTS.values() for rule in before.rules.get(parent, ())):
        return "other rules lead to it too"
    return "" if all(_in_place(name, before) for name in _PARENTS) else "is not in its place"


def owned(family: int, found: Mapping[str, Filter]) -> Iterable[Gate | Passage]:
    """Return what there is of gates."""
    for flavour, it in found.items():
        if any(name.startswith(PREFIX) for name in it.chains):
            yield Gate(family, flavour)
        yield from (Passage(family, flavour, link, ip_network(subnet)) for link, subnet in sorted(it.passages()))


def _outcome(step: Gate | Passage, before: Filter) -> Outcome:
    wrong = drift(step, {step.flavour: before})
    if not wrong:
        return Outcome.EQUAL
    return Outcome.CREATED if wrong == MISSING else Outcome.ADJUSTED


def _ways(steps: Iterable[Gate | Passage]) -> set[Way]:
    return {(step.link, str(step.subnet)) for step in steps if isinstance(step, Passage)}


def _rules(before: Filter, ways: Iterable[Way]) -> dict[str, list[str]]:
    """Return the rules of our chains. Few packets are for the isolation of Docker's bridges, which has a rule for each.

    What goes to our links goes to none of these.
    """
    sources = [f"-i {BRIDGES}+", *(f"-s {subnet} -i {link}" for link, subnet in sorted(ways))]
    targets = [f"-o {BRIDGES}+", *(f"-d {subnet} -o {link}" for link, subnet in sorted(ways))]
    isolated = (f"{it} -m conntrack ! --ctstate DNAT -j {_DOCKER_ISOLATION}" for it in sources)
    return {
        FORWARD: [
            *(f"{it} -j ACCEPT" for it in targets),
            *(isolated if _DOCKER_ISOLATION in before.chains else ()),
            *(f"{it} -j ACCEPT" for it in sources),
        ],
        INPUT: [
            f"{it} -p {proto} -m {proto} --dport {RESOLVER_PORT} -j ACCEPT"
            for it in sources
            for proto in ("udp", "tcp")
        ],
    }


def _lines(before: Filter, ways: Iterable[Way]) -> list[str]:
    """Return the input of iptables-restore that brings the gate about, and changes nothing that is right."""
    lines: list[str] = []
    for name, rules in _rules(before, ways).items():
        if list(before.rules.get(name, ())) != rules or name not in before.rules:
            lines += [f":{name} - [0:0]", *(f"-A {name} {rule}" for rule in rules)]
        if not _in_place(name, before):
            parent = _PARENTS[name]
            found = list(before.rules.get(parent, ()))
            others = [rule for rule in found if rule != f"-j {name}"]
            lines += [f"-D {parent} -j {name}"] * found.count(f"-j {name}")
            lines.append(f"-I {parent} {_place(name, others) + 1} -j {name}")
    surplus = _surplus(before)
    stray = [(parent, rule) for parent in _PARENTS.values() for rule in before.rules.get(parent, ()) if _is_stray(rule)]
    lines += [f"-D {parent} {rule}" for parent, rule in stray]
    return [*lines, *(f"-F {name}" for name in surplus), *(f"-X {name}" for name in surplus)]


def _surplus(before: Filter) -> list[str]:
    """Return the chains that a former release made besides."""
    return sorted(name for name in before.chains if name.startswith(PREFIX) and name not in _PARENTS)


def _is_stray(rule: str) -> bool:
    """Return whether a rule of FORWARD or INPUT leads to us otherwise than the gate's does."""
    return f"-j {PREFIX}" in rule and rule not in {f"-j {name}" for name in _PARENTS}


def _without(before: Filter) -> list[str]:
    """Return the input of iptables-restore that removes all chains of ours."""
    jumps = [
        f"-D {parent} {rule}"
        for parent in _PARENTS.values()
        for rule in before.rules.get(parent, ())
        if f"-j {PREFIX}" in rule
    ]
    ours = sorted(name for name in before.chains if name.startswith(PREFIX))
    return [*jumps, *(f"-F {name}" for name in ours), *(f"-X {name}" for name in ours)]


def _behind_users(others: Sequence[str]) -> int:
    """Return the number of the other rules up to the last that leads to a chain of users; 0 without such chains."""
    return max((i + 1 for i, rule in enumerate(others) if _leads_to(rule, _USERS)), default=0)


def _place(name: str, others: Sequence[str]) -> int:
    """Return where to put a jump of ours among the other rules.

    Behind those for certain packets, what they drop stays dropped; but a last rule may refuse all that is left. What
    containers ask the name server of this process is our own affair, so the jump for that comes first.
    """
    if name == INPUT:
        return _behind_users(others)
    rest = (i for i, rule in enumerate(others) if _FOR_ALL.match(rule))
    return _behind_users(others) or next(rest, len(others))


def _in_place(name: str, before: Filter) -> bool:
    """Return whether the jump to a chain of ours is where it must be.

    Without chains of users any place does: otherwise two programs might compete for one. It is put there once.
    """
    rules = list(before.rules.get(_PARENTS[name], ()))
    jump = f"-j {name}"
    if rules.count(jump) != 1:
        return False
    place = _behind_users([rule for rule in rules if rule != jump])
    return not place or rules.index(jump) == place


def _leads_to(rule: str, chains: frozenset[str]) -> bool:
    words = rule.split()
    return any(words[i] in {"-j", "-g"} and words[i + 1] in chains for i in range(len(words) - 1))
