"""What may stand for the value of an option or an argument: told from the name of the value in `--help`."""

from dataclasses import dataclass

from netplug.cli.command_tree import Command
from netplug.drivers.shared import SHARED

ASKED = frozenset({"networks", "endpoints", "hosts", "namespaces"})
"""Kinds whose values `netplug __complete` tells."""
_KINDS = {
    "NETWORK": "networks",
    "NETWORK...": "networks",
    "ENDPOINT": "endpoints",
    "SRC": "endpoints",
    "DST[:PORT[/PROTO]]": "endpoints",
    "HOST": "hosts",
    "PATH_OR_NAME": "namespaces",
    "DIR": "folders",
    "FILE": "files",
    "[FILE]": "files",
}
_WORDS = {
    "MODE": ("bridge", "host", "macvlan", "none", "overlay"),
    "FORMAT": ("console", "json"),
    "LEVEL": ("debug", "info", "warning", "error"),
    "WHERE": ("host", "inside"),
    "ORDER": ("traffic", "received", "sent", "packets", "drops", "dns", "total", "name"),
    "SHELL": ("bash", "zsh", "fish"),
    "KEY=VALUE": tuple(f"{option.key}=" for option in SHARED if option.key not in {"mode", "name"}),
}


@dataclass(frozen=True, slots=True)
class Value:
    """`kind`: of `ASKED`, "folders" or "files", or empty. `words`: all that may stand there."""

    kind: str = ""
    words: tuple[str, ...] = ()


def value(metavar: str) -> Value:
    """Return what may stand for a value with this name."""
    words = _WORDS.get(metavar, ())
    if "|" in metavar and metavar.islower():  # true|false
        words = tuple(metavar.split("|"))
    return Value(_KINDS.get(metavar, ""), words)


def options(command: Command) -> list[tuple[tuple[str, ...], Value | None, str]]:
    """Return the options of a command: flags, value (None for a switch), and what it does in one line."""
    found: list[tuple[tuple[str, ...], Value | None, str]] = [
        (it.flags, value(it.metavar) if it.metavar else None, brief(it.help)) for it in command.options
    ]
    return [*found, (("-h", "--help"), None, "Show the help")]


def arguments(command: Command) -> list[tuple[Value, bool]]:
    """Return what may stand for each argument of a command, and whether it may be repeated."""
    return [(value(it.usage), "..." in it.usage) for it in command.arguments]


def brief(sentence: str) -> str:
    """Return the first part of a description, which fits beside a completion."""
    text = sentence.partition(". ")[0].partition("; ")[0]
    return text.rstrip(".") if len(text) <= 70 else text[:69].rpartition(" ")[0] + "…"
