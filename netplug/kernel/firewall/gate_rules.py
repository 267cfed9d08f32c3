"""The gate in iptables: what nf_tables has let pass, passes (steps `Gate` and `Passage`).

Other programs have rules in iptables (Docker, ufw, the administrator's), which drop what they do not know. A rule of
ours has a defined position among theirs only there. A host may have rules in both flavours of iptables at once, legacy
ones and those in nf_tables; a packet meets both. A host without iptables has no such rules, and needs no gate.

The position is behind all jumps to ``DOCKER-USER`` and to the chains of ufw for its users. So what these drop stays
dropped. Without such chains it is put behind the rules for certain packets, and before the first one for all packets.

This module computes; `iptables` runs the programs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeAlias

from netplug.drivers.firewall import RESOLVER_PORT
from netplug.drivers.naming import BRIDGES
from netplug.drivers.steps import Gate, Passage
from netplug.kernel.api import MISSING, Outcome

PREFIX = "NETPLUG-"
"""Chains that begin so are ours; nothing else is ever touched."""
FORWARD, INPUT = "NETPLUG-FORWARD", "NETPLUG-INPUT"

_USERS = frozenset(
    {"DOCKER-USER", "ufw-before-forward", "ufw6-before-forward", "ufw-before-input", "ufw6-before-input"}
)
"""Chains in which users of Docker and ufw decide: what is dropped there stays dropped."""
_FOR_ALL = re.compile(r'(-m comment --comment ("(\\.|[^"\\])*"|\S+) )?-[jg] ')
"""A rule of iptables-save without conditions."""
_DOCKER_ISOLATION = "DOCKER-ISOLATION-STAGE-2"
"""Docker's chain (until 28) that drops what would enter one of its own bridges; later versions drop in `raw`."""
_PARENTS = {FORWARD: "FORWARD", INPUT: "INPUT"}
DOCKER_USER, UFW_INPUT = "DOCKER-USER", "ufw-user-input"
_READ = frozenset({"FORWARD", "INPUT", "OUTPUT", FORWARD, INPUT, DOCKER_USER, UFW_INPUT})

Way: TypeAlias = tuple[str, str]
"""A link, and a subnet there."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The filter table of one flavour. `rules`: of the built-in chains and ours; of others the names are known."""

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

    def jumps(self) -> list[tuple[str, str]]:
        """Return the rules of FORWARD and INPUT that lead to our chains, each after its chain."""
        return [(it, rule) for it in _PARENTS.values() for rule in self.rules.get(it, ()) if f"-j {PREFIX}" in rule]

    @property
    def decides(self) -> bool:
        """Whether a packet could be dropped here."""
        return any(self.foreign(chain) or self.policies.get(chain, "ACCEPT") != "ACCEPT" for chain in _PARENTS.values())

    def passages(self) -> set[Way]:
        """Return the links for which the gate has rules besides those of all networks, with their subnets."""
        words = (rule.split() for rule in self.rules.get(FORWARD, ()))
        return {(it[3], it[1]) for it in words if it[0] == "-s" and it[4:] == ["-j", "ACCEPT"]}


def drift(step: Gate | Passage, found: Mapping[str, Filter]) -> str:
    """Say what is wrong with a step; empty when nothing."""
    before = found.get(step.flavour)
    if before is None or FORWARD not in before.rules:
        return MISSING
    if isinstance(step, Passage):
        return "" if (step.link, str(step.subnet)) in before.passages() else MISSING
    if any(list(before.rules.get(name, ())) != rules for name, rules in rules_of(before, before.passages()).items()):
        return "its rules differ"
    if _surplus(before):
        return "it has chains of a former release"
    if any(map(_is_stray, before.jumps())):
        return "other rules lead to it too"
    return "" if all(_in_place(name, before) for name in _PARENTS) else "is not in its place"


def owned(family: int, found: Mapping[str, Filter]) -> Iterable[Gate | Passage]:
    """Return what there is of gates."""
    for flavour, it in found.items():
        if any(name.startswith(PREFIX) for name in it.chains):
            yield Gate(family, flavour)
        yield from (Passage(family, flavour, link, ip_network(subnet)) for link, subnet in sorted(it.passages()))


def outcome(step: Gate | Passage, before: Filter) -> Outcome:
    """Return what bringing a step about does to the table that there was."""
    wrong = drift(step, {step.flavour: before})
    if not wrong:
        return Outcome.EQUAL
    return Outcome.CREATED if wrong == MISSING else Outcome.ADJUSTED


def ways_of(steps: Iterable[Gate | Passage]) -> set[Way]:
    """Return the links and subnets that steps let pass."""
    return {(step.link, str(step.subnet)) for step in steps if isinstance(step, Passage)}


def rules_of(before: Filter, ways: Iterable[Way]) -> dict[str, list[str]]:
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


def lines_for(before: Filter, ways: Iterable[Way]) -> list[str]:
    """Return the input of iptables-restore that brings the gate about, and changes nothing that is right."""
    lines: list[str] = []
    for name, rules in rules_of(before, ways).items():
        if list(before.rules.get(name, ())) != rules or name not in before.rules:
            lines += [f":{name} - [0:0]", *(f"-A {name} {rule}" for rule in rules)]
        if not _in_place(name, before):
            parent = _PARENTS[name]
            found = list(before.rules.get(parent, ()))
            others = [rule for rule in found if rule != f"-j {name}"]
            lines += [f"-D {parent} -j {name}"] * found.count(f"-j {name}")
            lines.append(f"-I {parent} {_place(name, others) + 1} -j {name}")
    return [*lines, *_removing(filter(_is_stray, before.jumps()), _surplus(before))]


def _surplus(before: Filter) -> list[str]:
    """Return the chains that a former release made besides."""
    return sorted(name for name in before.chains if name.startswith(PREFIX) and name not in _PARENTS)


def _is_stray(jump: tuple[str, str]) -> bool:
    """Return whether a rule leads to us otherwise than the gate's does."""
    return jump[1] not in {f"-j {name}" for name in _PARENTS}


def lines_without(before: Filter) -> list[str]:
    """Return the input of iptables-restore that removes all chains of ours."""
    return _removing(before.jumps(), sorted(name for name in before.chains if name.startswith(PREFIX)))


def _removing(jumps: Iterable[tuple[str, str]], chains: Sequence[str]) -> list[str]:
    """Return the input that removes rules, each after its chain, and then chains."""
    rules = (f"-D {parent} {rule}" for parent, rule in jumps)
    return [*rules, *(f"-F {name}" for name in chains), *(f"-X {name}" for name in chains)]


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
