"""The commands as data, read from what `--help` is made from.

Completion, man pages and the reference are written from it, so none of them says anything else than `--help` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Argument:
    """A positional argument. `usage`: as it stands in the synopsis, in brackets if it may be missing."""

    name: str
    usage: str
    help: str


@dataclass(frozen=True, slots=True)
class Option:
    """An option. `metavar` is empty for a flag; `default` and `environment` are empty without one."""

    name: str
    flags: tuple[str, ...]
    metavar: str
    help: str
    required: bool
    repeated: bool
    default: str
    environment: str

    @property
    def sentence(self) -> str:
        """Return what it does, with its default and environment."""
        notes = [f"Default: {self.default}."] if self.default else []
        notes += [f"Environment: {self.environment}."] if self.environment else []
        return " ".join((self.help, *notes))


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or a group of commands. `path`: all its words. `paragraphs`: what `--help` says after the summary."""

    path: tuple[str, ...]
    summary: str
    paragraphs: tuple[str, ...]
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    commands: tuple["Command", ...]

    @property
    def words(self) -> str:
        """Return the command as it is typed."""
        return " ".join(self.path)

    def walk(self) -> Iterator["Command"]:
        """Yield this command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()


def commands() -> Command:
    """Return `netplug` with all its commands, without hidden ones. This imports all of them."""
    import typer  # noqa: PLC0415 - with the commands, which are slow to import

    from netplug.cli.app import app  # noqa: PLC0415 - it imports this module

    return _command(typer.main.get_command(app), ("netplug",))


def _command(found: Any, path: tuple[str, ...]) -> Command:
    import typer  # noqa: PLC0415 - as above

    context = typer.Context(found, info_name=path[-1])
    names = found.list_commands(context) if hasattr(found, "list_commands") else ()
    below = [(name, found.get_command(context, name)) for name in names]
    summary, *paragraphs = [" ".join(part.split()) for part in (found.help or "").split("\n\n")]
    visible = [it for it in found.params if not it.hidden]
    return Command(
        path,
        summary,
        tuple(paragraphs),
        tuple(_argument(it) for it in visible if it.param_type_name == "argument"),
        tuple(_option(it) for it in visible if it.param_type_name == "option"),
        tuple(_command(it, (*path, name)) for name, it in below if not it.hidden),
    )


def _argument(found: Any) -> Argument:
    usage = found.metavar or found.name.upper()
    if found.nargs == -1 and "..." not in usage:
        usage += "..."
    if not found.required and not usage.startswith("["):
        usage = f"[{usage}]"
    return Argument(found.name, usage, found.help or "")


def _option(found: Any) -> Option:
    flags = (*found.opts, *found.secondary_opts)
    metavar = "" if found.is_flag else found.metavar or found.name.upper()
    default = "" if found.is_flag or not found.default else str(found.default)
    environment = found.envvar or ""
    return Option(found.name, flags, metavar, found.help, found.required, found.multiple, default, environment)
