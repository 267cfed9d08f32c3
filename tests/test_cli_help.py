"""The manual: `--help` of each group lists its commands, each with a whole sentence."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from netplug.cli.app import app

COLUMNS = 80


def commands(command: Any, path: str = "netplug") -> Iterator[tuple[str, Any]]:
    """Return a command and all below it, each with the words that lead to it."""
    yield path, command
    for name, child in command.commands.items() if isinstance(command, TyperGroup) else ():
        yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))
GROUPS = [path for path, command in COMMANDS.items() if isinstance(command, TyperGroup)]


@pytest.mark.parametrize("path", GROUPS)
def test_each_command_is_listed_with_one_sentence_on_one_line(path: str) -> None:
    """A longer first sentence would be cut, or go on in the next line."""
    below = COMMANDS[path].commands
    said = CliRunner().invoke(app, [*path.split()[1:], "--help"], terminal_width=COLUMNS).output
    listed = said.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(below)
    for line, (name, command) in zip(listed, below.items(), strict=True):
        first = command.help.partition("\n\n")[0]
        assert line.split(maxsplit=1) == [name, first]
        assert first.endswith(".")
        assert len(line) <= COLUMNS


@pytest.mark.parametrize("path", COMMANDS)
def test_each_option_is_described_in_a_sentence(path: str) -> None:
    for option in COMMANDS[path].params:
        if not getattr(option, "hidden", False):
            text = getattr(option, "help", "")
            assert text, f"{path}: {option.name}"
            assert text[-1] in ".]…", f"{path}: {option.name}: {text}"
