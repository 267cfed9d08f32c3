"""Parses the output of iptables-save, and computes the lines for iptables-restore. Pure; `iptables` runs processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from netplug.drivers.steps import Chain, Jump, Rule
from netplug.kernel.api import MISSING, Outcome, StepError

PREFIX = "NETPLUG-"
"""Chains that begin so are ours; nothing else is ever touched."""

FirewallStep: TypeAlias = Chain | Rule | Jump
FIREWALL_STEPS = (Chain, Rule, Jump)


@dataclass(slots=True)
class Model:
    """Chains with their rules, by table. Of chains that are neither built in nor ours only the names are known.

    `opened`: chains of ours that were there at some time; one that got lost is made anew for a rule.
    """

    tables: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    opened: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def parse(cls, saved: str, opened: set[tuple[str, str]] | None = None) -> "Model":
        """Read what iptables-save printed."""
        model = cls(opened=set(opened or ()))
        chains: dict[str, list[str]] = {}
        known: set[str] = set()
        table = ""
        for line in saved.split("\n"):  # and nothing else that `splitlines` takes for an end
            if line.startswith("*"):
                table = line[1:]
                chains = model.tables.setdefault(table, {})
                known = set()
            elif line.startswith(":"):
                name, policy, *_ = line[1:].split(" ")
                chains[name] = []
                if name.startswith(PREFIX):
                    model.opened.add((table, name))
                if policy != "-" or name.startswith(PREFIX):
                    known.add(name)
            elif line.startswith("-A "):
                _, name, rule = line.split(" ", 2)
                if name in known:
                    chains[name].append(rule)
        return model

    def copy(self) -> "Model":
        """Return a copy; lists of rules are shared and never changed in place."""
        return Model({table: dict(chains) for table, chains in self.tables.items()}, set(self.opened))

    def chain(self, table: str, name: str) -> list[str] | None:
        """Return the rules of a chain, None when there is none."""
        return self.tables.get(table, {}).get(name)

    def put(self, table: str, name: str, rules: list[str] | None) -> None:
        """Set the rules of a chain, or forget it."""
        if rules is None:
            self.tables.get(table, {}).pop(name, None)
        else:
            self.tables.setdefault(table, {})[name] = rules

    def ours(self) -> Iterator[tuple[str, str, list[str]]]:
        """Yield table, name and rules of our chains."""
        for table, chains in self.tables.items():
            for name, rules in chains.items():
                if name.startswith(PREFIX):
                    yield table, name, rules


@dataclass(slots=True)
class Transaction:
    """Collects the lines that apply steps, on top of a model that it changes as it goes."""

    model: Model
    lines: dict[str, list[tuple[str, FirewallStep]]] = field(default_factory=dict)

    def ensure(self, step: FirewallStep) -> Outcome:
        """Add what brings a step about."""
        check(step)
        match step:
            case Chain():
                return self._ensure_chain(step)
            case Rule():
                return self._ensure_rule(step)
            case Jump():
                return self._ensure_jump(step)

    def empty(self, steps: Sequence[FirewallStep]) -> None:
        """Add what empties chains that are about to be removed: one that another leads to cannot go."""
        for step in steps:
            if isinstance(step, Chain) and self.model.chain(step.table, step.name):
                check(step)
                self._line(step, f"-F {step.name}")
                self.model.put(step.table, step.name, [])

    def remove(self, step: FirewallStep) -> None:
        """Add what removes a step."""
        check(step)
        match step:
            case Chain():
                if self.model.chain(step.table, step.name) is not None:
                    self._remove_jumps(step)
                    self._line(step, f"-F {step.name}")
                    self._line(step, f"-X {step.name}")
                    self.model.put(step.table, step.name, None)
                self.model.opened.discard((step.table, step.name))
            case Rule() | Jump():
                rules = self.model.chain(step.table, step.chain) or []
                for _ in range(rules.count(step.rule)):
                    self._line(step, f"-D {step.chain} {step.rule}")
                if step.rule in rules:
                    self.model.put(step.table, step.chain, [rule for rule in rules if rule != step.rule])

    def render(self) -> tuple[str, list[FirewallStep]]:
        """Return the input of iptables-restore, and for each of its lines the step that it comes from."""
        text: list[str] = []
        origin: list[FirewallStep] = []
        for table, lines in self.lines.items():
            steps = [step for _, step in lines]
            text += [f"*{table}", *(line for line, _ in lines), "COMMIT"]
            origin += [steps[0], *steps, steps[-1]]
        return "\n".join(text) + "\n", origin

    def _ensure_chain(self, step: Chain) -> Outcome:
        before = self.model.chain(step.table, step.name)
        self.model.opened.add((step.table, step.name))
        if step.open:
            if before is not None:
                return Outcome.EQUAL
            # Not ":NAME", which would empty the chain if it had come into being behind our back.
            self._line(step, f"-N {step.name}")
            self.model.put(step.table, step.name, [])
            return Outcome.CREATED
        if before == list(step.rules):
            return Outcome.EQUAL
        self._line(step, f":{step.name} - [0:0]")
        for rule in step.rules:
            self._line(step, f"-A {step.name} {rule}")
        self.model.put(step.table, step.name, list(step.rules))
        return Outcome.CREATED if before is None else Outcome.ADJUSTED

    def _ensure_rule(self, step: Rule) -> Outcome:
        rules = self.model.chain(step.table, step.chain)
        if rules is None:
            if (step.table, step.chain) not in self.model.opened:
                raise StepError("not_found", step, missing_chain(step))
            self._line(step, f"-N {step.chain}")
            rules = []
        elif step.rule in rules:
            return Outcome.EQUAL
        self._line(step, f"-A {step.chain} {step.rule}")
        self.model.put(step.table, step.chain, [*rules, step.rule])
        return Outcome.CREATED

    def _ensure_jump(self, step: Jump) -> Outcome:
        rules = self.model.chain(step.table, step.chain) or []
        found = step.rule in rules
        if found and in_place(step, rules):
            return Outcome.EQUAL
        others = [rule for rule in rules if rule != step.rule]
        for _ in range(rules.count(step.rule)):
            self._line(step, f"-D {step.chain} {step.rule}")
        at = place(step, others)
        self._line(step, f"-I {step.chain} {at + 1} {step.rule}")
        self.model.put(step.table, step.chain, [*others[:at], step.rule, *others[at:]])
        return Outcome.ADJUSTED if found else Outcome.CREATED

    def _remove_jumps(self, step: Chain) -> None:
        """Take out the rules of built-in chains that lead to a chain, also those of which no plan tells any more."""
        for name, rules in [*self.model.tables[step.table].items()]:
            jumps = [rule for rule in rules if not name.startswith(PREFIX) and _leads_to(rule, step.name)]
            for rule in jumps:
                self._line(step, f"-D {name} {rule}")
            if jumps:
                self.model.put(step.table, name, [rule for rule in rules if rule not in jumps])

    def _line(self, step: FirewallStep, line: str) -> None:
        self.lines.setdefault(step.table, []).append((line, step))


def check(step: FirewallStep) -> None:
    """Refuse a step that would touch what is not ours.

    Raises:
        StepError: "invalid".
    """
    match step:
        case Chain():
            fits = step.name.startswith(PREFIX)
        case Rule():
            fits = step.chain.startswith(PREFIX)
        case Jump():
            fits = f"-j {PREFIX}" in step.rule
    if not fits:
        raise StepError("invalid", step, f"firewall step {step.key!r} is outside of the chains {PREFIX}*")


def missing_chain(step: Rule) -> str:
    """Return the message for a rule without its chain."""
    return f"chain {step.chain} of table {step.table} (IPv{step.family}) is missing"


def place(step: Jump, rules: list[str]) -> int:
    """Return where a jump belongs among the other rules: after those to `after`, and after others of ours there."""
    if step.last:
        return len(rules)
    if step.after is None:
        return 0
    at = max((i + 1 for i, rule in enumerate(rules) if _leads_to(rule, step.after)), default=0)
    while at < len(rules) and f"-j {PREFIX}" in rules[at]:
        at += 1
    return at


def in_place(step: Jump, rules: list[str]) -> bool:
    """Return whether a jump stands where it must: last, or directly behind those to `after`, if it has one."""
    if step.last:
        return rules.count(step.rule) == 1 and rules[-1] == step.rule
    if step.after is None:
        return rules.count(step.rule) == 1
    at = rules.index(step.rule)
    start = max((i + 1 for i, rule in enumerate(rules) if _leads_to(rule, step.after)), default=0)
    return at >= start and all(f"-j {PREFIX}" in rule for rule in rules[start:at]) and rules.count(step.rule) == 1


def drift(model: Model, step: FirewallStep) -> str:
    """Say what is wrong with a step; empty when nothing."""
    match step:
        case Chain():
            rules = model.chain(step.table, step.name)
            if rules is None:
                return MISSING
            return "" if step.open or rules == list(step.rules) else "its rules differ"
        case Rule():
            return "" if step.rule in (model.chain(step.table, step.chain) or ()) else MISSING
        case Jump():
            rules = model.chain(step.table, step.chain) or []
            if step.rule not in rules:
                return MISSING
            return "" if in_place(step, rules) else "is not in its place"


def _leads_to(rule: str, chain: str) -> bool:
    words = rule.split()
    return any(words[i] in {"-j", "-g"} and words[i + 1] == chain for i in range(len(words) - 1))
