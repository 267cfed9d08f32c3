"""A long run: containers of all runtimes come and go on three hosts, daemons, engines and etcd are killed at random.

After a minute of warm-up all containers are removed, and what each host has is counted: memory, descriptors and threads
of the daemon, records, leases, links, rules, tracked connections. At the end this is done again, and both must be
equal, but for a few percent of memory. Two namespaces on two hosts ping each other throughout.

Run it as root: ``make soak`` or ``.venv/bin/python integration/soak.py [--minutes N] [--seed N] [--json FILE]``.
"""

import argparse
import json
import secrets
import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import wait_until
from harness.churn import Churn
from harness.cluster import Member, cluster
from rich.console import Console
from rich.table import Table

SETTLE_S = 60.0
"""netplug compares with Docker some 20 s after a lost request."""
WARM_UP_S = 60.0
KILL_EVERY_S = 10.0
MAY_GROW = {"rss_mb": (1.1, 4.0), "descriptors": (1.0, 8.0), "threads": (1.0, 2.0), "connections": (1.0, 20.0)}
"""Factor and summand by which a figure may be larger at the end; others must be equal.

The daemon keeps the connections to etcd open that it has needed lately.
"""


@dataclass(frozen=True)
class Figures:
    """What a host has while no container is there. `lived_s`: age of the daemon's process."""

    lived_s: int
    rss_mb: float
    descriptors: int
    threads: int
    connections: int
    records: int
    leases: int
    links: int
    rules: int

    def grown(self, since: "Figures") -> list[str]:
        """Return the figures that are larger than they may be, in words."""
        now, before = asdict(self), asdict(since)
        found = []
        for name in before:
            factor, more = MAY_GROW.get(name, (1.0, 0.0))
            fits = now[name] <= before[name] * factor + more
            if name != "lived_s" and not (fits if name in MAY_GROW else now[name] == before[name]):
                found.append(f"{name}: {before[name]} -> {now[name]}")
        return found


@dataclass
class Result:
    """Of a run. `pings`: sent and lost."""

    seed: int
    minutes: float
    done: dict[str, int]
    refused: dict[str, int]
    killed: dict[str, int]
    pings: tuple[int, int]
    before: dict[str, Figures]
    after: dict[str, Figures]
    left: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what is not flat, and what is left."""
        grown = [f"{name}: {it}" for name, now in self.after.items() for it in now.grown(self.before[name])]
        return [*grown, *self.left, *([f"{self.pings[1]} pings were lost"] if self.pings[1] else [])]


def soak(
    seconds: float, seed: int, warm_up_s: float = WARM_UP_S, kill_every_s: float = KILL_EVERY_S, *, quiet: bool = False
) -> Result:
    """Run it, and return what was found.

    Raises:
        AssertionError: a host has differences, or leases without an owner, when no container is there.
    """

    def say(words: str) -> None:
        if not quiet:
            print(f"[{time.strftime('%H:%M:%S')}] {words}", flush=True)

    with ExitStack() as stack:
        it = Churn(stack, stack.enter_context(cluster(0)), seed)
        say(f"seed {seed}; three hosts are up, warm-up")
        it.run(warm_up_s, 0)
        before = _settled(it)
        it.ping()
        it.done.clear()
        started = time.monotonic()

        def progress() -> None:
            done = ", ".join(f"{count} {name}" for name, count in sorted(it.done.items()))
            memory = " ".join(f"{_memory(pid):.0f}" for pid in _pids(it))
            killed = sum(it.killed.values())
            say(f"{time.monotonic() - started:5.0f} s: {done}; {killed} kills; {memory} MB")

        it.run(seconds, kill_every_s, progress)
        after = _settled(it)
        pings = it.lost()
        done, refused, killed = dict(it.done), dict(it.refused), dict(it.killed)
        it.close()
        for words in it.words[-5:]:
            say(f"refused while something was down: {words}")
        return Result(seed, seconds / 60, done, refused, killed, pings, before, after)


def _settled(it: Churn) -> dict[str, Figures]:
    """Wait until nothing is left of the containers, no lease either, and return what the hosts have."""
    residents = {(place.name, member.host.name) for member, place in it.residents}
    for member in it.cluster.members:
        wait_until(lambda member=member: _clean(member, residents), SETTLE_S, f"nothing is left on {member.host.name}")  # type: ignore[misc]
    found: dict[str, Figures] = {}

    def steady() -> bool:
        last = {name: (now.records, now.leases, now.links, now.rules) for name, now in found.items()}
        found.update((names[member.host.name], _figures(member)) for member in it.cluster.members)
        return last == {name: (now.records, now.leases, now.links, now.rules) for name, now in found.items()}

    names = dict(
        zip((member.host.name for member in it.cluster.members), ("docker", "podman, CNI", "attach"), strict=True)
    )
    wait_until(steady, SETTLE_S, "figures stay")
    return dict(found)


def _clean(member: Member, residents: set[tuple[str, str]]) -> bool:
    here = {name for name, host in residents if host == member.host.name}
    ends = [one for one in member.netplug.client.get("endpoints")["endpoints"] if one.get("sandbox")]
    others = [one for one in ends if one["sandbox"].rpartition("/")[2] not in here]
    return not others and not member.differences() and not member.leaks()


def _pids(it: Churn) -> list[int]:
    return [member.netplug.process.pid for member in it.cluster.members if member.netplug.process]


def _figures(member: Member) -> Figures:
    assert member.netplug.process
    pid, host = member.netplug.process.pid, member.host
    folder = Path(f"/proc/{pid}")
    with closing(sqlite3.connect(f"file:{next(member.netplug.state_dir.glob('*.db'))}?mode=ro", uri=True)) as store:
        (records,) = store.execute("SELECT count(*) FROM record").fetchone()
    pools = member.netplug.client.get("ipam")["pools"]
    return Figures(
        lived_s=int(time.time() - folder.stat().st_ctime),
        rss_mb=round(_memory(pid), 1),
        descriptors=len([*(folder / "fd").iterdir()]),
        threads=len([*(folder / "task").iterdir()]),
        connections=int(host.output("cat", "/proc/sys/net/netfilter/nf_conntrack_count")),
        records=records,
        leases=sum(len(pool["leases"]) for pool in pools),
        links=len(host.output("ls", "/sys/class/net").split()),
        rules=len(host.output("nft", "list", "ruleset").splitlines()),
    )


def _memory(pid: int) -> float:
    """Return the resident megabytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def _table(result: Result) -> Table:
    table = Table("host", *asdict(next(iter(result.before.values()))), title=f"{result.minutes:.0f} minutes")
    for name, before in result.before.items():
        for when, figures in ((f"{name}, before", before), (f"{name}, after", result.after[name])):
            table.add_row(when, *map(str, asdict(figures).values()))
    return table


def main() -> int:
    """Run it from the command line; 1: something was left, lost or has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="between warm-up and end (20)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of what is killed and when")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    result = soak(args.minutes * 60, args.seed)
    problems = result.problems()
    Console(width=160).print(_table(result))
    for name, counts in (("done", result.done), ("refused", result.refused), ("killed", result.killed)):
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items())) or 'nothing'}")
    print(f"pings: {result.pings[0]} sent, {result.pings[1]} lost")
    print("\n".join(problems) or "nothing was lost, left or has grown")
    if args.json:
        told: dict[str, Any] = asdict(result) | {"problems": problems}
        args.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
