"""Tables of ours while they are changed: what packets meet, and what is kept."""

import asyncio
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "tables_suite", "tunnel_suite")

from kernel_suite import NETWORKS_TABLE, VETH, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, run  # noqa: E402
from owned import ENTRIES  # noqa: E402
from tables_suite import OTHER_TEXT  # noqa: E402
from tunnel_suite import PORTS, REMOTE, VXLAN, WAY, WAYS  # noqa: E402

from netplug.drivers.steps import Element, Hook, Table  # noqa: E402
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.kernel.api import Outcome  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.sandbox.netns import open_netns, run_in  # noqa: E402

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
