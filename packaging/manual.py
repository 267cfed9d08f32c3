"""The command line and the settings as data, read from what `netplug --help` is made from.

Man pages, reference and completion are written from it, so none of them says anything else than `--help` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_origin

import typer

from netplug import cli
from netplug.cli.app import app
from netplug.config import DEFAULT_FILE, Settings

EXIT_CODES = {
    cli.OK: "Success.",
    cli.NO: "The request was refused, the answer is no, or differences were found.",
    cli.USAGE: "Wrong usage: a command, an option or a value.",
    cli.UNREACHABLE: "The daemon or its store cannot be reached.",
    cli.INTERRUPTED: "Interrupted by Ctrl-C.",
    cli.PIPE_CLOSED: "The reader of the output has closed it.",
}
ENVIRONMENT = {
    "NETPLUG_RUN_DIR": "Folder of the daemon's sockets, for commands, CNI executables and the daemon alike.",
    "NETPLUG_CONFIG": f"File of the daemon's settings, instead of {DEFAULT_FILE}.",
    "NETPLUG_SETTING": "Value of a setting of the daemon, such as NETPLUG_STATE_DIR; see netplug.toml(5).",
    "NETPLUG_LAB_DIR": "Folder of the labs' files.",
    cli.DEBUG: "With any value, an internal error of a command shows its traceback.",
}
FILES = {
    str(DEFAULT_FILE): "Settings of the daemon, see netplug.toml(5).",
    "/var/lib/netplug/netplug.db": "Networks, endpoints and leases of this host (SQLite).",
    "/run/netplug/netplug.sock": "Socket of the REST API, which the commands use.",
    "/run/netplug/cni.sock": "Socket for CNI executables and the netavark plugin.",
    "/run/docker/plugins/pynet.sock": "Socket for dockerd.",
}
WITHOUT_FLAG = {
    "etcd_user": ("NAME", "User of etcd."),
    "etcd_password": ("PASSWORD", "Password of that user. Every user of the host could read a flag, so there is none."),
}
"""Settings that have no flag of `serve`: their values' names and what they are."""


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


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of the daemon. `flag` is empty without one; `kind`: the TOML type of its value."""

    name: str
    flag: str
    environment: str
    metavar: str
    kind: str
    help: str
    default: str


def commands() -> Command:
    """Return `netplug` with all its commands, without hidden ones."""
    return _command(typer.main.get_command(app), ("netplug",))


def settings() -> tuple[Setting, ...]:
    """Return the settings of the daemon, in the order of `netplug.config.Settings`."""
    serve = next(it for it in commands().commands if it.path[-1] == "serve")
    flags = {option.name: option for option in serve.options}
    return tuple(_setting(name, flags.get(name)) for name in Settings.model_fields)


def _command(found: Any, path: tuple[str, ...]) -> Command:
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


def _setting(name: str, option: Option | None) -> Setting:
    field = Settings.model_fields[name]
    text, _, said = (option.help if option else "").rpartition(" [")  # "…: what it is. [default]"
    metavar, meaning = (option.metavar, text or option.help) if option else WITHOUT_FLAG[name]
    default = said.rstrip("]") if text else ""
    flag = option.flags[-1] if option else ""
    return Setting(name, flag, f"NETPLUG_{name.upper()}", metavar, _kind(field.annotation), meaning, default)


def _kind(annotation: Any) -> str:
    """Return the TOML type of a setting."""
    if get_origin(annotation) is tuple:
        return "array of strings"
    return "boolean" if annotation is bool else "string"
