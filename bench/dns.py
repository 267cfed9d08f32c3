"""Query rate of the name server and cost per query, compared with dnsmasq, knot and Docker's own resolver.

The real daemon serves a network with 1 000 or 10 000 names. The client queries it through a veth on its bridge, as a
container does, at port 53 of the gateway. So the figures include the redirection to netplug's own port, except where
the client queries that port directly. The peers serve the same names. The same client queries them at other ports of
the same address, so that all use the same path and the same firewall; it queries Docker's resolver in a container. The
servers are pinned to one processor and the client to another. There are two clients: `blast`, which sends many queries
per call, and dnsperf, which reaches its own limit at about 100 000 queries per second here. Processor time per query is
the steadier figure.

Run it as root: ``.venv/bin/python bench/dns.py [--rounds N] [--seconds N] [--work TEXT] [--server NAME] [--load NAME]
[--json]``. If a line has a goal, it says whether the median of the rounds' own ratios meets it. Peers that are not
installed (dnsmasq-base, knot, aardvark-dns) are skipped; dnsperf is required. Everything happens in namespaces that it
creates and removes.
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from shutil import which

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "integration"))

from dns_changes import CALLS_A_S, Changer
from harness import Dockerd, Host, Namespace, Netplug, Wire, attached, connect, resolve, wait_until

from netplug.drivers.firewall import RESOLVER_PORT

DOMAIN = "blue.netplug.internal"
SERVER_CPU, CLIENT_CPU = "0", "1"
TICKS = os.sysconf("SC_CLK_TCK")
GATEWAY, OTHER = "10.77.0.1", "10.76.0.9"
"""Where all are asked, and what the peers answer."""
DNSMASQ_PORT, CACHELESS_PORT, KNOT_PORT, AARDVARK_PORT = 5300, 5301, 5302, 5303
AARDVARK = Path("/usr/lib/podman/aardvark-dns")
PLAIN = "1 000 names"
SEARCHED = "1 000 names with podman's search domain"
"""podman's containers query these first; netplug's comparable row is that of full names."""
CHANGES_A_S = 100
IN_DOCKER, AT_ITS_PORT = "netplug in Docker", "netplug at port 25353"
COOKIE = "10:0123456789abcdef"
BARE = "bare"
"""EDNS without options, which is what most resolvers send."""
ASIDE = 0.85
"""Fraction of the rate of plain queries that other queries for netplug's names should reach."""
BLAST = Path(__file__).with_name("blast.py")
CODES = {"NOERROR": 0, "NXDOMAIN": 3}
PLENTY = 600_000
"""Names that are queried once each: more than any server answers in the time."""


