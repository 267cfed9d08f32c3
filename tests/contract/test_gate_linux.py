"""The gate in both flavours of iptables in the real kernel."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

pytest.register_assert_rewrite("gate_suite", "kernel_suite", "linux_host")

from gate_suite import GateSuite  # noqa: E402
from kernel_suite import NETWORKS_TABLE, gone, refusal, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, program, restore, run  # noqa: E402

from netplug.drivers import firewall  # noqa: E402
from netplug.drivers.steps import FormerRules, Gate, Passage  # noqa: E402
from netplug.kernel.api import Outcome  # noqa: E402
from netplug.kernel.executor import Executor  # noqa: E402
from netplug.kernel.firewall.api import BaseChain, FilterTable  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

CREATED, ADJUSTED, EQUAL = Outcome.CREATED, Outcome.ADJUSTED, Outcome.EQUAL
FORWARD, INPUT = "-j NETPLUG-FORWARD", "-j NETPLUG-INPUT"
DOCKER = ("-j DOCKER-USER", "-j DOCKER-ISOLATION-STAGE-1", "-o docker0 -j DOCKER", "-i docker0 ! -o docker0 -j ACCEPT")
DOCKERS_CHAINS = ("DOCKER-USER", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2", "DOCKER")
HOLD_LOCK = """
import fcntl, os, sys
with open(os.environ["XTABLES_LOCKFILE"], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


class LinuxGate(LinuxHost, GateSuite):
    """What is seen in the rules."""

    def docker(self, around: LinuxSurroundings, flavour: str) -> None:
        for chain in DOCKERS_CHAINS:
            around.fill_chain(4, flavour, chain, ("-j RETURN",))
        around.fill_chain(4, flavour, "FORWARD", DOCKER, "DROP")

    async def test_gate_is_right_behind_docker_user_and_keeps_dockers_isolation(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        self.docker(around, flavour)
        gate, passage = Gate(4, flavour), Passage(4, flavour, "br0", ip_network("10.9.0.0/24"))
        await kernel.ensure((gate, passage))
        assert around.chain(4, flavour, "FORWARD") == (DOCKER[0], FORWARD, *DOCKER[1:])
        assert around.chain(4, flavour, "INPUT") == (INPUT,)
        assert around.chain(4, flavour, "NETPLUG-FORWARD") == (
            "-o np-+ -j ACCEPT",
            "-d 10.9.0.0/24 -o br0 -j ACCEPT",
            "-i np-+ -m conntrack ! --ctstate DNAT -j DOCKER-ISOLATION-STAGE-2",
            "-s 10.9.0.0/24 -i br0 -m conntrack ! --ctstate DNAT -j DOCKER-ISOLATION-STAGE-2",
            "-i np-+ -j ACCEPT",
            "-s 10.9.0.0/24 -i br0 -j ACCEPT",
        )
        assert around.chain(4, flavour, "NETPLUG-INPUT") == tuple(
            f"{source} -p {proto} -m {proto} --dport 25353 -j ACCEPT"
            for source in ("-i np-+", "-s 10.9.0.0/24 -i br0")
            for proto in ("udp", "tcp")
        )
        assert await kernel.ensure((gate, passage)) == [EQUAL, EQUAL]
        assert await whats(kernel, gate, passage) == []
        await gone(kernel, passage, gate)
        assert around.chain(4, flavour, "FORWARD") == DOCKER

    async def test_gate_follows_docker_that_comes_and_goes(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        gate = Gate(4, flavour)
        around.have_rules(4, flavour)
        await kernel.ensure((gate,))
        assert around.chain(4, flavour, "FORWARD") == ("-i docker0 -j ACCEPT", FORWARD)
        around.fill_chain(4, flavour, "DOCKER-USER", ("-j RETURN",))
        around.fill_chain(4, flavour, "DOCKER-ISOLATION-STAGE-2", ("-j RETURN",))
        for rule in ("-j DOCKER-ISOLATION-STAGE-2", "-j DOCKER-USER"):
            restore(4, flavour, "filter", f"-I FORWARD {rule}")
        assert len(await whats(kernel, gate)) == 1
        assert await kernel.ensure((gate,)) == [ADJUSTED]
        ours = ("-j DOCKER-USER", FORWARD, "-j DOCKER-ISOLATION-STAGE-2", "-i docker0 -j ACCEPT")
        assert around.chain(4, flavour, "FORWARD") == ours
        assert any("DOCKER-ISOLATION" in rule for rule in around.chain(4, flavour, "NETPLUG-FORWARD") or ())
        assert await whats(kernel, gate) == []
        # Docker puts its chains to the front again, as it does when it starts.
        for rule in ("-j DOCKER-ISOLATION-STAGE-2", "-j DOCKER-USER"):
            restore(4, flavour, "filter", f"-D FORWARD {rule}", f"-I FORWARD {rule}")
        assert await whats(kernel, gate) == ["is not in its place"]
        assert await kernel.ensure((gate,)) == [ADJUSTED]
        assert around.chain(4, flavour, "FORWARD") == ours
        # Docker 29 has no chain of isolation here.
        restore(4, flavour, "filter", "-D FORWARD -j DOCKER-ISOLATION-STAGE-2")
        isolated = "-D NETPLUG-FORWARD -i np-+ -m conntrack ! --ctstate DNAT -j DOCKER-ISOLATION-STAGE-2"
        restore(4, flavour, "filter", isolated, "-F DOCKER-ISOLATION-STAGE-2", "-X DOCKER-ISOLATION-STAGE-2")
        assert await whats(kernel, gate) == []

    @pytest.mark.parametrize("family", [4, 6])
    async def test_gate_is_behind_the_rules_of_users_of_ufw(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str, family: int
    ) -> None:
        name, gate = "ufw" if family == 4 else "ufw6", Gate(family, flavour)
        ufw = {
            it: [f"{name}-{part}-{it.lower()}" for part in ("before", "after", "reject")] for it in ("FORWARD", "INPUT")
        }
        for parent, chains in ufw.items():
            for chain in chains:
                around.fill_chain(family, flavour, chain, ("-j RETURN",))
            around.fill_chain(family, flavour, parent, [f"-j {it}" for it in chains], "DROP")
        await kernel.ensure((gate,))
        for parent, (first, *others) in ufw.items():
            rules = (f"-j {first}", f"-j NETPLUG-{parent}", *(f"-j {it}" for it in others))
            assert around.chain(family, flavour, parent) == rules
        assert await whats(kernel, gate) == []
        await gone(kernel, gate)
        for parent, chains in ufw.items():
            assert around.chain(family, flavour, parent) == tuple(f"-j {it}" for it in chains)

    @pytest.mark.parametrize(
        "rest", ["-j REJECT --reject-with icmp-port-unreachable", '-m comment --comment "a b" -j LOG']
    )
    async def test_gate_is_behind_drops_of_the_administrator_and_before_what_refuses_the_rest(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str, rest: str
    ) -> None:
        gate, drop = Gate(4, flavour), "-s 10.9.0.7/32 -j DROP"
        around.fill_chain(4, flavour, "FORWARD", (drop, rest, drop), "DROP")
        around.fill_chain(4, flavour, "INPUT", (drop, rest))
        await kernel.ensure((gate,))
        assert around.chain(4, flavour, "FORWARD") == (drop, FORWARD, rest, drop)
        # It lets pass nothing but queries to our own name server.
        assert around.chain(4, flavour, "INPUT") == (INPUT, drop, rest)
        # What comes later is put where they want it.
        restore(4, flavour, "filter", "-I FORWARD -s 10.9.0.8/32 -j DROP")
        assert await whats(kernel, gate) == []

    async def test_report_tells_what_of_the_firewall_concerns_our_links(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        around.fill_chain(4, flavour, "FORWARD", ("-p tcp -j ACCEPT", "-p udp -j DROP"), "DROP")
        await kernel.ensure((NETWORKS_TABLE, Gate(4, flavour)))
        run(
            "nft",
            "add table inet theirs; add chain inet theirs f { type filter hook forward priority 7; policy drop; }",
        )
        report = await kernel.firewall.report()
        policies = {"INPUT": "ACCEPT", "FORWARD": "DROP", "OUTPUT": "ACCEPT"}
        assert report.filters == (FilterTable(4, flavour, policies, {"FORWARD": 2, "INPUT": 0}, gate=True),)
        assert BaseChain("inet", "theirs", "f", "forward", 7, "drop", 0, ours=False) in report.chains
        ours = [(it.table, it.hook, it.priority) for it in report.chains if it.ours]
        assert ("netplug", "forward", -10) in ours
        assert report.libnftables == ""

    async def test_gate_that_others_changed_is_mended(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        gate, passage = Gate(4, flavour), Passage(4, flavour, "br0", ip_network("10.9.0.0/24"))
        self.docker(around, flavour)
        await kernel.ensure((gate, passage))
        before = around.snapshot()
        for lines in (
            ("-F FORWARD", *(f"-A FORWARD {rule}" for rule in DOCKER)),
            ("-F INPUT",),
            ("-D FORWARD -j NETPLUG-FORWARD",),
            ("-A FORWARD -j NETPLUG-FORWARD",),
            ("-D FORWARD -j NETPLUG-FORWARD", "-A FORWARD -j NETPLUG-FORWARD"),
            ("-I FORWARD -i eth0 -j NETPLUG-FORWARD",),
            ("-I NETPLUG-FORWARD -j DROP",),
            ("-D NETPLUG-FORWARD -i np-+ -j ACCEPT",),
            ("-A NETPLUG-INPUT -j ACCEPT",),
            ("-F NETPLUG-INPUT",),
            (":NETPLUG-FROM - [0:0]", "-A NETPLUG-FROM -j DROP", "-I NETPLUG-FORWARD -j NETPLUG-FROM"),
            ("-N NETPLUG-LINK", "-I INPUT -j NETPLUG-LINK"),
        ):
            restore(4, flavour, "filter", *lines)
            assert len(await whats(kernel, gate)) == 1, lines
            assert await kernel.ensure((gate,)) == [ADJUSTED], lines
            assert await whats(kernel, gate, passage) == [], lines
            assert around.snapshot() == before, lines
        restore(4, flavour, "filter", "-F NETPLUG-FORWARD")
        assert await kernel.ensure((gate, passage)) == [ADJUSTED, CREATED]
        assert around.snapshot() == before

    async def test_rules_of_others_stay_as_they_are(self, kernel: LinuxKernel, flavour: str) -> None:
        """Byte by byte, also with what is no valid text, and with their counters."""
        odd = b'-A FORWARD -s 10.1.0.0/16 -m comment --comment "caf\xe9 -j NETPLUG? \\"x\\"\x85 \xc2\x85" -j ACCEPT'
        lines = [
            b"*filter", b":FORWARD DROP [7:77]", b":MINE - [0:0]", odd,
            b"[5:55] -A FORWARD -m limit --limit 5/sec -j MINE",
            b"-A MINE -p tcp -m multiport --dports 1,2,3 -j REJECT", b"COMMIT", b"",
        ]  # fmt: skip
        save = [f"{program(4, flavour)}-save", "-c", "-t", "filter"]
        command = [f"{program(4, flavour)}-restore", "-c", "--noflush"]
        subprocess.run(command, input=b"\n".join(lines), check=True, capture_output=True)  # noqa: ASYNC221

        def theirs() -> list[bytes]:
            listed = subprocess.run(save, capture_output=True, check=True).stdout.split(b"\n")
            kept = (line for line in listed if not line.startswith(b"#") and b"NETPLUG-" not in line)
            # iptables-legacy forgets how many packets met the policy of a chain with a new rule.
            return [line.partition(b" [")[0] if line.startswith(b":") else line for line in kept]

        before = theirs()
        assert any(b"caf\xe9" in line for line in before)
        gate, passage = Gate(4, flavour), Passage(4, flavour, "br0", ip_network("10.9.0.0/24"))
        await kernel.ensure((gate, passage))
        assert theirs() == before
        restore(4, flavour, "filter", "-F NETPLUG-FORWARD", "-D FORWARD -j NETPLUG-FORWARD")
        await kernel.ensure((gate, passage))
        assert theirs() == before
        await gone(kernel, gate)
        assert theirs() == before

    async def test_bad_gate_leaves_the_rest_of_the_plan_undone(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        around.have_rules(4, flavour)
        before = around.snapshot()
        bad = Passage(4, flavour, "a-name-of-a-link-that-is-too-long", ip_network("10.9.0.0/24"))
        error = await refusal(kernel, Gate(4, flavour), bad)
        assert (error.kind, program(4, flavour) in error.message) == ("unavailable", True)
        assert around.snapshot() == before

    @pytest.mark.parametrize("chain", ["FORWARD", "INPUT"])
    async def test_gate_is_needed_where_something_could_be_dropped(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str, chain: str
    ) -> None:
        around.fill_chain(6, flavour, "OUTPUT", ("-j DROP",))
        around.fill_chain(6, flavour, "MINE", ("-j DROP",))
        facts = await kernel.facts()
        assert (facts.gates, facts.chains) == ((), ((6, "FORWARD"), (6, "INPUT"), (6, "MINE"), (6, "OUTPUT")))
        around.fill_chain(6, flavour, chain, (), "DROP")
        assert (await kernel.facts()).gates == ((6, flavour),)
        around.fill_chain(6, flavour, chain, ())
        around.fill_chain(6, flavour, chain, ("-p tcp -j ACCEPT",))
        assert (await kernel.facts()).gates == ((6, flavour),)

    async def test_rules_of_a_former_release_go_with_their_sets(
        self, kernel: LinuxKernel, around: LinuxSurroundings, flavour: str
    ) -> None:
        """In all tables; a set can go only after the rules that look into it."""
        for family in (4, 6):
            around.have_rules(family, flavour)
        before = around.snapshot()
        for family in (4, 6):
            around.leave_former_rules(family, flavour)
            around.leave_former_filter(family, flavour)
        owned = await kernel.owned()
        assert len(owned.of(FormerRules)) == 1
        gates = {Gate(family, flavour) for family in (4, 6)}
        assert set(owned.of(Gate)) == gates
        # What no plan wants is removed in reverse, as the reconciler does.
        await kernel.remove(owned.steps()[::-1])
        assert (await kernel.owned()).steps() == []
        assert around.snapshot() == before


class TestLinuxGateNft(LinuxGate):
    @pytest.fixture
    def flavour(self) -> str:
        return "nft"

    async def test_table_that_iptables_cannot_read_needs_no_gate(self, kernel: LinuxKernel) -> None:
        """Made with nft, of the name that iptables uses."""
        run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 5; }")
        run("nft", "add set ip filter s { type ipv4_addr; }; add rule ip filter FORWARD ip saddr @s drop")
        facts = await kernel.facts()
        assert facts.gates == ()
        assert facts.tables == ((4, "filter"),)


class TestLinuxGateLegacy(LinuxGate):
    @pytest.fixture
    def flavour(self) -> str:
        return "legacy"


class TestPrograms(LinuxHost):
    """Which programs there are."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A directory that is the whole PATH of this process."""
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    @staticmethod
    def _put(path: Path, name: str, flavour: str) -> None:
        for verb in ("", "-save", "-restore"):
            (path / f"{name}{verb}").symlink_to(f"/usr/sbin/xtables-{flavour}-multi")

    @pytest.mark.parametrize("flavour", ["nft", "legacy"])
    async def test_only_program_of_a_host_is_used_for_its_flavour(
        self, around: LinuxSurroundings, kernel: LinuxKernel, flavour: str, request: pytest.FixtureRequest
    ) -> None:
        """As on distributions that have one, by the plain name."""
        for family in (4, 6):
            around.have_rules(family, flavour)
        path = request.getfixturevalue("path")
        for name in ("iptables", "ip6tables"):
            self._put(path, name, flavour)
        gates = tuple(Gate(family, flavour) for family in (4, 6))
        assert (await kernel.facts()).gates == tuple((it.family, it.flavour) for it in gates)
        assert await kernel.ensure(gates) == [CREATED, CREATED]
        assert await whats(kernel, *gates) == []
        await gone(kernel, *gates)

    @pytest.mark.parametrize("flavour", ["nft", "legacy"])
    async def test_rules_without_a_program_are_told_once_and_stop_nothing(
        self, around: LinuxSurroundings, kernel: LinuxKernel, flavour: str, request: pytest.FixtureRequest
    ) -> None:
        around.have_rules(4, flavour)
        gate = Gate(4, flavour)
        await kernel.ensure((gate,))
        path = request.getfixturevalue("path")
        async with await LinuxKernel.open() as later:
            with capture_logs() as told, started() as processes:
                assert (await later.facts()).gates == ()
                await later.facts()
                error = await refusal(later, gate)
                await gone(later, gate)
            assert processes == []
        assert [it["event"] for it in told] == ["firewall.unread"]
        assert (error.kind, f"iptables ({flavour})" in error.message) == ("unavailable", True)
        # The program of the other flavour is no help.
        self._put(path, "iptables", "legacy" if flavour == "nft" else "nft")
        async with await LinuxKernel.open() as later:
            assert (await refusal(later, gate)).kind == "unavailable"
            assert (await later.facts()).gates == ()

    async def test_host_without_iptables_starts_no_process(self, kernel: LinuxKernel, path: Path) -> None:
        assert os.environ["PATH"] == str(path)
        plan = firewall.base((4, 6), await kernel.facts())
        with started() as processes:
            assert Gate not in map(type, plan)
            await Executor(kernel).apply(plan)
            assert await Executor(kernel).drift(plan) == ()
            await kernel.owned()
            await Executor(kernel).revert(plan)
        assert processes == []

    async def test_other_users_of_the_lock_are_waited_for(self, kernel: LinuxKernel, around: LinuxSurroundings) -> None:
        around.have_rules(4, "legacy")
        command = [sys.executable, "-c", HOLD_LOCK]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
            assert holder.stdout
            holder.stdout.readline()
            task = asyncio.ensure_future(kernel.ensure((Gate(4, "legacy"),)))
            done, _ = await asyncio.wait((task,), timeout=0.3)
            assert not done
            assert holder.stdin
            holder.stdin.close()
            assert await task == [CREATED]


@contextmanager
def started() -> Iterator[list[str]]:
    """Record the programs that this process starts."""
    found: list[str] = []
    LISTENERS.append(found)
    try:
        yield found
    finally:
        LISTENERS.remove(found)


LISTENERS: list[list[str]] = []


def _hear(event: str, args: tuple[object, ...]) -> None:
    if event == "subprocess.Popen":
        for it in LISTENERS:
            it.append(str(args[1]))


sys.addaudithook(_hear)
