"""Texts of tables, and what drivers write into them, are understood by this host; what is not is told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host")

from kernel_suite import NETWORKS_TABLE, refusal, whats  # noqa: E402
from linux_host import LinuxHost, run  # noqa: E402

from netplug.drivers import tables  # noqa: E402
from netplug.drivers.plan import Plan  # noqa: E402
from netplug.drivers.port_ranges import each  # noqa: E402
from netplug.drivers.steps import Element, Hook, Step, Table  # noqa: E402
from netplug.kernel.api import Outcome  # noqa: E402
from netplug.kernel.firewall import compiler, libnftables  # noqa: E402
from netplug.kernel.firewall.compiler import CompileError, compiled  # noqa: E402
from netplug.kernel.firewall.handlers import GONE  # noqa: E402
from netplug.kernel.firewall.table_image import MARK  # noqa: E402
from netplug.kernel.firewall.table_marks import is_right  # noqa: E402
from netplug.kernel.firewall.table_reader import TableReader  # noqa: E402
from netplug.kernel.firewall.tables import Tables  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.sandbox.netns import temporary_netns  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

TEXTS = sorted(it.name.removesuffix(".nft") for it in files(tables).iterdir() if it.name.endswith(".nft"))
CASES = sorted((Path(__file__).parents[1] / "plans").glob("*/*.json"))
FAMILIES = {"antispoof": "bridge", "fastpath": "netdev", "resolver": "ip"}


@pytest.fixture
def both() -> Iterator[tuple[Tables, TableReader]]:
    with temporary_netns():
        ours, reader = Tables(), TableReader()
        yield ours, reader
        ours.close()
        reader.close()


COMPILES_LATE = """
import os, resource
from netplug.kernel.firewall.compiler import compiled, difference
from netplug.kernel.sandbox.netns import temporary_netns

resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
with temporary_netns():
    compiled("inet", "chain a { }")
    os.system("nft add table inet netplug")
    assert difference("inet", "netplug", "chain a { }")
assert [os.fstat(file) for file in files]
"""


def test_text_is_compiled_with_more_descriptors_than_select_takes() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILES_LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_compiled_is_what_nft_makes_of_it(both: tuple[Tables, TableReader], name: str) -> None:
    family, (ours, reader) = FAMILIES.get(name, "inet"), both
    table = Table(family, "netplug", tables.text(name))
    ours.ensure((table,))
    made = run("nft", "-s", "list", "table", family, "netplug")
    found = reader.look()
    (mark,), (image,) = found.marks.values(), found.images.values()
    assert is_right(table, mark, image)
    assert is_right(table, "", image)
    run("nft", "delete", "table", family, "netplug")
    run("nft", "-f", "-", text=f'table {family} netplug {{\n{table.text}\nchain {MARK} {{ comment "{mark}"; }}\n}}\n')
    assert run("nft", "-s", "list", "table", family, "netplug") == made
    assert compiler.difference(family, "netplug", table.text) == ""
    assert [it.outcome for it in ours.ensure((table,))] == [Outcome.EQUAL]


def _steps(path: Path) -> list[Step]:
    plans = json.loads(path.read_text())["plans"]
    stored = [it for it in plans.values() if isinstance(it, list)]
    whole = {it.partition("\n")[0]: it for it in map(tables.text, TEXTS)}  # golden plans have the first line only
    steps = dict.fromkeys(step for it in stored for step in Plan.known(it))
    return [replace(step, text=whole[step.text]) if isinstance(step, Table) else step for step in steps]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_drivers_write_is_taken_and_read_back_as_written(both: tuple[Tables, TableReader], path: Path) -> None:
    """Else what is there would be taken for somebody else's, and removed."""
    steps, (ours, reader) = _steps(path), both
    there = [step for step in steps if isinstance(step, Table)]
    elements = [part for step in steps if isinstance(step, Element) for part in each(step)]
    hooks = [step for step in steps if isinstance(step, Hook)]
    links = {step.link for step in hooks} | {it.data for it in elements if isinstance(it, Element) and it.set == "near"}
    for number, link in enumerate(sorted(links)):
        run("ip", "link", "add", link, "type", "veth", "peer", "name", f"far{number}")
    given = {f"{it.family} {it.name}" for it in there}
    missing = {it.table for it in (*elements, *hooks) if isinstance(it, Element | Hook)} - given
    assert not missing, "each plan has its tables"
    done = ours.ensure((*there, *elements, *hooks))  # type: ignore[arg-type]
    assert {it.outcome for it in done} <= {Outcome.CREATED}
    found = reader.look()
    read = {
        Element(table, name, *found.types[table][name].decode(*it))
        for table, sets in found.content.items()
        for name, content in sets.items()
        for it in content.items()
    }
    assert read == set(elements)
    read_hooks = {Hook(table, *it) for table, chains in found.hooks.items() for it in chains.items()}
    assert read_hooks == set(hooks)
    ours.remove((*hooks, *elements, *there))  # type: ignore[arg-type]
    assert reader.named() == []