@dataclass(slots=True)
class Server:
    """A server to query: its address, the client's namespace, and the process whose time counts."""

    name: str
    pid: int
    address: str
    netns: str
    port: int = 53
    figures: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)

    def median(self, work: str, load: str) -> tuple[float, float] | None:
        """Return queries per second and processor time of each, None where nothing was measured."""
        found = self.figures.get((work, load))
        return (statistics.median(it[0] for it in found), statistics.median(it[1] for it in found)) if found else None


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace, as a path that leads there from outside."""

    netns: Path


@dataclass(frozen=True, slots=True)
class Work:
    """A set of queries. `code`: of the answers; `option`: of EDNS; `only`: the servers, by default all.

    `like`: another work to compare the cost with. `changing`: while names come and go. `goal`: least ratio of netplug's
    rate to that of `like`, or to that of the server `than`.
    """

    name: str
    file: Path
    code: str = "NOERROR"
    option: str = ""
    only: tuple[str, ...] = ()
    like: str = ""
    changing: bool = False
    goal: float = 0.0
    than: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; the median counts (3)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a measurement (3)")
    parser.add_argument("--work", default="", help="only work with this text in its name")
    parser.add_argument("--server", default="", help="only this server")
    parser.add_argument("--load", choices=LOADS, help="only this one of the two clients")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if not which("dnsperf"):
        print("dnsperf is missing: apt-get install --no-install-recommends dnsperf dnsmasq-base", file=sys.stderr)
        return
    with ExitStack() as stack:
        host = stack.enter_context(Host())
        servers, works, changer = set_up(stack, host)
        chosen = [work for work in works if options.work in work.name]
        works = [work for work in works if work in chosen or work.name in {it.like for it in chosen}]
        servers = [server for server in servers if options.server in {"", server.name}]
        loads = [load for load in LOADS if options.load in {None, load}]
        for number in range(options.rounds):
            for work in works:
                for load, server in product(loads, servers):
                    if not work.only or server.name in work.only:
                        print(f"round {number + 1}: {work.name}, {server.name}, {load}", file=sys.stderr)
                        with changer.working() if work.changing else nullcontext():
                            figures = measure(host, server, work, load, options.seconds)
                        server.figures.setdefault((work.name, load), []).append(figures)
    show(servers, works, as_json=options.json)


# Work and servers


def set_up(stack: ExitStack, host: Host) -> tuple[list[Server], list[Work], Changer]:
    outside = stack.enter_context(Host("outside"))
    wire = connect(host, outside)
    names = [f"c{number:05}" for number in range(10_000)]
    dockerd = Dockerd(host)
    daemon = Netplug(host, "--dns-upstream", wire.right, "--log-level", "warning")
    asker, *ours = netplug(stack, daemon, names)
    servers = [*ours, *dnsmasqs(host, asker, wire, names), *aardvark(host, asker, names[:1000])]
    if which("knotd"):
        servers.append(knot(host, asker, names[:1000]))
        upstream(outside, wire)
    servers += dockers(stack, dockerd, daemon, names[:1000])
    for server in servers:
        wait_until(lambda server=server: answers(host, server), 30, server.name, ignoring=(OSError,))  # type: ignore[misc]
        for task in Path(f"/proc/{server.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {int(SERVER_CPU)})
    changing = names[: CHANGES_A_S // CALLS_A_S]
    changer = Changer(host, "blue", changing, (GATEWAY, asker), int(CLIENT_CPU))
    return servers, works(host.dir, names, forwards=bool(which("knotd"))), changer


def answers(host: Host, server: Server) -> bool:
    place = Place(host.path(server.netns))
    return resolve(place, server.address, "c00999", port=server.port).code in {"NOERROR", "REFUSED"}


def works(folder: Path, names: list[str], *, forwards: bool) -> list[Work]:
    seed = random.Random(1)  # noqa: S311 - the same questions each time
    few = names[:1000]
    full = [f"{seed.choice(few)}.{DOMAIN}" for _ in range(50_000)]

    def file(name: str, lines: list[str], kind: str = "A") -> Path:
        path = folder / name
        path.write_text("".join(f"{line} {kind}\n" for line in lines))
        return path

    plain = file("plain", full)
    mixed = ["".join(seed.choice((sign.upper(), sign)) for sign in name) for name in full]
    short = file("short", [seed.choice(few) for _ in range(50_000)])
    nothing = file("nothing", [f"n{number}.{DOMAIN}" for number in range(PLENTY)])
    zones = ("netplug", "dnsmasq", "knot")
    many = [f"{seed.choice(names)}.{DOMAIN}" for _ in full]
    found = [
        Work(PLAIN, plain, only=(*zones, AT_ITS_PORT)),
        Work("1 000 short names", short, only=("netplug", "dnsmasq", "aardvark-dns", "docker", IN_DOCKER)),
        Work(
            SEARCHED,
            file("searched", [f"{seed.choice(few)}.dns.podman" for _ in range(20_000)]),
            only=("aardvark-dns",),
        ),
        Work("10 000 names", file("many", many), only=("netplug", "dnsmasq"), like=PLAIN),
        Work("mixed case", file("mixed", mixed), only=zones, like=PLAIN, goal=ASIDE),
        Work("EDNS with a cookie", plain, option=COOKIE, only=zones, like=PLAIN, goal=ASIDE),
        Work("EDNS without options", plain, option=BARE, only=zones, like=PLAIN, goal=ASIDE),
        Work("AAAA of names with A only", file("aaaa", full, "AAAA"), only=zones, like=PLAIN, goal=ASIDE),
        Work("a name that does not exist", nothing, "NXDOMAIN", only=zones, like=PLAIN, goal=ASIDE),
        Work(f"{CHANGES_A_S} records per second change", plain, only=("netplug",), like=PLAIN, changing=True),
    ]
    if forwards:
        once = [f"u{number}.example" for number in range(PLENTY)]
        again = [f"k{seed.randrange(1000)}.example" for _ in range(50_000)]
        found += [
            Work(
                "external names, each once",
                file("once", once),
                only=("netplug", "dnsmasq", "dnsmasq, no cache"),
                goal=1.0,
                than="dnsmasq, no cache",
            ),
            Work("external names, cached", file("again", again), only=("netplug", "dnsmasq")),
        ]
    return found


def netplug(stack: ExitStack, daemon: Netplug, names: list[str]) -> tuple[Namespace, Server, Server]:
    daemon.cli("network", "create", "blue", "--subnet", "10.77.0.0/16")
    asker, _ = stack.enter_context(attached(daemon, "blue", "--name", "asker"))
    for first in range(0, len(names), 1000):
        aliases = (option for name in names[first : first + 1000] for option in ("--alias", name))
        stack.enter_context(attached(daemon, "blue", *aliases))
    assert daemon.process
    pid = daemon.process.pid
    return (
        asker,
        Server("netplug", pid, GATEWAY, at(asker)),
        Server(AT_ITS_PORT, pid, GATEWAY, at(asker), RESOLVER_PORT),
    )


def at(asker: Namespace) -> str:
    return f"/run/netns/{asker.name}"


def dnsmasqs(host: Host, asker: Namespace, wire: Wire, names: list[str]) -> Iterator[Server]:
    """The same program twice, since a cache is for its whole life."""
    if not which("dnsmasq"):
        return
    hosts = host.dir / "hosts"
    hosts.write_text("".join(f"{OTHER} {name} {name}.{DOMAIN}\n" for name in names))
    common = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]
    common += [f"--listen-address={GATEWAY}", "--except-interface=lo", f"--local=/{DOMAIN}/", f"--addn-hosts={hosts}"]
    common += [f"--server={wire.right}", "--dns-forward-max=5000", "--pid-file=", "--user=root"]
    for name, port, cache in (("dnsmasq", DNSMASQ_PORT, 10_000), ("dnsmasq, no cache", CACHELESS_PORT, 0)):
        argv = ["dnsmasq", *common, f"--port={port}", f"--cache-size={cache}"]
        process = host.popen(argv, log=f"dnsmasq-{port}.log")
        yield Server(name, process.pid, GATEWAY, at(asker), port)


def aardvark(host: Host, asker: Namespace, names: list[str]) -> Iterator[Server]:
    """podman's name server. For a name with its search domain it searches all names."""
    if not AARDVARK.exists():
        return
    folder = host.dir / "aardvark"
    folder.mkdir()
    lines = (f"{number:064x} {OTHER}  {name}\n" for number, name in enumerate(names))
    (folder / "podman").write_text(f"{GATEWAY}\n{'f' * 64} {asker.addresses[0]}  asker\n{''.join(lines)}")
    argv = [str(AARDVARK), "--config", str(folder), "--port", str(AARDVARK_PORT)]
    host.popen([*argv, "run"], log="aardvark.log").wait(10)  # it serves in a child
    inside = Path(f"/proc/{host.pid}/ns/net").readlink()
    yield from (
        Server("aardvark-dns", int(comm.parent.name), GATEWAY, at(asker), AARDVARK_PORT)
        for comm in Path("/proc").glob("[0-9]*/comm")
        if comm.read_text() == "aardvark-dns\n" and (comm.parent / "ns" / "net").readlink() == inside
    )


