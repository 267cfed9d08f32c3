"""What is known of tables after others had a hand in them, and several processes of ours at the same time."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "tables_suite")

from kernel_suite import NETWORKS_TABLE, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings  # noqa: E402
from owned import ENTRIES  # noqa: E402
from tables_suite import FROM, LED  # noqa: E402

from netplug.drivers.port_ranges import each  # noqa: E402
from netplug.drivers.steps import Element, Table  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.firewall.libnftables import Nft  # noqa: E402
from netplug.kernel.firewall.table_marks import is_right  # noqa: E402
from netplug.kernel.firewall.table_reader import TableReader  # noqa: E402
from netplug.kernel.firewall.tables import FirewallStep, Tables  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.sandbox.netns import temporary_netns  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

CREATED, ADJUSTED, EQUAL = Outcome.CREATED, Outcome.ADJUSTED, Outcome.EQUAL
TEXT = """
set ports { type inet_service; }
map led { type inet_proto . inet_service : ipv4_addr . inet_service; }
map ways { type ifname : verdict; }
set homes { type ipv4_addr . ifname; flags interval; }
set nets { type ipv4_addr; flags interval; }
chain out {
drop
}
chain forward {
type filter hook forward priority 0; policy accept;
iifname vmap @ways
ip saddr @nets drop
tcp dport { 22, 80 } accept
}
"""
LONGER = TEXT + "set more { type ifname; }\n"
OTHER = TEXT.replace("set nets { ", 'set nets { comment "subnets"; ').replace(
    "priority 0; policy accept", "priority 1; policy drop"
)
T = "inet netplug-t"
POOL = [
    *(Element(T, "ports", str(port)) for port in (1, 2, 3)),
    *(Element(T, "led", f"tcp . {port}", f"10.0.0.{host} . {port}") for port in (1, 2, 3) for host in (1, 2)),
    Element(T, "led", "udp . 10", "10.0.0.1 . 10", 5),
    Element(T, "led", "udp . 12", "10.0.0.2 . 12"),
    *(Element(T, "ways", f"np-{name}", verdict) for name in "ab" for verdict in ("goto out", "drop")),
    *(Element(T, "homes", f"10.{number}.0.0/16 . np-a") for number in (1, 2, 3)),
    *(Element(T, "nets", f"10.{number}.0.0/16") for number in (1, 2, 3)),
]
THEIRS = (
    "flush ruleset",
    f"delete table {T}",
    f"delete table {T}\ntable {T} {{ }}",
    f"flush set {T} ports",
    f"flush map {T} led",
    f"delete element {T} led {{ tcp . 1 }}",
    f"add element {T} led {{ tcp . 1 : 10.0.0.9 . 9 }}",
    f"add element {T} led {{ udp . 13 : 10.0.0.9 . 9 }}",
    f"add element {T} ways {{ np-a : accept }}",
    f"delete element {T} homes {{ 10.2.0.0/16 . np-a }}",
    f"delete element {T} nets {{ 10.2.0.0/16 }}",
    f"add rule {T} forward counter",
    f"flush chain {T} out",
    f"add set {T} mine {{ type ifname; }}",
    "add table ip others",
    f"add table {T} {{ flags dormant; }}",
    "REPLAY",
)


class History:
    """Our changes and those of others in turn. Each of ours is compared with what another socket sees."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._ours = [Tables(), Tables()]
        self._reader = TableReader()
        self._listed = ""
        self._gone: set[Element] = set()

    def close(self) -> None:
        for it in (*self._ours, self._reader):
            it.close()

    def go_on(self) -> None:
        match self._random.choice(("ensure", "ensure", "ensure", "remove", "theirs", "theirs")):
            case "ensure":
                self._ensure()
            case "remove":
                self._remove()
            case _:
                self._change()

    def _steps(self) -> list[FirewallStep]:
        found: list[FirewallStep] = []
        if self._random.random() < 0.6:
            found.append(Table("inet", "netplug-t", self._random.choice((TEXT, TEXT, LONGER, OTHER))))
        picked: list[Element] = []
        for step in self._random.sample(POOL, self._random.randint(0, 6)):
            if not any(parts(step).keys() & parts(it).keys() for it in picked):
                picked.append(step)
        return [*found, *picked]

    def _there(self) -> dict[tuple[str, str], str] | None:
        """Return data by set and item; None, there is no table."""
        found = self._reader.look()
        if T not in found.types:
            return None
        types, content = found.types[T], found.content[T]
        decoded = ((name, types[name].decode(*it)) for name, elements in content.items() for it in elements.items())
        return {(name, item): data for name, (item, data) in decoded}

    def _ensure(self) -> None:
        steps, before = self._steps(), self._there()
        if not steps:
            return
        # Another process of ours has no idea of what this one has removed.
        ours = self._ours[self._random.random() < 0.2]
        try:
            found = [it.outcome for it in ours.ensure(steps)]
        except StepError as error:
            if error.kind != "not_found" or any(isinstance(step, Table) for step in steps):
                raise
            assert self._there() == before
            return
        after, look = self._there(), self._reader.look()
        assert after is not None
        remade = any(isinstance(it, Table) and what is not EQUAL for it, what in zip(steps, found, strict=True))
        for step, outcome in zip(steps, found, strict=True):
            if isinstance(step, Table):
                assert is_right(step, look.marks[T], look.images[T])
                assert (outcome is CREATED) == (before is None)
                continue
            assert isinstance(step, Element)
            wanted = parts(step)
            assert wanted.items() <= after.items(), step
            there = {it: data for it, data in (before or {}).items() if it in wanted}
            if before is not None and not remade:
                assert outcome is (EQUAL if there == wanted else ADJUSTED if there else CREATED), (step, there)
            self._gone -= {it for it in self._gone if parts(it).keys() & wanted.keys()}
        for step in self._gone:
            back = parts(step).keys() & after.keys()
            assert not (back - (before or {}).keys()), f"{step} came back"

    def _remove(self) -> None:
        steps = [it for it in self._steps() if isinstance(it, Element) or self._random.random() < 0.2]
        if steps:
            for ours in self._ours:
                ours.remove(steps)
            after = self._there()
            assert after is None or not any(isinstance(it, Table) for it in steps)
            removed = {it for it in steps if isinstance(it, Element)}
            assert not any(parts(it).keys() & (after or {}).keys() for it in removed)
            self._gone |= set(POOL) if any(isinstance(it, Table) for it in steps) else removed

    def _change(self) -> None:
        command = self._random.choice(THEIRS)
        with Nft() as nft:
            try:
                if command == "REPLAY":
                    nft.run(f"flush ruleset\n{self._listed}")
                else:
                    self._listed = nft.run("list ruleset\n")
                    nft.run(command + "\n")
            except Exception:  # noqa: BLE001 - there is no such thing now
                return
        # What others have put back is theirs, and comes back with a table that is deleted later.
        there = (self._there() or {}).keys()
        self._gone -= {it for it in self._gone if parts(it).keys() & there}