def test_table_that_is_gone_is_told_by_nft() -> None:
    """It may go between the look at all tables and that at its lines."""
    with temporary_netns(), pytest.raises(CompileError, match=GONE):
        compiler.difference("inet", "netplug", "chain a { }")


class TestUnavailable(LinuxHost):
    @pytest.fixture
    def _no_libnftables(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(compiler, "_compiled", {})
        monkeypatch.setattr(libnftables, "_NAME", "libnothing.so.7")
        libnftables._library.cache_clear()
        yield
        libnftables._library.cache_clear()

    @pytest.mark.usefixtures("_no_libnftables")
    async def test_table_of_a_package_needs_libnftables_and_says_what_to_install(self, kernel: LinuxKernel) -> None:
        table = Table("inet", "netplug-mine", "chain mine {\n}")
        error = await refusal(kernel, table)
        assert error.kind == "unavailable"
        words = "table 'inet netplug-mine' cannot be made on this host: libnothing.so.7 cannot be loaded"
        assert error.message.startswith(words)
        assert "libnftables1" in (error.hint or "")
        assert await whats(kernel, table) == ["missing"]

    @pytest.mark.usefixtures("_no_libnftables")
    async def test_our_tables_are_made_and_mended_without_libnftables(self, kernel: LinuxKernel) -> None:
        await kernel.ensure((NETWORKS_TABLE,))
        run("nft", "flush", "chain", "inet", "netplug", "forward")
        (what,) = await whats(kernel, NETWORKS_TABLE)
        assert what.startswith("its rules differ")
        assert await kernel.ensure((NETWORKS_TABLE,)) == [Outcome.ADJUSTED]
        assert await whats(kernel, NETWORKS_TABLE) == []
        await kernel.remove((NETWORKS_TABLE,))
        assert (await kernel.owned()).of(Table) == frozenset()

    @pytest.mark.parametrize(
        ("rule", "why"),
        [
            ("queue num 1", "No such file or directory"),
            ("no words of nft's", "syntax error"),
            ("jump nowhere", "Could not process rule"),
        ],
    )
    async def test_text_that_this_host_does_not_take_is_told_and_changes_nothing(
        self, kernel: LinuxKernel, rule: str, why: str
    ) -> None:
        table = replace(NETWORKS_TABLE, text="chain forward {\ntype filter hook forward priority 0\n" + rule + "\n}")
        if rule.startswith("queue") and run_nft(f"table inet t {{\n{table.text}\n}}"):
            pytest.skip(f"this kernel has {rule}")
        with pytest.raises(CompileError, match=why) as caught:
            compiled(table.family, table.text)
        assert "\n" not in str(caught.value)
        await kernel.ensure((NETWORKS_TABLE,))
        error = await refusal(kernel, table)
        assert (error.kind, bool(error.hint)) == ("unavailable", True)
        assert "table 'inet netplug' cannot be made on this host: " in error.message
        assert await whats(kernel, NETWORKS_TABLE) == []
        assert len(await whats(kernel, table)) == 1

    async def test_text_is_compiled_in_a_namespace_that_goes_again(self, kernel: LinuxKernel) -> None:
        before = _namespaces()
        for number in range(5):
            text = f"set s{number} {{ type ifname; }}"
            await kernel.ensure((Table("inet", "netplug-t", text),))
        assert run("nft", "list", "tables") == "table inet netplug-t\n"
        assert _namespaces() <= before


def run_nft(text: str) -> bool:
    """Return whether nft takes a text; nothing is changed."""
    return not subprocess.run(
        ("nft", "-c", "-f", "-"), input=text.encode(), capture_output=True, check=False
    ).returncode


def _namespaces() -> int:
    return len({str(it.readlink()) for it in Path("/proc/self/task").glob("*/ns/net")})
