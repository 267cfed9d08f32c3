"""Tables of ours in the real kernel: what others do to them, and what packets meet meanwhile."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "tables_suite")

from kernel_suite import ANTISPOOF_TABLE, NETWORKS_TABLE, VETH, whats  # noqa: E402
from linux_host import VANISH_DEADLINE_S, LinuxHost, run  # noqa: E402
from owned import ENTRIES  # noqa: E402
from tables_suite import FROM, GUARD, HOST_TABLE, LED, OTHER_TEXT, TablesSuite  # noqa: E402

from netplug.drivers.steps import Element, Step, Table  # noqa: E402
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.kernel.api import Outcome, StepError  # noqa: E402
from netplug.kernel.firewall import compiler, libnftables, tables  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

CREATED, ADJUSTED, EQUAL = Outcome.CREATED, Outcome.ADJUSTED, Outcome.EQUAL
PLANS = sorted((Path(__file__).parents[1] / "plans").glob("*/*.json"))


def nft(*commands: str) -> str:
    return run("nft", "-f", "-", text="\n".join(commands) + "\n")


def listed() -> list[str]:
    """Return the table of networks as nft lists it: sets and chains by name."""
    return compiler._lines(run("nft", "-s", "list", "table", *NETWORKS.split()))


def handle(table: str, chain: str, words: str) -> str:
    """Return the handle of the first rule of a chain that has these words."""
    rules = run("nft", "--handle", "list", "chain", *table.split(), chain).splitlines()
    return next(line.rpartition(" ")[2] for line in rules if words in line)


class TestLinuxTables(LinuxHost, TablesSuite):
    async def test_table_reads_back_as_nft_writes_it(self, kernel: LinuxKernel) -> None:
        one = Element(NETWORKS, "published4", "10.5.0.1 . tcp . 8080", "10.9.0.2 . 80")
        home = Element(NETWORKS, "home4", "10.9.0.0/24 . np-test")
        await kernel.ensure((NETWORKS_TABLE, ANTISPOOF_TABLE, *GUARD, one, home, FROM))
        listing = " ".join(run("nft", "list", "ruleset").split())
        for words in (
            "type filter hook prerouting priority -350; policy accept;",
            f'elements = {{ "{VETH.name}" . {VETH.peer_mac} . 10.9.0.2 }}',
            "elements = { 10.5.0.1 . tcp . 8080 : 10.9.0.2 . 80 }",
            'elements = { 10.9.0.0/24 . "np-test" }',
            'elements = { "np-test" : goto from_open }',
            "dnat ip to ip daddr . meta l4proto . th dport map @published4",
            'comment "MAC of another"',
        ):
            assert words in listing, words

    async def test_table_that_another_process_made_is_found_right_without_compiling(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = (NETWORKS_TABLE, ANTISPOOF_TABLE, LED, *GUARD)
        await kernel.ensure(steps)
        monkeypatch.setattr(compiler, "_compiled", {})
        monkeypatch.setattr(libnftables, "_NAME", "libnothing.so.7")
        libnftables._library.cache_clear()
        async with await LinuxKernel.open() as later:
            assert await later.drift(steps) == []
            assert await later.ensure(steps) == [EQUAL] * len(steps)
            with monkeypatch.context() as patch:
                patch.setattr(later._tables._reader.netlink, "batch", lambda _: pytest.fail("it tried"))
                assert await later.ensure(steps) == [EQUAL] * len(steps)
                assert await later.ensure(steps[2:]) == [EQUAL] * len(steps[2:])

    async def test_table_of_another_version_is_replaced_with_what_others_put_there(self, kernel: LinuxKernel) -> None:
        """As two daemons in turn."""
        await kernel.ensure((replace(NETWORKS_TABLE, text=OTHER_TEXT), LED, FROM))
        async with await LinuxKernel.open() as later:
            (what,) = await whats(later, NETWORKS_TABLE)
            assert what == '- comment "bridges with anti-spoofing on all ports"; + comment "of a former text"'
            assert await later.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
            assert await whats(later, NETWORKS_TABLE, LED, FROM) == []
        assert await kernel.ensure((NETWORKS_TABLE, LED, FROM)) == [EQUAL] * 3

    @pytest.mark.parametrize(
        ("commands", "told"),
        [
            (["insert rule inet netplug forward tcp dport 22 accept"], "+ tcp dport 22 accept"),
            (["add rule inet netplug to_open counter"], "+ counter packets 0 bytes 0"),
            (["DELETE forward vmap @from"], "- iifname vmap @from"),
            (["DELETE to_internal drop"], "- drop"),
            (["flush chain inet netplug to_internal"], "- ct state established,related accept; - drop"),
            (["chain inet netplug forward { policy drop; }"], "policy drop;"),
            (["add chain inet netplug mine", "add rule inet netplug mine drop"], "+ chain mine {"),
            (["add set inet netplug mine { type ipv4_addr; }"], "+ set mine {"),
            (["add map inet netplug mine { type ipv4_addr : verdict; }"], "+ map mine {"),
            (["add chain inet netplug mine { type filter hook forward priority 5; policy drop; }"], "+ chain mine {"),
            (["add table inet netplug { flags dormant; }"], "+ flags dormant"),
            (["REHOOK forward"], "priority"),
            (["RECOMMENT"], "comment"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    async def test_foreign_change_is_drift_told_by_its_lines_and_mended_with_the_elements(
        self, kernel: LinuxKernel, commands: list[str], told: str
    ) -> None:
        others = Element(NETWORKS, "published4_any", "tcp . 4242", "10.9.0.42 . 80")
        await kernel.ensure((NETWORKS_TABLE, LED, FROM))
        before = listed()
        match commands[0].split():
            case ["DELETE", chain, *words]:
                nft(f"delete rule {NETWORKS} {chain} handle {handle(NETWORKS, chain, ' '.join(words))}")
            case ["REHOOK", chain]:
                self._put_again(f"chain {chain} {{", "priority filter - 10", "priority filter - 9")
            case ["RECOMMENT"]:
                self._put_again("map from {", 'comment "input link -> chain"', "")
            case _:
                nft(*commands)
        nft(f"add element {NETWORKS} published4_any {{ {others.item} : {others.data} }}")
        (what,) = await whats(kernel, NETWORKS_TABLE, LED, FROM)
        assert told in what
        assert what.count(";") <= 7, "a few lines only"
        assert "0x" not in what
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
        assert await whats(kernel, NETWORKS_TABLE, LED, FROM) == []
        assert (await kernel.owned()).of(*ENTRIES) == {LED, FROM, others}
        await kernel.remove((others,))
        assert listed() == before

    @staticmethod
    def _put_again(part: str, old: str, new: str) -> None:
        """Change what nft cannot change: put the whole table again, with its comment."""
        whole = run("nft", "-s", "list", "table", *NETWORKS.split())
        at = whole.index(part)
        assert old in whole[at:]
        run("nft", "-f", "-", text=f"delete table {NETWORKS}\n{whole[:at]}{whole[at:].replace(old, new, 1)}")

    async def test_chain_of_others_goes_with_what_leads_to_it(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED, FROM))
        before = listed()
        nft(
            f"add chain {NETWORKS} mine {{ type filter hook input priority 3; }}",
            f"add chain {NETWORKS} more",
            f"add chain {NETWORKS} last",
            f"add rule {NETWORKS} more goto last",
            f"add rule {NETWORKS} forward jump more",
            f"add rule {NETWORKS} mine ip saddr vmap {{ 10.0.0.1 : jump more, 10.0.0.2 : drop }}",
            f"add rule {NETWORKS} netplug-version drop",
            f"add map {NETWORKS} theirs {{ type ipv4_addr : verdict; }}",
            f"add element {NETWORKS} theirs {{ 10.0.0.1 : goto last }}",
            f"add element {NETWORKS} from {{ np-theirs : goto last }}",
            f"delete element {NETWORKS} from {{ {FROM.item} }}",
            f"add element {NETWORKS} from {{ {FROM.item} : jump more }}",
        )
        assert len(await whats(kernel, NETWORKS_TABLE, LED, FROM)) == 2
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
        assert await kernel.ensure((LED, FROM)) == [EQUAL, CREATED]
        assert await whats(kernel, NETWORKS_TABLE, LED, FROM) == []
        assert (await kernel.owned()).of(*ENTRIES) == {LED, FROM}
        assert listed() == before

    async def test_table_without_our_comment_is_right_if_its_rules_are(self, kernel: LinuxKernel) -> None:
        """On a kernel before Linux 5.10, or put again by nft without it."""
        await kernel.ensure((NETWORKS_TABLE, LED))
        nft(f"delete chain {NETWORKS} netplug-version")
        assert await whats(kernel, NETWORKS_TABLE, LED) == []
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [EQUAL, EQUAL]
        nft(f"add rule {NETWORKS} forward drop")
        assert await whats(kernel, NETWORKS_TABLE) == ["+ drop"]
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [ADJUSTED, EQUAL]

    async def test_sets_that_stay_are_not_made_anew(self, kernel: LinuxKernel) -> None:
        def handles() -> dict[str, str]:
            lines = run("nft", "--handle", "list", "table", *NETWORKS.split()).splitlines()
            return {line.split()[1]: line.split()[-1] for line in lines if line.startswith(("\tset", "\tmap"))}

        await kernel.ensure((replace(NETWORKS_TABLE, text=OTHER_TEXT), LED, FROM))
        before = handles()
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
        assert {name for name, number in handles().items() if before[name] != number} == {"guarded"}
        nft(f"add rule {NETWORKS} forward counter", f"add chain {NETWORKS} mine", f"add rule {NETWORKS} mine drop")
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]
        assert {name for name, number in handles().items() if before[name] != number} == {"guarded"}

    async def test_forged_comment_convinces_nobody(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE,))
        mark = run("nft", "list", "chain", *NETWORKS.split(), "netplug-version").splitlines()
        nft(f"delete table {NETWORKS}", *mark[:-1], "chain forward { }", "}")
        assert len(await whats(kernel, NETWORKS_TABLE)) == 1
        assert await kernel.ensure((NETWORKS_TABLE,)) == [ADJUSTED]

    async def test_elements_that_others_changed_are_seen_and_mended(self, kernel: LinuxKernel) -> None:
        more = replace(LED, item="tcp . 8081")
        await kernel.ensure((NETWORKS_TABLE, LED, more, FROM))
        nft(
            f"delete element {NETWORKS} published4_any {{ tcp . 8080 }}",
            f"add element {NETWORKS} published4_any {{ tcp . 8080 : 10.9.0.9 . 81 }}",
            f"delete element {NETWORKS} published4_any {{ tcp . 8081 }}",
            f"delete element {NETWORKS} from {{ np-test }}",
            f"add element {NETWORKS} from {{ np-test : drop }}",
        )
        assert await whats(kernel, NETWORKS_TABLE, LED, more, FROM) == [
            "is 10.9.0.9 . 81, not 10.9.0.2 . 80",
            "missing",
            "is drop, not goto from_open",
        ]
        assert await kernel.ensure((LED, more, FROM)) == [ADJUSTED, CREATED, ADJUSTED]
        assert await whats(kernel, NETWORKS_TABLE, LED, more, FROM) == []

    async def test_elements_of_all_else_are_seen_and_go(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED, FROM))
        nft(
            f"add element {NETWORKS} from {{ * : drop }}",
            f"add element {NETWORKS} home4 {{ * }}",
            f"add element {NETWORKS} published4_any {{ * : 10.9.0.9 . 9 }}",
        )
        assert await whats(kernel, NETWORKS_TABLE, LED, FROM) == []
        theirs = {
            Element(NETWORKS, "from", "*", "drop"),
            Element(NETWORKS, "home4", "*"),
            Element(NETWORKS, "published4_any", "*", "10.9.0.9 . 9"),
        }
        assert (await kernel.owned()).of(*ENTRIES) == {LED, FROM, *theirs}
        await kernel.remove(list(theirs))
        assert (await kernel.owned()).of(*ENTRIES) == {LED, FROM}
        assert "*" not in run("nft", "list", "map", *NETWORKS.split(), "from")

    async def test_sets_of_any_type_that_others_add_stop_nothing(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        for number, (words, element) in enumerate(
            (
                ("type mark; flags timeout;", "0x7 timeout 1h"),
                ("type ipv4_addr; flags interval; auto-merge;", "10.0.0.0/9, 10.64.0.0-10.192.3.4"),
                ("typeof ct mark . ip dscp;", "7 . cs1"),
                ("typeof meta l4proto . th dport . ct state;", "tcp . 7 . new"),
                ("type ether_type;", "ip"),
                ("type icmp_type; counter;", "echo-request counter"),
                ("typeof meta skuid;", "0"),
                ("type ipv6_addr . inet_service . iface_index; flags interval;", "fd00::/64 . 1-77 . lo"),
            )
        ):
            nft(
                f"add set {NETWORKS} theirs{number} {{ {words} }}",
                f"add element {NETWORKS} theirs{number} {{ {element} }}",
            )
        (what,) = await whats(kernel, NETWORKS_TABLE, LED)
        assert "+ set theirs0 {" in what
        assert len((await kernel.owned()).of(*ENTRIES)) > 1
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [ADJUSTED, EQUAL]
        assert (await kernel.owned()).of(*ENTRIES) == {LED}

    async def test_ruleset_that_was_flushed_comes_back(self, kernel: LinuxKernel) -> None:
        more = [replace(LED, item=f"udp . {port}") for port in range(1000, 1600)]
        tables = (NETWORKS_TABLE, ANTISPOOF_TABLE, HOST_TABLE)
        steps = (*tables, LED, FROM, *GUARD, *more)
        await kernel.ensure(steps)
        before = run("nft", "-s", "list", "ruleset")
        for _ in range(2):
            run("nft", "flush", "ruleset")
            assert await whats(kernel, *steps) == ["missing"] * len(steps)
            assert await kernel.ensure(tables) == [CREATED] * 3
            assert run("nft", "-s", "list", "ruleset") == before
        assert await whats(kernel, *steps) == []

    async def test_table_that_others_made_empty_gets_all_again(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        nft(f"delete table {NETWORKS}", f"table {NETWORKS} {{ }}")
        assert len(await whats(kernel, NETWORKS_TABLE, LED)) == 2
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [ADJUSTED, CREATED]
        assert await whats(kernel, NETWORKS_TABLE, LED) == []

    async def test_failed_transaction_leaves_no_wrong_idea_of_what_is_there(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        run("nft", "flush", "ruleset")
        bad = replace(FROM, data="goto nowhere")
        for steps in ((NETWORKS_TABLE, bad), (replace(NETWORKS_TABLE, text=OTHER_TEXT), LED, bad)):
            with pytest.raises(StepError) as caught:
                await kernel.ensure(steps)
            assert caught.value.step == bad
            with pytest.raises(StepError, match="missing"):
                await kernel.ensure((LED,))
            assert (await kernel.owned()).of(Table) == frozenset()
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [CREATED, EQUAL]
        with pytest.raises(StepError):
            await kernel.ensure((replace(NETWORKS_TABLE, text=OTHER_TEXT), bad))
        assert await kernel.ensure((NETWORKS_TABLE, LED)) == [EQUAL, EQUAL]
        assert await whats(kernel, NETWORKS_TABLE, LED) == []

    async def test_many_elements_are_one_transaction(self, kernel: LinuxKernel) -> None:
        """More than a megabyte of netlink messages."""
        many: list[Step] = [
            *(Element(NETWORKS, "home4", f"10.{n >> 8}.{n & 255}.0/24 . np-{n:012x}") for n in range(10_000)),
            *(replace(LED, item=f"tcp . {port}", data=f"10.9.0.2 . {port}") for port in range(1, 10_001)),
        ]
        bad = replace(LED, item="sctp . 1", data="")
        late = replace(FROM, data="goto nowhere")
        await kernel.ensure((NETWORKS_TABLE,))
        for wrong in (bad, late):
            with pytest.raises(StepError) as caught:
                await kernel.ensure((*many, wrong))
            assert caught.value.step == wrong
            assert (await kernel.owned()).of(*ENTRIES) == frozenset()
        generation = kernel._tables._reader.generation()
        assert set(await kernel.ensure(many)) == {CREATED}
        assert kernel._tables._reader.generation() == generation + 1
        other = replace(NETWORKS_TABLE, text=OTHER_TEXT)
        assert await kernel.ensure((other,)) == [ADJUSTED]
        assert kernel._tables._reader.generation() == generation + 2
        assert (await kernel.owned()).of(*ENTRIES) == frozenset(many)
        run("nft", "flush", "ruleset")
        assert await kernel.ensure((other,)) == [CREATED]
        assert len((await kernel.owned()).of(*ENTRIES)) == len(many)
        await kernel.remove(many)
        assert (await kernel.owned()).of(*ENTRIES) == frozenset()

    async def test_what_is_refused_is_named_however_long_an_attempt_takes(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tables, "_PATIENCE", 0.01)
        many = [Element(NETWORKS, "home4", f"10.{n >> 8}.{n & 255}.0/24 . np-{n:012x}") for n in range(3_000)]
        late = replace(FROM, data="goto nowhere")
        await kernel.ensure((NETWORKS_TABLE,))
        with pytest.raises(StepError) as caught:
            await kernel.ensure((*many, late))
        assert caught.value.step == late

    async def test_element_in_the_midst_that_the_kernel_refuses_is_named(self, kernel: LinuxKernel) -> None:
        there = [Element(NETWORKS, "home4", f"10.{n}.0.0/16 . np-test") for n in range(200)]
        await kernel.ensure((NETWORKS_TABLE, there[7]))
        overlap = Element(NETWORKS, "home4", "10.133.7.0/24 . np-test")
        with pytest.raises(StepError, match=r"10\.133\.7\.0/24") as caught:
            await kernel.ensure((*there, overlap, LED))
        assert caught.value.step == overlap
        assert (await kernel.owned()).of(*ENTRIES) == {there[7]}

    async def test_own_work_is_no_news_and_that_of_others_is(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        await kernel.remove((LED,))
        # The kernel has told of it by now; the loop has only to look.
        for _ in range(3):
            await asyncio.sleep(0)
        assert not kernel.changes.commits().is_set()
        assert not kernel.changes.tables().is_set()
        run("nft", "delete", "table", *NETWORKS.split())
        async with asyncio.timeout(VANISH_DEADLINE_S):
            await kernel.changes.commits().wait()

    async def test_commits_to_tables_of_ours_are_told_apart(self, kernel: LinuxKernel) -> None:
        """Whatever they change there: others have no business in it, so all is compared at once."""
        await kernel.ensure((NETWORKS_TABLE, LED))
        commits, ours = kernel.changes.commits(), kernel.changes.tables()
        ours.clear()
        for command, touched in (
            ("add table inet site; add chain inet site one", False),
            (f"flush map {NETWORKS} {LED.set}", True),
            ("add rule inet site one drop", False),
            (f"add rule {NETWORKS} forward accept", True),
            (f"add table inet other; delete table inet site; delete table {NETWORKS}", True),
            ("delete table inet other", False),
        ):
            commits.clear()
            run("nft", command)
            async with asyncio.timeout(VANISH_DEADLINE_S):
                await commits.wait()
            assert ours.is_set() == touched, command
            ours.clear()

    async def test_tables_of_others_are_seen(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE, LED))
        run("nft", "add", "table", "inet", "netavark")
        run("nft", "add", "table", "ip6", "docker-bridges")
        assert (await kernel.facts()).tables == ((4, "netavark"), (6, "docker-bridges"), (6, "netavark"))
