"""Tables of ours while they are changed: what packets meet, what is kept, and what is known after others had a hand."""

import asyncio
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "tunnel_suite")

from kernel_suite import NETWORKS_TABLE, VETH, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from owned import ENTRIES  # noqa: E402
from tables_suite import FROM, LED, OTHER_TEXT  # noqa: E402
from tunnel_suite import PORTS, REMOTE, VXLAN, WAY, WAYS  # noqa: E402

from netplug.drivers.port_ranges import each  # noqa: E402
from netplug.drivers.steps import Element, Hook, Table  # noqa: E402
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.firewall.libnftables import Nft  # noqa: E402
from netplug.kernel.firewall.table_marks import is_right  # noqa: E402
from netplug.kernel.firewall.table_reader import TableReader  # noqa: E402
from netplug.kernel.firewall.tables import FirewallStep, Tables  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.sandbox.netns import open_netns, run_in, temporary_netns  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

CREATED, ADJUSTED, EQUAL = Outcome.CREATED, Outcome.ADJUSTED, Outcome.EQUAL
SERVER = "192.0.2.2"
LOST_S = 2.0
CHANGES = 40


def datagrams(netns: str) -> socket.socket:
    fd = open_netns(netns)
    try:
        return run_in(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    finally:
        os.close(fd)


class Flood:
    """Packets from containers to the outside. `let` counts answered ones, `lost` others; none may be `leaked`."""

    def __init__(self, around: LinuxSurroundings) -> None:
        self.let = self.lost = self.sent = self.leaked = 0
        self._over = threading.Event()
        outside = self._attach(around, "out0", "192.0.2.1/24", f"{SERVER}/24", "192.0.2.1")
        free = self._attach(around, "np-open", "10.2.0.1/24", "10.2.0.2/24", "10.2.0.1")
        shut = self._attach(around, "np-shut", "10.1.0.1/24", "10.1.0.2/24", "10.1.0.1")
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self._server, self._free, self._shut = (datagrams(it) for it in (outside, free, shut))
        self._server.bind((SERVER, 7000))
        self._answered = threading.Event()
        self._server_thread = threading.Thread(target=self._answer, daemon=True)
        self._clients = [threading.Thread(target=it, daemon=True) for it in (self._ask, self._push)]

    @staticmethod
    def _attach(around: LinuxSurroundings, link: str, host: str, own: str, gateway: str) -> str:
        netns = around.sandbox()
        name = Path(netns).name
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", host, "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", name, "address", "add", own, "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "route", "add", "default", "via", gateway)
        return netns

    def __enter__(self) -> Self:
        for thread in (self._server_thread, *self._clients):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._clients:
            thread.join()
        self._answered.set()
        self._server_thread.join()
        for sock in (self._server, self._free, self._shut):
            sock.close()

    def _answer(self) -> None:
        self._server.settimeout(LOST_S / 4)
        while not self._answered.is_set():
            try:
                data, peer = self._server.recvfrom(100)
            except TimeoutError:
                continue
            if peer[0].startswith("10.1."):
                self.leaked += 1
            else:
                self._server.sendto(data, peer)

    def _ask(self) -> None:
        self._free.settimeout(LOST_S)
        self._free.connect((SERVER, 7000))
        while not self._over.is_set():
            number = str(self.let + self.lost).encode()
            self._free.send(number)
            try:
                while self._free.recv(100) != number:
                    pass
                self.let += 1
            except TimeoutError:
                self.lost += 1

    def _push(self) -> None:
        while not self._over.is_set():
            self._shut.sendto(b"out", (SERVER, 7000))
            self.sent += 1