def knot(host: Host, asker: Namespace, names: list[str]) -> Server:
    records = "".join(f"{name} A {OTHER}\n" for name in names)
    pid = knotd(host, f"{GATEWAY}@{KNOT_PORT}", DOMAIN, records)
    return Server("knot", pid, GATEWAY, at(asker), KNOT_PORT)


def upstream(outside: Host, wire: Wire) -> None:
    """A server that knows every name below ``example``, on the client's processor."""
    pid = knotd(outside, f"{wire.right}@53", "example", "* A 192.0.2.7\n")
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {int(CLIENT_CPU)})


def knotd(host: Host, listen: str, zone: str, records: str) -> int:
    """Start a knot with one zone and return its process; it has sockets for both processors, and one to run on."""
    folder = host.dir / "knot"
    folder.mkdir()
    (folder / "zone").write_text(f"$ORIGIN {zone}.\n$TTL 5\n@ SOA ns x 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n{records}")
    (folder / "knot.conf").write_text(
        f"server:\n  listen: {listen}\n  udp-workers: 2\n  tcp-workers: 1\n  background-workers: 1\n"
        f"  rundir: {folder}\n  user: root:root\ndatabase:\n  storage: {folder}\n"
        f"zone:\n- domain: {zone}\n  file: {folder}/zone\n"
    )
    return host.popen(["knotd", "-c", str(folder / "knot.conf")], log="knot.log").pid


def dockers(stack: ExitStack, dockerd: Dockerd, daemon: Netplug, names: list[str]) -> Iterator[Server]:
    """Docker's own resolver in a container of Docker's network, and netplug in front of it in a pynet network."""
    aliases = [option for name in names for option in ("--network-alias", name)]
    dockerd.docker("network", "create", "plain")
    dockerd.docker("network", "create", "-d", "pynet", "--subnet", "10.78.0.0/16", "ours")
    stack.callback(dockerd.remove_everything)
    assert dockerd.process
    assert daemon.process
    for name, network, process in (("docker", "plain", dockerd.process), (IN_DOCKER, "ours", daemon.process)):
        dockerd.run("--network", network, *aliases, command=("sleep", "3600"))
        asker = dockerd.run("--network", network, command=("sleep", "3600"))
        pid = asker.inspect()["State"]["Pid"]
        yield Server(name, process.pid, "127.0.0.11", f"/proc/{pid}/ns/net")


