"""The script for bash 4.4 and later. It needs no bash-completion."""

from collections.abc import Iterator

from netplug.cli import COMPLETE
from netplug.cli.command_tree import Command
from netplug.cli.completion.kinds import Value, arguments, options

_HEAD = "# Completion of netplug in bash, as `netplug completion bash` prints it."
_BODY = rf"""
# _netplug_offer KIND: add the values of a kind that begin with $cur to COMPREPLY.
_netplug_offer() {{
    local word
    case $1 in
    words:*)
        for word in ${{1#words:}}; do
            [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
        done
        [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
        ;;
    folders | files)
        [[ $1 == folders ]] && word=-d || word=-f
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen "$word" -- "$cur")
        ;;
    ?*)
        while IFS=$'\t' read -r word _; do
            [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
        done < <(NETPLUG_RUN_DIR=${{run_dir:-$NETPLUG_RUN_DIR}} "$program" {COMPLETE} "$1" 2>/dev/null)
        [[ $1 == namespaces && $cur == */* ]] && _netplug_offer files
        ;;
    esac
}}

_netplug() {{
    local program=${{COMP_WORDS[0]}} cur=${{COMP_WORDS[COMP_CWORD]}} path=netplug run_dir= pending= glued= word it i
    local commands flags kind
    local -a arguments
    local -A values
    local -i position=0
    COMPREPLY=()
    _netplug_about "$path"
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $glued ]]; then # the rest of a word that bash has split at '=' or ':'
            glued=
        elif [[ $word == [=:] ]]; then
            [[ $pending ]] || glued=yes
        elif [[ $pending ]]; then
            [[ $pending == --run-dir ]] && run_dir=$word
            pending=
        elif [[ $word == -* ]]; then
            [[ " ${{!values[*]}} " == *" $word "* ]] && pending=$word
        elif [[ " $commands " == *" $word "* ]]; then
            path+=" $word"
            _netplug_about "$path"
        else
            position+=1
        fi
    done
    [[ $glued || $cur == : ]] && return
    if [[ $pending ]]; then
        [[ $cur == = ]] && cur=
        _netplug_offer "${{values[$pending]}}"
    elif [[ $cur == = ]]; then
        return
    elif [[ $cur == -* ]]; then
        _netplug_offer "words:$flags"
    elif [[ $commands ]]; then
        _netplug_offer "words:$commands"
    elif ((${{#arguments[@]}})); then
        it=${{arguments[position < ${{#arguments[@]}} ? position : ${{#arguments[@]}} - 1]}}
        ((position < ${{#arguments[@]}})) || [[ $it == *... ]] || return
        _netplug_offer "${{it%...}}"
    fi
}}

complete -F _netplug netplug
"""


def script(root: Command) -> str:
    """Return the script."""
    about = ["# _netplug_about COMMAND: say what may follow it.", "_netplug_about() {"]
    about += ["    commands= flags= arguments=() values=()", "    case $1 in"]
    about += [line for command in root.walk() for line in _about(command)]
    about += ["    esac", "}"]
    return "\n".join((_HEAD, "", *about)) + "\n" + _BODY


def _about(command: Command) -> Iterator[str]:
    found = options(command)
    yield f"    {_quoted(command.words)})"
    if command.commands:
        yield f"        commands={_quoted(' '.join(it.path[-1] for it in command.commands))}"
    yield f"        flags={_quoted(' '.join(flag for flags, _, _ in found for flag in _listed(flags)))}"
    valued = [f"[{flag}]={_quoted(_kind(value))}" for flags, value, _ in found if value is not None for flag in flags]
    if valued:
        yield f"        values=({' '.join(valued)})"
    if command.arguments:
        kinds = [_quoted(_kind(value) + ("..." if repeated else "")) for value, repeated in arguments(command)]
        yield f"        arguments=({' '.join(kinds)})"
    yield "        ;;"


def _listed(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags that are offered: long ones, where there are any."""
    return tuple(flag for flag in flags if flag.startswith("--")) or flags


def _kind(value: Value) -> str:
    return f"words:{' '.join(value.words)}" if value.words else value.kind


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
