"""`netplug completion`: the script of a shell."""

from importlib import import_module
from typing import Annotated

import typer

from netplug.cli import USAGE, CliError
from netplug.cli.output import emit

SHELLS = ("bash", "zsh", "fish")


def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print the script that completes commands in a shell.

    Names of networks, endpoints and hosts are completed as the daemon knows them. For bash, put this into ~/.bashrc:
    eval "$(netplug completion bash)". For zsh, the same with zsh into ~/.zshrc after compinit. For fish: netplug
    completion fish > ~/.config/fish/completions/netplug.fish.
    """
    if shell not in SHELLS:
        raise CliError(USAGE, f"shell {shell[:80]!r} is not one of {', '.join(SHELLS)}")
    emit(script(shell).rstrip("\n"))


def script(shell: str) -> str:
    """Return the script for a shell of `SHELLS`."""
    from netplug.cli.command_tree import commands  # noqa: PLC0415 - imports all commands

    text: str = import_module(f"netplug.cli.completion.{shell}").script(commands())
    return text