class TestPackets(LinuxHost):
    async def test_no_packet_meets_a_gap_while_a_table_is_replaced(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        links = [
            *(Element(NETWORKS, name, "np-open", f"goto {name}_open") for name in ("from", "to")),
            *(Element(NETWORKS, name, "np-shut", f"goto {name}_internal") for name in ("from", "to")),
        ]
        many = [Element(NETWORKS, "home4", f"10.{n >> 8}.{n & 255}.0/24 . np-{n}") for n in range(2000)]
        texts = [NETWORKS_TABLE, replace(NETWORKS_TABLE, text=OTHER_TEXT)]
        await kernel.ensure((NETWORKS_TABLE, *links, *many))
        with Flood(around) as flood:
            changes = 0
            while changes < CHANGES or flood.let < CHANGES * 10 or flood.sent < CHANGES * 100:
                changes += 1
                if changes % 5 == 0:
                    run("nft", f"insert rule {NETWORKS} forward counter")
                assert await kernel.ensure((texts[changes % 2],)) == [ADJUSTED]
                await asyncio.sleep(0.005)  # the clients are threads of this process
        assert (flood.leaked, flood.lost) == (0, 0)

    async def test_the_flood_would_show_a_gap(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        links = [Element(NETWORKS, name, "np-open", f"goto {name}_open") for name in ("from", "to")]
        await kernel.ensure((NETWORKS_TABLE, *links))
        with Flood(around) as flood:
            while not flood.leaked:
                await kernel.remove((NETWORKS_TABLE,))
                await kernel.ensure((NETWORKS_TABLE,))
            while not flood.lost:
                await kernel.ensure((NETWORKS_TABLE,))
        assert flood.lost


class TestHooks(LinuxHost):
    async def test_base_chains_stay_with_their_table(self, kernel: LinuxKernel) -> None:
        table = WAYS[0]
        assert isinstance(table, Table)
        other = replace(table, text=table.text + "\nset more { type ifname; }")
        await kernel.ensure((*PORTS, *WAY, REMOTE))
        hooks = {step for step in (*WAYS, *WAY) if isinstance(step, Hook)}
        for text in (other, table):
            assert await kernel.ensure((text,)) == [ADJUSTED]
            assert (await kernel.owned()).of(Hook) == hooks
            assert await whats(kernel, text, *WAYS[1:], *WAY, REMOTE) == []
        assert await kernel.ensure((*PORTS, *WAY, REMOTE)) == [EQUAL] * len((*PORTS, *WAY, REMOTE))

    async def test_base_chain_that_others_changed_is_mended(self, kernel: LinuxKernel) -> None:
        hook = next(step for step in WAY if isinstance(step, Hook))
        await kernel.ensure((*PORTS, *WAY, REMOTE))
        for change, told in (
            (f"flush chain {hook.table} {hook.link}", "leads to other rules, not from_port"),
            (f"insert rule {hook.table} {hook.link} drop", "leads to other rules, not from_port"),
            (f"chain {hook.table} {hook.link} {{ policy drop; }}", "leads to other rules, not from_port"),
            (f"delete chain {hook.table} {hook.link}", "missing"),
        ):
            run("nft", change)
            assert await whats(kernel, *PORTS, *WAY, REMOTE) == [told]
            assert await kernel.ensure((hook,)) == [CREATED if told == "missing" else ADJUSTED]
            assert await whats(kernel, *PORTS, *WAY, REMOTE) == []
        run("nft", f"flush chain {hook.table} {hook.link}")
        run("nft", f"add chain {hook.table} mine")
        assert await kernel.ensure((*WAYS, *WAY)) == [ADJUSTED, EQUAL, EQUAL, EQUAL, EQUAL, CREATED]
        assert await whats(kernel, *PORTS, *WAY, REMOTE) == []

    async def test_base_chain_of_a_link_that_was_made_anew_is_there_once(self, kernel: LinuxKernel) -> None:
        hook = next(step for step in WAY if isinstance(step, Hook))
        await kernel.ensure((*PORTS, *WAY))
        run("ip", "link", "del", VETH.name)
        await kernel.ensure((*PORTS, *WAY))
        assert run("nft", "list", "chain", *hook.table.split(), hook.link).count("jump") == 1
        assert await whats(kernel, *PORTS, *WAY) == []
        run("ip", "link", "del", VXLAN.name)
        await kernel.remove((*WAY[::-1], *WAYS[::-1]))
        assert (await kernel.owned()).of(Table, *ENTRIES) == frozenset()


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
            except Exception:  # noqa: BLE001, S110 - there is no such thing now
                pass


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