# Measuring


def measure(host: Host, server: Server, work: Work, load: str, seconds: int) -> tuple[float, float]:
    """Return queries per second, and microseconds of the server's processor time for each."""
    inside = ["nsenter", f"--net={server.netns}", "--", "taskset", "-c", CLIENT_CPU]
    before = cpu_s(server.pid)
    rate, answered, good, lost = LOADS[load](host, inside, server, work, seconds)
    spent = cpu_s(server.pid) - before
    if work.changing and lost:
        raise SystemExit(f"{server.name}, {work.name}: {lost} queries were lost")
    if good < 0.999 * answered:
        raise SystemExit(f"{server.name}, {work.name}: only {good} of {answered} answers were {work.code}")
    return rate, spent / answered * 1e6


Said = tuple[float, int, int, int]
"""Queries per second; numbers of answers, of answers with the expected code, and of lost queries."""


def by_blast(host: Host, inside: list[str], server: Server, work: Work, seconds: int) -> Said:
    argv = [*inside, sys.executable, str(BLAST), str(work.file), "--server", server.address]
    argv += ["--port", str(server.port), "--seconds", str(seconds), f"--option={work.option}"]
    said = json.loads(host.run(argv).stdout)
    codes = {int(code): count for code, count in said["answered"].items()}
    answered = sum(codes.values())
    return answered / said["seconds"], answered, codes.get(CODES[work.code], 0), said["lost"]


def by_dnsperf(host: Host, inside: list[str], server: Server, work: Work, seconds: int) -> Said:
    argv = [*inside, "dnsperf", "-f", "inet", "-s", server.address, "-p", str(server.port), "-d", str(work.file)]
    argv += ["-l", str(seconds), "-c", "20", "-q", "100"]
    argv += ["-e"] if work.option == BARE else ["-E", work.option] if work.option else []
    said = host.run(argv).stdout
    rate, answered, lost = (
        _find(pattern, said)
        for pattern in (r"Queries per second:\s+([\d.]+)", r"Queries completed:\s+(\d+)", r"Queries lost:\s+(\d+)")
    )
    return float(rate), int(answered), int(_find(rf"{work.code} (\d+) \(", said)), int(lost)


LOADS: dict[str, Callable[[Host, list[str], Server, Work, int], Said]] = {"blast": by_blast, "dnsperf": by_dnsperf}


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise SystemExit(f"dnsperf said nothing of {pattern!r}:\n{text}")
    return found[1]


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def show(servers: list[Server], works: list[Work], *, as_json: bool) -> None:
    rows = []
    for work, load in product(works, LOADS):
        found = {server.name: median for server in servers if (median := server.median(work.name, load))}
        base = next((found[name] for name in found if name.startswith("dnsmasq")), None)
        for server in servers:
            if server.name in found:
                rate, cost = found[server.name]
                like = server.median(work.like, load)
                row = {"work": work.name, "load": load, "server": server.name, "qps": rate, "us": cost}
                own = (rate / like[0], like[1] / cost) if like else (None, None)
                reached = round_by_round(servers, work, load) if server.name == "netplug" and work.goal else None
                row |= {"ratio": rate / base[0] if base else None, "of_plain_qps": own[0], "of_plain_us": own[1]}
                rows.append(row | {"goal": work.goal or None, "reached": reached})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("work", "load", "server", "queries/s", "CPU µs", "ratio to dnsmasq", "to plain: rate", "cost", "goal")
    for row in rows:
        ratios = (f"{row[key]:.2f}" if row[key] else "" for key in ("ratio", "of_plain_qps", "of_plain_us"))
        cells = (row["work"], row["load"], row["server"], f"{row['qps']:,.0f}", f"{row['us']:.1f}", *ratios)
        table.add_row(*cells, verdict(row["goal"], row["reached"]))
    Console(width=140).print(table)


def round_by_round(servers: list[Server], work: Work, load: str) -> float | None:
    """Return the median of the ratios that a goal is about, each of one round: what slows a round down slows both."""
    by_name = {server.name: server for server in servers}
    ours = by_name["netplug"].figures.get((work.name, load))
    other = (
        by_name[work.than].figures.get((work.name, load))
        if work.than in by_name
        else by_name["netplug"].figures.get((work.like, load))
    )
    if not ours or not other:
        return None
    return statistics.median(own[0] / their[0] for own, their in zip(ours, other, strict=False))


def verdict(goal: float | None, reached: float | None) -> str:
    """Say whether a goal holds."""
    if goal is None or reached is None:
        return ""
    return f"{reached:.2f} of {goal:.2f}: {'holds' if reached >= goal else 'missed'}"


if __name__ == "__main__":
    main()
