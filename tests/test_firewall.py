"""The worker that speaks with iptables, with programs in their place that say what a test wants."""

import asyncio
from pathlib import Path

import pytest

from netplug.drivers.steps import Chain, Jump
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.firewall.iptables import Firewall

CHAIN = Chain(4, "filter", "NETPLUG-TEST", ("-j ACCEPT",))
JUMP = Jump(4, "filter", "FORWARD", "-j NETPLUG-TEST")
FOREIGN = b'-A FORWARD -m comment --comment "caf\xe9 \xe2\x80\xa8 \x85" -j ACCEPT\n'
EMPTY = b"*filter\n:FORWARD ACCEPT [0:0]\n" + FOREIGN + b"COMMIT\n"
DEADLINE_S = 10


class Programs:
    """`iptables-save` and `iptables-restore` of a folder that is all of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = folder / "said"
        self.said.write_bytes(EMPTY)
        self.put("iptables-save", f"cat {self.said}")
        self.put("iptables-restore", f"cat > {folder}/told")

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


async def test_rules_of_others_need_not_be_text(programs: Programs) -> None:
    firewall = Firewall(4)
    await firewall.open()
    outcomes: list[Outcome] = []
    async with asyncio.timeout(DEADLINE_S):
        await firewall.ensure((CHAIN, JUMP), outcomes)
    assert outcomes == [Outcome.CREATED, Outcome.CREATED]
    assert b"-I FORWARD 1 -j NETPLUG-TEST\n" in programs.told
    model = await firewall.read()
    (rule,) = model.chain("filter", "FORWARD") or ()
    assert rule.encode(errors="surrogateescape") == FOREIGN.removeprefix(b"-A FORWARD ").rstrip()


async def test_bytes_that_are_no_text_are_told_back_as_they_are(programs: Programs) -> None:
    named = b'-A NETPLUG-TEST -m comment --comment "\xff\xfe" -j DROP'
    programs.said.write_bytes(b"*filter\n:NETPLUG-TEST - [0:0]\n" + named + b"\nCOMMIT\n")
    firewall = Firewall(4)
    model = await firewall.read()
    (rule,) = model.chain("filter", "NETPLUG-TEST") or ()
    await firewall.ensure((Chain(4, "filter", "NETPLUG-OTHER", (rule,)),), [])
    assert named.replace(b"TEST", b"OTHER") in programs.told


@pytest.mark.parametrize("answer", ["printf '*filter\\n:FORWARD\\n'", "printf '*filter\\n-A\\n-A FORWARD\\n'"])
async def test_whatever_goes_wrong_nobody_waits_for_ever(programs: Programs, answer: str) -> None:
    firewall = Firewall(4)
    programs.put("iptables-save", answer)
    async with asyncio.timeout(DEADLINE_S):
        found = await asyncio.gather(*(firewall.ensure((CHAIN, JUMP), []) for _ in range(3)), return_exceptions=True)
    assert [type(it) for it in found] == [StepError] * 3
    programs.put("iptables-save", f"cat {programs.said}")
    await firewall.ensure((CHAIN, JUMP), [])


@pytest.mark.parametrize(
    ("broken", "kind", "words"),
    [
        ("missing", "unavailable", "iptables does not work on this host: iptables-save is missing"),
        (
            "forbidden",
            "unavailable",
            "iptables does not work on this host: iptables-save cannot be started: Permission denied",
        ),
        ("refuses", "internal", "iptables does not work on this host: table filter is incompatible"),
    ],
)
async def test_program_that_cannot_be_used_is_named_and_harms_nothing_else(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, broken: str, kind: str, words: str
) -> None:
    match broken:
        case "missing":
            (programs.folder / "iptables-save").unlink()
        case "forbidden":
            (programs.folder / "iptables-save").write_bytes(b"")
            (programs.folder / "iptables-save").chmod(0o644)
        case _:
            programs.put("iptables-save", "echo table filter is incompatible >&2; exit 1")
    firewall = Firewall(4)
    await firewall.open()
    assert firewall.lack == words.partition(": ")[2]
    with pytest.raises(StepError) as caught:
        await firewall.ensure((CHAIN,), [])
    assert (caught.value.kind, str(caught.value).partition(" (")[0]) == (kind, words)
    assert ("install iptables" in caught.value.hint) == (kind == "unavailable")
    # Without a program nothing can be there. One that fails says nothing of what is there.
    left = await firewall.remove((JUMP, CHAIN))
    assert [error.kind for error in left] == ([] if kind == "unavailable" else [kind, kind])
    programs.put("iptables-save", f"cat {programs.said}")
    await firewall.ensure((CHAIN,), [])
    assert firewall.lack == ""
