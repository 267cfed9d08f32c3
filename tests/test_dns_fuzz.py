"""The name server under a coverage-guided fuzzer, for a second or two; `make fuzz` does it for minutes."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from dns_fuzz import TARGETS, target, write_seeds
from dns_packets import query
from dns_rules import BrokenRuleError, answers

from netplug.dns import fast_path, tcp

RUNS = {"paths": 15_000, "datagrams": 1500, "framing": 2000, "upstreams": 3000}
"""Inputs, by target: the same on fast machines and slow ones. `make fuzz` makes others, for minutes."""
SECONDS = 20
"""At most."""
TESTS = Path(__file__).resolve().parent
FOUND = TESTS / "fixtures" / "dns_fuzz"
"""What the fuzzer has found, by target; `make fuzz` saves its crashes here."""


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_the_fuzzer_found_is_mended(path: Path) -> None:
    with target(path.parent.name) as run:
        run(path.read_bytes())


@pytest.mark.skipif(find_spec("atheris") is None, reason="no atheris here")
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzer_finds_no_packet_that_breaks_a_rule(name: str, tmp_path: Path) -> None:
    crashes = tmp_path / "crashes"
    command = [sys.executable, str(TESTS / "dns_fuzzer.py"), name, f"--runs={RUNS[name]}", "--seed=1"]
    done = subprocess.run(
        [*command, f"--seconds={SECONDS}", f"--corpus={tmp_path / 'corpus'}", f"--crashes={crashes}"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    found = [f"{path.name}: {path.read_bytes()!r}" for path in crashes.glob("*")]
    assert (done.returncode, found) == (0, []), done.stderr[-3000:]
    assert "stat::number_of_executed_units" in done.stderr


# Whether the rules can be broken


@pytest.mark.parametrize(
    "reply",
    [
        query("web", ident=1, flags=0x8180),
        query("web"),
        query("db", flags=0x8180),
        query("web", flags=0x8180) + b"\0" * 600,
        query("web", flags=0x8180)[:-1],
        b"\x12\x34\x81\x80" + b"\0" * 8,
    ],
    ids=["id", "query", "question", "size", "cut", "empty"],
)
def test_rule_sees_an_answer_that_is_none(reply: bytes) -> None:
    answers(query("web"), query("web", flags=0x8180), 512)
    with pytest.raises((BrokenRuleError, ValueError)):
        answers(query("web"), reply, 512)


def test_rule_sees_answers_to_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dns_fuzz.respond", lambda _, data, **__: data[:2] + b"\x80\1" + bytes(8))
    with target("paths") as run, pytest.raises(BrokenRuleError, match="no query"):
        run(b"\0" + query("web", flags=0x8180))


def test_rule_sees_another_way_of_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path, "_external", lambda *_: fast_path.Question(b"", b"", b"", 0))
    with target("paths") as run, pytest.raises(BrokenRuleError, match="disagree"):
        run(b"\0" + query("example.com"))


@pytest.mark.parametrize(("name", "what"), [("datagrams", "answer"), ("framing", "connection that stays")])
def test_rule_sees_what_is_not_answered(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netplug.dns.server.respond", lambda *_, **__: None)
    monkeypatch.setattr(tcp._Connection, "_half_closed", lambda _: None)
    asked = query("nosuch.red", 255)
    framed = len(asked).to_bytes(2) + asked if name == "framing" else bytes((len(asked),)) + asked
    with target(name) as run, pytest.raises(BrokenRuleError, match=what):
        run(b"\0" * (name == "framing") + framed)


def test_seeds_break_no_rule(tmp_path: Path) -> None:
    for name in TARGETS:
        assert write_seeds(name, tmp_path / name) > 50
        with target(name) as run:
            for path in sorted((tmp_path / name).iterdir()):
                run(path.read_bytes())
