"""The gate in iptables, with programs in its place that say what a test wants."""

import asyncio
from pathlib import Path

import pytest

from netplug.drivers.steps import Gate
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.firewall.iptables import Iptables
from netplug.kernel.firewall.legacy_watch import LegacyWatch

GATE = Gate(4, "nft")
FOREIGN = b'-A FORWARD -m comment --comment "caf\xe9 \xe2\x80\xa8 \x85" -j ACCEPT\n'
EMPTY = b"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n" + FOREIGN + b"COMMIT\n"
DEADLINE_S = 10


class Programs:
    """`iptables-nft-save` and `iptables-nft-restore` of a folder that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = folder / "said"
        self.said.write_bytes(EMPTY)
        self.put("iptables-nft", "exit 1")
        self.put("iptables-nft-save", f"cat {self.said}")
        self.put("iptables-nft-restore", f"cat > {folder}/told")

    @property
    def told(self) -> bytes:
        found = self.folder / "told"
        return found.read_bytes() if found.exists() else b""

    def put(self, name: str, script: str, mode: int = 0o755) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(mode)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Programs(tmp_path)


def iptables() -> Iptables:
    return Iptables(4, LegacyWatch(lambda: None))


async def test_rules_of_others_need_not_be_text(programs: Programs) -> None:
    gate = iptables()
    async with asyncio.timeout(DEADLINE_S):
        assert await gate.ensure((GATE,)) == [Outcome.CREATED]
    assert b"-I FORWARD 1 -j NETPLUG-FORWARD\n" in programs.told
    (rule,) = (await gate.read({"filter"}))["nft"].foreign("FORWARD")
    assert rule.encode(errors="surrogateescape") == FOREIGN.removeprefix(b"-A FORWARD ").rstrip()


async def test_bytes_that_are_no_text_are_told_back_as_they_are(programs: Programs) -> None:
    named = b'-m comment --comment "\xff\xfe" -j NETPLUG-OLD'
    programs.said.write_bytes(
        b"*filter\n:FORWARD ACCEPT [0:0]\n:NETPLUG-OLD - [0:0]\n-A FORWARD " + named + b"\nCOMMIT\n"
    )
    await iptables().remove((GATE,))
    assert b"-D FORWARD " + named + b"\n" in programs.told


@pytest.mark.parametrize("answer", ["printf '*filter\\n:FORWARD\\n'", "printf '*filter\\n-A\\n-A FORWARD\\n'"])
async def test_whatever_goes_wrong_nobody_waits_for_ever(programs: Programs, answer: str) -> None:
    gate = iptables()
    programs.put("iptables-nft-save", answer)
    async with asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*(gate.ensure((GATE,)) for _ in range(3)), return_exceptions=True)
    assert [type(it) for it in found] == [StepError] * 3
    programs.put("iptables-nft-save", f"cat {programs.said}")
    assert await gate.ensure((GATE,)) == [Outcome.CREATED]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("missing", "iptables-nft-save cannot be started: No such file or directory"),
        ("forbidden", "iptables-nft-save cannot be started: Permission denied"),
        ("refuses", "iptables-nft-save fails: table filter is incompatible"),
        ("gone", "the host has rules of iptables (nft), and no program iptables-nft"),
    ],
)
async def test_program_that_cannot_be_used_is_named(programs: Programs, broken: str, words: str) -> None:
    save = programs.folder / "iptables-nft-save"
    match broken:
        case "missing":
            save.unlink()
        case "forbidden":
            save.write_bytes(b"")
            save.chmod(0o644)
        case "gone":
            (programs.folder / "iptables-nft").unlink()
        case _:
            programs.put("iptables-nft-save", "echo table filter is incompatible >&2; exit 1")
    gate = iptables()
    assert await gate.read({"filter"}) == {}
    assert gate.lack == {"nft": words}
    with pytest.raises(StepError) as caught:
        await gate.ensure((GATE,))
    assert (caught.value.kind, caught.value.message) == ("unavailable", words)
    # Without a program nothing can be there. One that fails says nothing of what is there.
    if broken == "gone":
        await gate.remove((GATE,))
    else:
        with pytest.raises(StepError):
            await gate.remove((GATE,))


async def test_rules_that_cannot_be_read_are_as_last_read(programs: Programs) -> None:
    gate = iptables()
    found = await gate.read({"filter"})
    assert found["nft"].decides
    programs.put("iptables-nft-save", "exit 4")
    assert await gate.read({"filter"}) == {}
    assert gate.last == found
    assert await gate.read(set()) == {}
    assert (gate.last, gate.lack) == ({}, {})


async def test_host_without_iptables_starts_no_process(programs: Programs) -> None:
    for path in programs.folder.iterdir():
        path.unlink()
    gate = iptables()
    assert await gate.read(set()) == {}
    assert gate.lack == {}
