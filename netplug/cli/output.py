"""Output of commands: JSON, or tables; without a terminal, tables are plain and unfolded."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import typer

from netplug.cli import PIPE_CLOSED
from netplug.errors.printable import printable, printable_lines
from netplug.names.short_ids import SHORT, short_id

_FOLDED = 6
"""Least width of a folded column with its padding, in characters."""
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
ENDLESS = 100_000
"""Line width without a terminal: nothing is folded."""


def emit(text: str) -> None:
    """Print a line; end the command quietly if the reader has closed the pipe (``| head``)."""
    try:
        sys.stdout.write(printable_lines(text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout again at its end, and would report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None


def confirmed(text: str) -> bool:
    """Ask the user on stderr whether to go on, as Docker does; the end of the input is no."""
    typer.echo(f"{printable_lines(text)}\nAre you sure you want to continue? [y/N] ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        typer.echo(err=True)
    return answer.strip().lower() in {"y", "yes"}


def note(answer: dict[str, Any]) -> None:
    """Remove the note from an answer, and print it on stderr."""
    if text := answer.pop("note", ""):
        note_line(text)


def note_line(text: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"netplug: {printable(text)}", err=True)


def emit_json(data: Any) -> None:
    """Print data as JSON."""
    emit(json.dumps(data, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Iterable[str]]]) -> str:
    """Return a table; a cell with several values has a line for each on a terminal, and commas otherwise.

    No value is cut. On a narrow terminal values are folded, in columns with several values (addresses, ports) last.
    """
    terminal = sys.stdout.isatty()
    cells = [[printable(it) if isinstance(it, str) else list(map(printable, it)) for it in row] for row in rows]
    shown = [[(",".join(it) if isinstance(it, list) else it) if not terminal else it for it in row] for row in cells]
    lines = [[it or [""] if isinstance(it, list) else [it] for it in row] for row in shown]
    return _aligned(columns, lines, terminal=terminal) or _folded(columns, cells, terminal=terminal)


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[Sequence[str]]], *, terminal: bool) -> str:
    """Return a table of lines that all fit, as `_folded` would, in a tenth of the time; empty if it is none."""
    texts = [text for row in rows for cell in row for text in cell]
    if not all(text.isascii() and text.isprintable() for text in texts):
        return ""  # the width of others is rich's business
    heads = [column.upper() for column in columns]
    widths = [max(len(head), *(len(it) for row in rows for it in row[at]), 0) for at, head in enumerate(heads)]
    gap, edge = ("   ", " ") if terminal else ("  ", "")
    whole = sum(widths) + len(gap) * (len(widths) - 1)
    if terminal and (whole + 2 > shutil.get_terminal_size().columns or not _draws_lines()):
        return ""

    def line(texts: Iterable[str]) -> str:
        return edge + gap.join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()

    body = [line(texts) for row in rows for texts in zip_longest(*row, fillvalue="")]
    if not terminal:
        return "\n".join((line(heads), *body))
    head = line(heads) if os.environ.get("TERM", "") in {"", "dumb", "unknown"} else f"{_BOLD}{line(heads)}{_PLAIN}"
    return "\n".join(("", head, edge + "─" * whole, *body, ""))


def _draws_lines() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _folded(columns: Sequence[str], cells: Sequence[Sequence[str | list[str]]], *, terminal: bool) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - takes 50 ms, and only narrow terminals need it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    separator = "\n" if terminal else ","
    grid = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    console = Console(width=None if terminal else ENDLESS, no_color=None if terminal else True)
    widest = [
        max((len(it) for row in cells if isinstance(row[at], list) for it in row[at]), default=0)
        for at in range(len(columns))
    ]
    fits = sum(width or _FOLDED for width in widest) <= console.width
    for column, width in zip(columns, widest, strict=True):
        grid.add_column(column.upper(), overflow="fold", no_wrap=not terminal or (fits and width > 0))
    for row in cells:
        grid.add_row(*(Text(cell if isinstance(cell, str) else separator.join(cell)) for cell in row))
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def counted(number: int, noun: str) -> str:
    """Return a number of things.

    >>> counted(1, "packet"), counted(0, "packet")
    ('1 packet', '0 packets')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short(ident: str) -> str:
    """Return the displayed form of an id."""
    return short_id(ident) or ident[:SHORT]
