"""The script for fish 3 and later."""

from collections.abc import Iterator

from netplug.cli import COMPLETE
from netplug.cli.command_tree import Command
from netplug.cli.completion.kinds import ASKED, Value, arguments, brief, options

_HEAD = "# Completion of netplug in fish, as `netplug completion fish` prints it."


def script(root: Command) -> str:
    """Return the script."""
    lines = [_HEAD, "", *_functions(root), "", "complete -c netplug -f"]
    for command in root.walk():
        lines += _lines(command)
    return "\n".join(lines) + "\n"


def _functions(root: Command) -> Iterator[str]:
    paths = " ".join(_quoted(it.words) for it in root.walk() if len(it.path) > 1)
    found = [(flags, value) for it in root.walk() for flags, value, _ in options(it)]
    switches = {flag for flags, value in found if value is None for flag in flags}
    valued = sorted({flag for flags, value in found if value is not None for flag in flags} - switches)
    yield f"""# The command on the line, then the number of its arguments before the cursor.
function __netplug_place
    set -l path netplug
    set -l count 0
    set -l skip 0
    set -l tokens (commandline -opc)
    for word in $tokens[2..]
        if test $skip = 1
            set skip 0
        else if contains -- $word {" ".join(valued)}
            set skip 1
        else if string match -q -- '-*' $word
        else if contains -- "$path $word" {paths}
            set path "$path $word"
        else
            set count (math $count + 1)
        end
    end
    echo $path
    echo $count
end

# __netplug_at COMMAND [ARGUMENT…]: whether the cursor is in this command, at the one of these arguments (0, 1, …).
function __netplug_at
    set -l place (__netplug_place)
    test "$argv[1]" = $place[1]; and begin
        test (count $argv) -lt 2; or contains -- $place[2] $argv[2..]
        or test "$argv[-1]" = more -a $place[2] -ge "$argv[2]"
    end
end

# __netplug_ask KIND: what the daemon knows.
function __netplug_ask
    set -l tokens (commandline -opc)
    set -l at (contains -i -- --run-dir $tokens); and set -lx NETPLUG_RUN_DIR $tokens[(math $at + 1)]
    command $tokens[1] {COMPLETE} $argv[1] 2>/dev/null
end"""


def _lines(command: Command) -> Iterator[str]:
    here = "-n " + _quoted(f'__netplug_at "{command.words}"')
    for it in command.commands:
        yield f"complete -c netplug {here} -a {it.path[-1]} -d {_quoted(brief(it.summary))}"
    for flags, value, text in options(command):
        named = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in flags)
        after = "" if value is None else f" {_taking(value)}"
        yield f"complete -c netplug {here} {named}{after} -d {_quoted(text)}"
    for index, (value, repeated) in enumerate(arguments(command)):
        place = f'__netplug_at "{command.words}" {index}{" more" if repeated else ""}'
        if value.kind == "files":
            yield f"complete -c netplug -n {_quoted(place)} -F"
        elif value != Value():
            yield f"complete -c netplug -n {_quoted(place)} -a {_quoted(_words(value))}"


def _taking(value: Value) -> str:
    """Return how an option takes a value."""
    if value.kind == "files":
        return "-r -F"
    return f"-x -a {_quoted(_words(value))}" if value != Value() else "-x"


def _words(value: Value) -> str:
    if value.kind in ASKED:
        return f"(__netplug_ask {value.kind})"
    return "(__fish_complete_directories)" if value.kind == "folders" else " ".join(value.words)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