def parts(step: Element) -> dict[tuple[str, str], str]:
    return {(it.set, it.item): it.data for it in each(step) if isinstance(it, Element)}


@pytest.fixture
def _namespace() -> Iterator[None]:
    with temporary_netns():
        yield


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize("seed", [*range(8), None])
def test_after_whatever_others_did_our_steps_are_there(seed: int | None) -> None:
    chosen = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"seed {chosen}")  # noqa: T201 - shown when it fails
    history = History(chosen)
    try:
        for _ in range(120):
            history.go_on()
    finally:
        history.close()


class TestLaterProcess(LinuxHost):
    async def test_elements_of_a_former_process_come_back_with_a_table_that_others_deleted(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        gone, late = replace(LED, item="tcp . 8081"), replace(LED, item="tcp . 8082")
        await kernel.ensure((NETWORKS_TABLE, LED, gone, FROM))
        async with await LinuxKernel.open() as later:
            await later.ensure((NETWORKS_TABLE, late))
            assert await whats(later, NETWORKS_TABLE) == []
            await later.remove((gone,))
            around.lose(NETWORKS_TABLE)
            assert await later.ensure((NETWORKS_TABLE,)) == [CREATED]
            assert (await later.owned()).of(*ENTRIES) == {LED, late, FROM}

    async def test_what_was_removed_while_it_was_looked_at_is_not_remembered(self, kernel: LinuxKernel) -> None:
        tables, reader = Tables(), TableReader()
        try:
            await kernel.ensure((NETWORKS_TABLE, LED))
            generation, found = tables.generation(), reader.look()
            tables.remove([NETWORKS_TABLE])
            tables.adopt(found, generation)
            tables.ensure([NETWORKS_TABLE])
            assert (await kernel.owned()).of(*ENTRIES) == frozenset()
        finally:
            tables.close()
            reader.close()


class Process(threading.Thread):
    """One of several processes of ours; `there` is what it has put into the table, `failed` why it could not."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(daemon=True)
        self.there: set[Element] = set()
        self.failed: list[Exception] = []
        self._ours, self._random = Tables(), random.Random(number)  # noqa: S311 - no secret
        self._table = Table("inet", "netplug-t", text)
        self._pool = [Element(T, "led", f"tcp . {number}{n:03}", f"10.0.0.{number} . {n}") for n in range(100)]

    def run(self) -> None:
        try:
            for _ in range(60):
                self._go_on()
        except Exception as error:  # noqa: BLE001 - told by the test
            self.failed.append(error)
        finally:
            self._ours.close()

    def _go_on(self) -> None:
        picked = self._random.sample(self._pool, self._random.randint(1, 10))
        if self._random.random() < 0.5:
            self._ours.ensure((*([self._table] if self._random.random() < 0.3 else []), *picked))
            self.there.update(picked)
        else:
            self._ours.remove(picked)
            self.there.difference_update(picked)


@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize("texts", [(TEXT, TEXT, TEXT), (TEXT, LONGER, OTHER)], ids=["one version", "three versions"])
def test_processes_at_the_same_time_do_not_disturb_each_other(texts: tuple[str, ...]) -> None:
    """As commands of CNI do, on a host where others change their own tables all the time."""
    processes = [Process(number, text) for number, text in enumerate(texts, 1)]
    with closing(TableReader()) as reader, Nft() as nft:
        with closing(Tables()) as first:
            first.ensure((Table("inet", "netplug-t", TEXT),))
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            nft.run(
                "add table ip others\nadd chain ip others c\nflush chain ip others c\nadd rule ip others c accept\n"
            )
        found = reader.look()
    assert [process.failed for process in processes] == [[]] * len(texts)
    kind, content = found.types[T]["led"], found.content[T]["led"]
    assert {Element(T, "led", *kind.decode(*it)) for it in content.items()} == set.union(
        *(it.there for it in processes)
    )
    assert any(is_right(Table("inet", "netplug-t", it), found.marks[T], found.images[T]) for it in texts)
