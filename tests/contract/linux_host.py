"""The host around the real kernel: a network namespace of the test's own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest
from living import until

from netplug.drivers.port_ranges import each
from netplug.drivers.steps import (
    Address,
    Bridge,
    Element,
    Gate,
    Hook,
    IPAddress,
    IPInterface,
    Macvlan,
    Proto,
    Route,
    SourceRoute,
    Step,
    Table,
    Veth,
)
from netplug.drivers.tables import ANTISPOOF
from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.kernel.linux import LinuxKernel
from netplug.kernel.sandbox import netns

VANISH_DEADLINE_S = 20
LEGACY_TABLES = {4: Path("/proc/net/ip_tables_names"), 6: Path("/proc/net/ip6_tables_names")}
RUNTIME = """
import socket, subprocess, sys
family, kind, address, port = sys.argv[1:5]
sock = socket.socket(int(family), int(kind))
sock.bind((address, int(port)))
plugin = subprocess.Popen(["cat"])
print(plugin.pid, flush=True)
plugin.wait()
"""


def run(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def wait_until_passing(*links: str) -> None:
    """Wait until links pass frames: a work queue of the kernel sees to that (net/core/link_watch.c)."""
    for link in links:
        until(lambda link=link: " state UP " in run("ip", "link", "show", link), f"{link} passes frames")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


class LinuxSurroundings:
    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._sandboxes: list[str] = []
        self._runtimes: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        for runtime in self._runtimes:
            runtime.communicate()
        for sock in self._sockets:
            sock.close()
        for path in self._sandboxes:
            run("ip", "netns", "del", Path(path).name)

    def add_link(self, name: str, kind: str) -> None:
        run("ip", "link", "add", name, "up", "type", kind)

    def add_vxlan(self, name: str, vni: int, port: int) -> None:
        run("ip", "link", "add", name, "type", "vxlan", "id", str(vni), "dstport", str(port), "local", "10.5.0.9")

    def add_address(self, link: str, address: IPInterface) -> None:
        run("ip", "address", "add", str(address), "dev", link)

    def add_route(self, route: Route) -> None:
        run("ip", "route", "add", str(route.destination), "via", str(route.gateway), "dev", route.link)

    def take_port(self, proto: Proto, address: IPAddress, port: int) -> None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM if proto is Proto.TCP else socket.SOCK_DGRAM)
        self._sockets.append(sock)
        sock.bind((str(address), port))
        if proto is Proto.TCP:
            sock.listen()

    def keep_port(self, proto: Proto, address: IPAddress, port: int, container: str = "") -> int:
        """Have a process bind a port, without listening as podman does, and call another, whose id is returned."""
        kind, family = (proto is Proto.TCP) or 2, 2 if address.version == 4 else 10
        program = [sys.executable, "-c", RUNTIME, str(family), str(int(kind)), str(address), str(port), container]
        runtime = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._runtimes.append(runtime)
        assert runtime.stdout
        return int(runtime.stdout.readline())

    def have_rules(self, family: int, flavour: str) -> None:
        self.fill_chain(family, flavour, "FORWARD", ("-i docker0 -j ACCEPT",))

    def fill_chain(self, family: int, flavour: str, chain: str, rules: Sequence[str], policy: str = "ACCEPT") -> None:
        """Have these rules in a chain of table filter, and none besides."""
        head = policy if chain in {"FORWARD", "INPUT", "OUTPUT"} else "-"
        restore(family, flavour, "filter", f":{chain} {head} [0:0]", f"-F {chain}", *(f"-A {chain} {r}" for r in rules))

    def chain(self, family: int, flavour: str, chain: str) -> tuple[str, ...] | None:
        """Return the rules of a chain of table filter."""
        lines = run(f"{program(family, flavour)}-save", "-t", "filter").splitlines()
        if not any(line.startswith(f":{chain} ") for line in lines):
            return None
        return tuple(line.removeprefix(f"-A {chain} ") for line in lines if line.startswith(f"-A {chain} "))

    def leave_former_rules(self, family: int, flavour: str) -> None:
        match = f"-m set --match-set netplug-masq{family} src"
        run("ipset", "create", f"netplug-masq{family}", "hash:net", "family", "inet" if family == 4 else "inet6")
        run("ipset", "create", f"netplug-net{family}", "hash:net,iface", "family", "inet" if family == 4 else "inet6")
        snat = (f"-A NETPLUG-SNAT {match} -j MASQUERADE", "-A POSTROUTING -j NETPLUG-SNAT")
        restore(family, flavour, "nat", ":NETPLUG-SNAT - [0:0]", *snat)
        raw = ("-A NETPLUG-RAW -j RETURN", "-A PREROUTING -i np-+ -j NETPLUG-RAW")
        restore(family, flavour, "raw", ":NETPLUG-RAW - [0:0]", *raw)

    def leave_former_filter(self, family: int, flavour: str) -> None:
        """Leave chains in table filter too, which look into the sets of `leave_former_rules`."""
        match = f"-m set --match-set netplug-net{family} src,src"
        lines = ["-A NETPLUG-FROM -j DROP", f"-A NETPLUG-FORWARD {match} -j NETPLUG-FROM"]
        jumps = ["-I FORWARD -j NETPLUG-FORWARD", "-I INPUT -i np-+ -j NETPLUG-INPUT"]
        chains = [f":NETPLUG-{it} - [0:0]" for it in ("FORWARD", "FROM", "INPUT")]
        restore(family, flavour, "filter", *chains, *lines, *jumps)

    def answers_by(self, step: SourceRoute) -> str:
        stranger = "192.0.2.9" if step.source.version == 4 else "2001:db8:9::9"
        words = run("ip", "-n", Path(step.netns).name, "route", "get", stranger, "from", str(step.source)).split()
        return words[words.index("dev") + 1]

    def sandbox(self) -> str:
        name = f"np-test-{uuid4().hex[:8]}"
        run("ip", "netns", "add", name)
        self._sandboxes.append(f"/run/netns/{name}")
        return self._sandboxes[-1]

    def vanish(self, netns: str) -> None:
        if netns not in self._sandboxes:
            return
        self._sandboxes.remove(netns)
        links = len(run("ip", "-o", "link").splitlines())
        run("ip", "netns", "del", Path(netns).name)
        deadline = time.monotonic() + VANISH_DEADLINE_S
        while len(run("ip", "-o", "link").splitlines()) == links:
            assert time.monotonic() < deadline, "the host side outlives its sandbox"

    def appear(self, netns: str) -> None:
        run("ip", "netns", "add", Path(netns).name)
        self._sandboxes.append(netns)

    def lose(self, step: Step) -> None:
        match step:
            case Bridge() | Veth() | Vxlan():
                run("ip", "link", "del", step.name)
            case Fdb() | Neighbour():
                self._lose_station(step)
            case Address():
                run("ip", "address", "del", str(step.address), "dev", step.link)
            case Route():
                run("ip", "route", "del", str(step.destination), "dev", step.link)
            case Gate():
                self._lose_gate(step)
            case Table():
                run("nft", "delete", "table", step.family, step.name)
            case Element():
                items = ", ".join(_in_numbers(it) for it in each(step) if isinstance(it, Element))
                run("nft", f"delete element {step.table} {step.set} {{ {items} }}")
            case Hook():
                run("nft", f"delete chain {step.table} {step.link}")
            case _:
                raise NotImplementedError(step)

    @staticmethod
    def _lose_gate(step: Gate) -> None:
        chains = ("FORWARD", "INPUT")
        jumps = [f"-D {it} -j NETPLUG-{it}" for it in chains]
        restore(step.family, step.flavour, "filter", *jumps, *(f"-{c} NETPLUG-{it}" for c in "FX" for it in chains))

    @staticmethod
    def _lose_station(step: Fdb | Neighbour) -> None:
        if isinstance(step, Neighbour):
            run("ip", "neigh", "del", str(step.address), "dev", step.link)
            return
        run("bridge", "fdb", "del", step.mac, "dev", step.link, "dst", str(step.vtep), "self")
        run("bridge", "fdb", "del", step.mac, "dev", step.link, "master")

    def move(self, step: Veth | Macvlan, netns: str) -> None:
        """Do as dockerd does."""
        name = step.peer if isinstance(step, Veth) else step.name
        run("ip", "link", "set", name, "netns", Path(netns).name)
        run("ip", "-n", Path(netns).name, "link", "set", name, "name", "eth0", "up")

    def tune(self, step: Veth | Macvlan, netns: str, mtu: int) -> None:  # noqa: ARG002
        run("ip", "-n", Path(netns).name, "link", "set", "eth0", "mtu", str(mtu))

    def sandbox_mtu(self, step: Veth | Macvlan, netns: str) -> int:  # noqa: ARG002
        return int(run("ip", "netns", "exec", Path(netns).name, "cat", "/sys/class/net/eth0/mtu"))

    def indexes(self) -> dict[str, str]:
        """Return the index of each link of the host: a link that was made anew has another."""
        return {line.split()[1].split("@")[0]: line.split()[0] for line in run("ip", "-o", "link").splitlines()}

    def set_mtu(self, step: Bridge | Veth | Vxlan, mtu: int) -> None:
        run("ip", "link", "set", step.name, "mtu", str(mtu))

    def snapshot(self) -> str:
        tables = run("nft", "list", "tables").splitlines()
        used = [(family, "legacy") for family, names in LEGACY_TABLES.items() if names.exists() and names.read_text()]
        used += [(4, "nft")] * any(line.startswith("table ip ") for line in tables)
        used += [(6, "nft")] * any(line.startswith("table ip6 ") for line in tables)
        saved = [run(f"{program(*it)}-save") for it in sorted(used)]
        # Tables and built-in chains come into being by being looked at.
        rules = [line for text in saved for line in text.splitlines() if line.startswith("-A ") or " - [" in line]
        # Indices go up, and what the kernel does by itself (solicitations, ff02::, carriers) comes when it comes.
        links = [line.split()[1] for line in run("ip", "-o", "link").splitlines()]
        addresses = [line.split()[1:4] for line in run("ip", "-o", "address").splitlines() if "fe80" not in line]
        routes = run("ip", "route").replace(" linkdown", "")
        # iptables of the nft kind has tables there too.
        ours = [run("nft", "-s", "list", *table.split()) for table in tables if "netplug" in table]
        return repr((rules, links, addresses, routes, run("ipset", "list", "-name"), ours))


def _in_numbers(step: Element) -> str:
    """Return the key of an element as nft takes it. Of bytes at an offset it knows no type."""
    if step.table != ANTISPOOF or step.set == "own4":
        return step.item
    return " . ".join(
        it if ":" not in it else hex(int(it.replace(":", ""), 16) if it.count(":") == 5 else int(ip_address(it)))
        for it in step.item.split(" . ")
    )


def restore(family: int, flavour: str, table: str, *lines: str) -> None:
    """Change a table of iptables."""
    text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
    run(f"{program(family, flavour)}-restore", "--noflush", "-w", text=text)


def program(family: int, flavour: str) -> str:
    return f"{'iptables' if family == 4 else 'ip6tables'}-{flavour}"


class LinuxHost:
    """Fixtures."""

    @pytest.fixture
    def around(self) -> Iterator[LinuxSurroundings]:
        with netns.temporary_netns():
            run("ip", "link", "set", "lo", "up")
            surroundings = LinuxSurroundings()
            yield surroundings
            surroundings.close()

    @pytest.fixture
    async def kernel(self, around: LinuxSurroundings) -> AsyncIterator[LinuxKernel]:
        before = descriptors()
        async with await LinuxKernel.open() as linux:
            yield linux
        assert len(descriptors() - before) <= len(around._sockets) + 2 * len(around._runtimes)
