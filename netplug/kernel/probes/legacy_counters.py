"""Rules of iptables-legacy that dropped packets meanwhile: those whose counters moved.

The kernel can trace them only to its log. Other traffic moves counters too, so only rules (and policies) that drop or
reject are told; a job counts only what moved by at least as many packets as were sent.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from netplug.kernel.firewall import legacy_tables
from netplug.kernel.probes import places
from netplug.kernel.probes.api import Rule

_VERSIONS = {
    4: ("ip", "iptables-legacy-save"),
    6: ("ip6", "ip6tables-legacy-save"),
}
_DEADLINE_S = 5
_RULE = re.compile(r"^\[(\d+):\d+\] (-A (\S+) .*)$")
_POLICY = re.compile(r"^:(\S+) (DROP) \[(\d+):\d+\]$")
_TARGET = re.compile(r" -j (DROP|REJECT)\b")


@dataclass(frozen=True, slots=True)
class _Counter:
    """A rule, or a policy. `nth`: of equal rules of its chain, since others may come and go before it."""

    table: str
    chain: str
    nth: int
    text: str
    verdict: str


class LegacyCounters:
    """The counters of one namespace, for one IP version. `lacks`: why they cannot be read."""

    def __init__(self, version: int, netns: str) -> None:
        self._netns = netns
        self._version = version
        self._family, self._program = _VERSIONS[version]
        self.lacks: list[str] = []
        self._before = self._read()

    @property
    def rules(self) -> int:
        """How many rules and policies drop or reject."""
        return len(self._before)

    def moved(self, packets: int) -> Iterator[Rule]:
        """Yield what moved since by at least so many packets."""
        if self.lacks or not packets:
            return
        for counter, count in self._read().items():
            if (by := count - self._before.get(counter, 0)) >= packets:
                yield Rule(
                    self._netns,
                    "iptables-legacy",
                    self._family,
                    counter.table,
                    counter.chain,
                    counter.verdict,
                    counter.text,
                    hook=counter.chain.lower() if counter.chain.isupper() else "",
                    packets=by,
                )

    def _read(self) -> dict[_Counter, int]:
        return places.run_in(self._netns, self._read_here)

    def _read_here(self) -> dict[_Counter, int]:
        if not legacy_tables.names(self._version):
            return {}
        try:
            command = self._program, "-c"
            done = subprocess.run(command, capture_output=True, timeout=_DEADLINE_S, check=False, text=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.lacks = [f"rules of iptables-legacy cannot be read: {self._program}: {error}"]
            return {}
        if done.returncode:
            self.lacks = [f"rules of iptables-legacy cannot be read: {' '.join(done.stderr.split())}"]
        return dict(_parsed(done.stdout))


def _parsed(text: str) -> Iterator[tuple[_Counter, int]]:
    table, equal = "", Counter[tuple[str, str]]()
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif policy := _POLICY.match(line):
            yield _Counter(table, policy[1], 0, "policy drop", "drop"), int(policy[3])
        elif (rule := _RULE.match(line)) and (target := _TARGET.search(rule[2])):
            equal[table, rule[2]] += 1
            yield _Counter(table, rule[3], equal[table, rule[2]], rule[2], target[1].lower()), int(rule[1])
