"""Write what the documents have of the code: the reference of commands and settings, tables of options, the REST API.

python packaging/reference.py
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import rest
from manual import ENVIRONMENT, EXIT_CODES, FILES, settings

from netplug.cli.command_tree import Command, Option, commands
from netplug.drivers import shared
from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.host import HostDriver
from netplug.drivers.ipam_only import LeasingDriver
from netplug.drivers.macvlan import MacvlanDriver
from netplug.drivers.none import NoneDriver
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.registry import Drivers

ROOT = Path(__file__).parent.parent
DRIVERS = Drivers(
    {
        "bridge": BridgeDriver(),
        "host": HostDriver(),
        "ipam": LeasingDriver(),
        "macvlan": MacvlanDriver(),
        "none": NoneDriver(),
        "overlay": OverlayDriver(),
    }
)
"""Our own, whatever else is installed."""
COMMON = ("--run-dir", "--json")
"""Options that are told once, since most commands have them with this meaning."""
HEAD = """# Reference

Commands, exit codes, environment, files and settings. `netplug COMMAND --help` and `man netplug-COMMAND` say the same.
Options of networks: [options.md](options.md). The daemon's API: [rest.md](rest.md).

<!-- `make docs` writes this file. -->
"""


def reference() -> str:
    """Return docs/reference.md."""
    root = commands()
    lines = [HEAD, "## Commands", ""]
    lines += table(("command", ""), ((f"[`{it.words}`](#{anchor(it.words)})", it.summary) for it in leaves(root)))
    lines += ["", "These options have the same meaning wherever they are:", ""]
    lines += table(("option", "meaning"), ((spelled(it), it.sentence) for it in common(root)))
    lines += ["", "Errors are one line on stderr. Tables are plain without a terminal.", ""]
    lines += table(("exit code", "meaning"), ((str(code), meaning) for code, meaning in EXIT_CODES.items()))
    everywhere = {it.flags[-1]: it.help for it in common(root)}
    for command in root.walk():
        lines += described(command, everywhere)
    lines += ["", "## Environment", "", *table(("variable", "meaning"), keyed(ENVIRONMENT))]
    lines += ["", "## Files", "", *table(("file", ""), keyed(FILES))]
    lines += ["", "## Settings", "", *settings_table()]
    return "\n".join(lines) + "\n"


def leaves(command: Command) -> Iterator[Command]:
    """Yield the commands that do something."""
    return (it for it in command.walk() if not it.commands)


def described(command: Command, everywhere: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines about one command. `everywhere`: what the options of `COMMON` mean."""
    if len(command.path) == 1:
        return
    yield from ("", f"{'###' if len(command.path) == 2 else '####'} {command.words}", "")
    yield " ".join((command.summary, *command.paragraphs))
    if command.commands:
        return
    words = [f"{it.flags[-1]} {it.metavar}" for it in command.options if it.required]
    words += [it.usage for it in command.arguments]
    yield from ("", "```", " ".join((command.words, "[OPTION]...", *words)), "```")
    if command.arguments:
        yield from ("", *table(("argument", "meaning"), ((f"`{it.usage}`", it.help) for it in command.arguments)))
    own = [it for it in command.options if it.flags[-1] not in COMMON or it.help != everywhere[it.flags[-1]]]
    if own:
        yield from ("", *table(("option", "meaning"), ((spelled(it), it.sentence) for it in own)))
    also = [f"`{it.flags[-1]}`" for it in command.options if it not in own]
    if also:
        yield from ("", f"Also {' and '.join(also)}.")


def common(root: Command) -> Iterator[Option]:
    """Yield the options of `COMMON`, as the first command has them that has them."""
    for flag in COMMON:
        yield next(option for it in root.walk() for option in it.options if flag in option.flags)


def settings_table() -> Iterator[str]:
    """Yield the settings of the daemon."""
    yield (
        "A setting has the same name everywhere: flag of `netplug serve`, variable of the environment, key in "
        "`/etc/netplug/netplug.toml`. A flag comes before the environment, the environment before the file. "
        "*changes at*: a reload is `systemctl reload netplug`, or SIGHUP; containers stay connected in both cases."
    )
    yield ""
    rows = []
    for it in settings():
        flag = f"`{it.flag}{' ' + it.metavar if it.metavar else ''}`" if it.flag else "none"
        variable = f"`{it.environment}={it.metavar or 'true'}`"
        at = "reload" if it.reloaded else "restart"
        rows.append((f"`{it.name}`", flag, variable, it.kind, it.help, it.default, at))
    yield from table(("key", "flag", "environment", "type in the file", "meaning", "default", "changes at"), rows)


def options_table() -> str:
    """Return the options of networks."""
    rows = []
    for option in shared.SHARED:
        keys = " = ".join(f"`{key}`" for key in (option.key, *option.aliases))
        modes = [mode for mode in DRIVERS if option in DRIVERS.options(mode)]
        where = "all" if len(modes) == len(DRIVERS) else ", ".join(modes)
        meaning = option.meaning.replace("[docs/", "[").replace("](docs/", "](")  # links lead from docs/ here
        rows.append((keys, where, "no" if option.fixed else "yes", f"{meaning} ({option.default})"))
    return "\n".join(table(("key", "modes", "changes", "meaning (default)"), rows))


def fixed_table() -> str:
    """Return the options that cannot change."""
    rows = ((f"`{it.key}`", it.fixed) for it in shared.SHARED if it.fixed)
    return "\n".join(table(("option", "cannot change, because"), rows))


def documents() -> dict[Path, str]:
    """Return each document that is written or has a written part, as it should be."""
    api = rest.described()
    options, updating = ROOT / "docs" / "options.md", ROOT / "docs" / "updating.md"
    return {
        ROOT / "docs" / "reference.md": reference(),
        ROOT / "docs" / "rest.md": rest.document(api),
        ROOT / "docs" / "openapi.json": rest.openapi(api),
        options: filled(options.read_text(), "options", options_table()),
        updating: filled(updating.read_text(), "fixed", fixed_table()),
    }


def filled(text: str, name: str, content: str) -> str:
    """Return a text with new content between ``<!-- NAME: … -->`` and ``<!-- /NAME -->``."""
    pattern = re.compile(rf"(<!-- {name}:.*?-->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
    made, count = pattern.subn(lambda found: f"{found[1]}{content}\n{found[3]}", text)
    if count != 1:
        raise ValueError(f"there are {count} places for {name!r}")
    return made


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table; a bar in a cell is escaped."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def spelled(option: Option) -> str:
    """Return the flags of an option with the name of its value."""
    value = f" {option.metavar}" if option.metavar else ""
    return ", ".join(f"`{flag}{value}`" for flag in option.flags)


def keyed(words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield rows whose first cell is typed."""
    return ((f"`{key}`", meaning) for key, meaning in words.items())


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    for document, content in documents().items():
        document.write_text(content)
