"""Write the man pages: one for each command, netplug(1), and netplug.toml(5) for the settings.

They say what `--help` says, since both are made from the same texts (`netplug.cli.command_tree`). A page has the day of
its release, or of the last one before it, so two builds are equal.

    python packaging/man.py [FOLDER]     writes FOLDER/*.1 and *.5; default: build/man
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import changelog
from manual import ENVIRONMENT, EXAMPLES, EXIT_CODES, FILES, Setting, settings

from netplug import __version__
from netplug.cli.command_tree import Command, Option, commands
from netplug.config import DEFAULT_FILE

DEFAULT_FOLDER = Path(__file__).parent.parent / "build" / "man"
_FLAG = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")
_ESCAPES = {"\\": r"\e", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}


def text(words: str) -> str:
    """Return words as roff: nothing of them is a request or an escape."""
    made = "".join(_ESCAPES.get(char) or (char if ord(char) < 128 else f"\\[u{ord(char):04X}]") for char in words)
    # Between letters it is a hyphen, where a line may end; elsewhere a minus, which can be pasted.
    made = re.sub(r"(?<![A-Za-z])-|-(?![A-Za-z])", r"\\-", made)
    return rf"\&{made}" if made.startswith(".") else made


def typed(words: str) -> str:
    """Return words that are typed as they stand: no line ends at their hyphens."""
    return re.sub(r"(?<!\\)-", r"\\-", text(words))


def prose(words: str) -> str:
    """Return a paragraph, with flags in bold."""
    return "".join(bold(part) if _FLAG.fullmatch(part) else text(part) for part in _FLAG.split(words))


def page(command: Command) -> str:
    """Return the page of a command."""
    name = "-".join(command.path)
    parts = [
        title(name, 1),
        ".SH NAME",
        rf"{typed(name)} \- {prose(lowered(command.summary))}",
        ".SH SYNOPSIS",
        *synopsis(command),
        ".SH DESCRIPTION",
        prose(command.summary),
        *(line for paragraph in command.paragraphs for line in (".PP", prose(paragraph))),
    ]
    if command.arguments:
        parts += [".SH ARGUMENTS", *terms((italic(it.usage), it.help) for it in command.arguments)]
    parts += [".SH OPTIONS", *terms((flags(it), it.sentence) for it in command.options), *terms([HELP])]
    if command.commands:
        parts += [".SH COMMANDS", *terms((reference("-".join(it.path)), it.summary) for it in command.commands)]
    parts += [".SH EXIT STATUS", *terms((bold(str(code)), meaning) for code, meaning in EXIT_CODES.items())]
    parts += [".SH ENVIRONMENT", *terms((bold(key), meaning) for key, meaning in environment(command))]
    if len(command.path) == 1:
        parts += [".SH FILES", *terms((italic(path), meaning) for path, meaning in FILES.items())]
        parts += [".SH EXAMPLES", *list(examples())[:-1]]
    parts += [".SH SEE ALSO", ",\n".join(map(reference, related(command)))]
    return "\n".join(parts) + "\n"


def examples() -> Iterator[str]:
    """Yield the examples of netplug(1)."""
    for goal, lines in EXAMPLES.items():
        yield from (prose(goal), ".PP", ".RS 4", ".EX", *map(typed, lines), ".EE", ".RE", ".PP")


def settings_page(found: Iterable[Setting]) -> str:
    """Return the page of the settings."""
    file = str(DEFAULT_FILE)
    parts = [
        title(DEFAULT_FILE.name, 5),
        ".SH NAME",
        rf"{typed(DEFAULT_FILE.name)} \- settings of the netplug daemon",
        ".SH SYNOPSIS",
        italic(file),
        ".SH DESCRIPTION",
        prose(
            "A file of TOML. Each setting can also be a flag of netplug-serve(1), or a variable of the environment. "
            "A flag comes before the environment, the environment before the file, the file before the default. "
            "An unknown key is an error."
        ),
        ".PP",
        prose(f"NETPLUG_CONFIG names another file. Without it, {file} may be missing."),
        ".PP",
        prose(
            "Some settings change when the daemon reloads them (systemctl reload netplug, or SIGHUP), the others at a "
            "restart. Containers stay connected."
        ),
        ".SH SETTINGS",
    ]
    for it in found:
        notes = [f"Default: {it.default}."] if it.default else []
        notes += [f"Flag: {it.flag}." if it.flag else "It has no flag.", f"Environment: {it.environment}."]
        if it.kind == "array of strings":
            notes.append("In the environment, several are separated by spaces.")
        if it.reloaded:
            notes.append("A reload changes it.")
        parts += terms([(rf"{bold(it.name)} ({it.kind})", f"{it.help} {' '.join(notes)}")])
    example = ['store = "etcd://192.0.2.1:2379,192.0.2.2:2379"', 'vtep = "eth1"', 'dns_upstream = ["192.0.2.53"]']
    parts += [".SH EXAMPLES", ".EX", *map(text, example), ".EE"]
    parts += [".SH SEE ALSO", ",\n".join(map(reference, ("netplug", "netplug-serve")))]
    return "\n".join(parts) + "\n"


def title(name: str, section: int) -> str:
    """Return the head of a page."""
    day = changelog.RELEASED.get(__version__) or max(changelog.RELEASED.values())
    return f'.TH {name.upper()} {section} "{day}" "netplug {__version__}" "netplug manual"\n.nh\n.ad l'


def synopsis(command: Command) -> Iterator[str]:
    """Yield the lines of the synopsis."""
    words = [rf"[{italic('options')}]"]
    words += [flags(it) for it in command.options if it.required]
    words += [italic("COMMAND"), "..."] if command.commands else [italic(it.usage) for it in command.arguments]
    yield " ".join((bold(command.words), *words))


def flags(option: Option) -> str:
    """Return the flags of an option with the name of its value."""
    value = f" {italic(option.metavar)}" if option.metavar else ""
    return ", ".join(map(bold, option.flags)) + value


def environment(command: Command) -> Iterator[tuple[str, str]]:
    """Yield the variables that a command reads: all of them for `netplug` itself and its daemon."""
    whole = len(command.path) == 1 or command.path[-1] == "serve"
    own = {option.environment for it in command.walk() for option in it.options}
    for key, meaning in ENVIRONMENT.items():
        if whole or key in own or key == "NETPLUG_DEBUG":
            yield key, meaning


def related(command: Command) -> list[str]:
    """Return the pages that a page leads to: the group, its other commands, and the settings."""
    found = ["-".join(command.path[:-1])] if len(command.path) > 1 else []
    found += ["-".join(it.path) for it in command.commands]
    return [*found, *([str(DEFAULT_FILE.name)] if len(command.path) == 1 or command.path[-1] == "serve" else [])]


def terms(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a list of terms with their meanings; the terms are roff already."""
    for term, meaning in rows:
        yield from (".TP", term, prose(meaning))


def reference(name: str) -> str:
    """Return a reference to a page."""
    return rf"{bold(name)}({5 if name == DEFAULT_FILE.name else 1})"


def bold(words: str) -> str:
    """Return words that a user types."""
    return rf"\fB{typed(words)}\fR"


def italic(words: str) -> str:
    """Return words that a user replaces."""
    return rf"\fI{typed(words)}\fR"


def lowered(sentence: str) -> str:
    """Return a sentence as the description of a page, as lexgrog(1) wants it."""
    return sentence[:1].lower() + sentence[1:].rstrip(".")


HELP = (", ".join(map(bold, ("-h", "--help"))), "Show the command's help.")


def pages() -> dict[str, str]:
    """Return all pages by the names of their files."""
    found = {f"{'-'.join(it.path)}.1": page(it) for it in commands().walk()}
    return {**found, f"{DEFAULT_FILE.name}.5": settings_page(settings())}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content)
