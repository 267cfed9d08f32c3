"""Tables that fit are laid out without rich, and look the same."""

import re
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplug.cli import output

TEXTS = st.text(string.ascii_letters + string.digits + ".:/-_[]() ", max_size=12).map(str.strip)
CELLS = st.one_of(TEXTS, st.lists(TEXTS.filter(bool), max_size=3))
ROWS = st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4)
COLUMNS = ("id", "front end", "ports")


@pytest.fixture(params=[False, True], ids=["pipe", "terminal"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(output, "_draws_lines", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: request.param)
    return bool(request.param)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ROWS)
def test_a_table_that_fits_looks_as_rich_shows_it(terminal: bool, rows: list[tuple[str | list[str], ...]]) -> None:
    folded = output._folded(COLUMNS, [list(row) for row in rows], terminal=terminal)
    shown = re.sub(r"\x1b\[[0-9]*m", "", output.table(COLUMNS, rows))
    plain = re.sub(r"\x1b\[[0-9]*m", "", folded)
    assert [it.rstrip() for it in shown.splitlines()] == [it.rstrip() for it in plain.splitlines()]


def test_the_head_is_bold_on_a_terminal_only(terminal: bool) -> None:
    assert ("\x1b[1m" in output.table(COLUMNS, [("a", "b", "c")])) == terminal


@pytest.mark.parametrize("text", ["ä", "x" * 300, "a\tb"])
def test_what_does_not_fit_is_left_to_rich(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert output._aligned(("a",), [[[text]]], terminal=True) == ""
