"""The script for zsh: it may be a file `_netplug` in fpath, or be evaluated after compinit."""

from collections.abc import Iterator

from netplug.cli import COMPLETE
from netplug.cli.command_tree import Command
from netplug.cli.completion.kinds import ASKED, Value, arguments, brief, options

_HEAD = rf"""#compdef netplug
# Completion of netplug in zsh, as `netplug completion zsh` prints it.

# _netplug_ask KIND: offer what the daemon knows.
_netplug_ask() {{
    local -a found
    local run_dir=${{opt_args[--run-dir]:-$NETPLUG_RUN_DIR}}
    found=("${{(@f)$(NETPLUG_RUN_DIR=$run_dir $netplug_program {COMPLETE} $1 2>/dev/null)}}")
    [[ -n $found ]] || return
    found=(${{found//:/\\:}})
    found=(${{found/$'\t'/:}})
    _describe $1 found
    [[ $1 == namespaces && $PREFIX == */* ]] && _files
}}
"""
_FOOT = """
_netplug() {
    local netplug_program=$words[1]
    _netplug_command
}

if [[ $funcstack[1] == _netplug ]]; then # loaded from fpath by the first Tab
    _netplug
else
    compdef _netplug netplug
fi
"""


def script(root: Command) -> str:
    """Return the script."""
    return "\n".join((_HEAD, *("\n".join(_function(command)) for command in root.walk()))) + "\n" + _FOOT


def _name(command: Command) -> str:
    return "_".join(("_netplug_command", *command.path[1:]))


def _function(command: Command) -> Iterator[str]:
    yield f"{_name(command)}() {{"
    if command.commands:
        yield "    local context state state_descr"
        yield "    local -a line commands"
        yield "    local -A opt_args"
    else:
        yield "    local -A opt_args"
    words = ("-C", *_options(command), *_below()) if command.commands else (*_options(command), *_positions(command))
    yield " \\\n        ".join(("    _arguments -s -S", *words))
    if command.commands:
        yield "    case $state in"
        yield "    command)"
        yield "        commands=("
        for it in command.commands:
            yield f"            {_quoted(it.path[-1] + ':' + brief(it.summary))}"
        yield "        )"
        yield "        _describe command commands"
        yield "        ;;"
        yield "    argument)"
        yield "        case $line[1] in"
        for it in command.commands:
            yield f"        {it.path[-1]}) {_name(it)} ;;"
        yield "        esac"
        yield "        ;;"
        yield "    esac"
    yield "}\n"


def _below() -> tuple[str, str]:
    return "'1:command:->command'", "'*::argument:->argument'"


def _options(command: Command) -> Iterator[str]:
    repeated = {flag for it in command.options if it.repeated for flag in it.flags}
    names = {flag: it.metavar for it in command.options for flag in it.flags}
    for flags, value, text in options(command):
        said = text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        for flag in flags:
            alone = "*" if flag in repeated else f"({' '.join(flags)})"
            after = f":{_escaped(names[flag])}:{_action(value)}" if value is not None else ""
            yield _quoted(f"{alone}{flag}[{said}]{after}")


def _positions(command: Command) -> Iterator[str]:
    for index, (argument, (value, repeated)) in enumerate(zip(command.arguments, arguments(command), strict=True), 1):
        at = "*" if repeated else str(index)
        yield _quoted(f"{at}:{_escaped(argument.usage)}:{_action(value)}")


def _action(value: Value) -> str:
    if value.words and value.words[0].endswith("="):
        return f" compadd -S '' - {' '.join(value.words)}"
    if value.words:
        return f"({' '.join(value.words)})"
    if value.kind in ASKED:
        return f" _netplug_ask {value.kind}"  # the space: it takes no options of compadd
    return {"folders": "_files -/", "files": "_files"}.get(value.kind, "()")


def _escaped(text: str) -> str:
    return text.replace(":", "\\:")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
