"""The commands of `netplug`, by the places where they are. Their help texts are the manual."""

from typing import Annotated

import typer

from netplug import __version__
from netplug.cli.lazy import LazyGroup
from netplug.cli.output import emit


class Commands(LazyGroup):
    """All commands, in the order of the help."""

    places = {  # noqa: RUF012 - it is declared in `LazyGroup`
        "attach": "netplug.cli.attaching:attach",
        "detach": "netplug.cli.attaching:detach",
        "publish": "netplug.cli.publishing:publish",
        "unpublish": "netplug.cli.publishing:unpublish",
        "capture": "netplug.cli.capture:capture",
        "top": "netplug.cli.top:top",
        "trace": "netplug.cli.trace:trace",
        "ps": "netplug.cli.endpoints:ps",
        "diff": "netplug.cli.differences:diff",
        "repair": "netplug.cli.differences:repair",
        "version": "netplug.cli.versions:version",
        "graph": "netplug.cli.graph:graph",
        "doctor": "netplug.cli.doctor:doctor",
        "events": "netplug.cli.events:events",
        "completion": "netplug.cli.completion.command:completion",
        "serve": "netplug.cli.serving:serve",
        "install-service": "netplug.cli.installing:install_service",
        "uninstall": "netplug.cli.installing:uninstall",
        "network": "netplug.cli.networks:app",
        "ipam": "netplug.cli.ipam:app",
        "dns": "netplug.cli.names:app",
        "cni": "netplug.cli.cni:app",
        "host": "netplug.cli.hosts:app",
        "store": "netplug.cli.stores:app",
        "lab": "netplug.cli.lab:app",
    }


app = typer.Typer(
    help="Networks, addresses and published ports for containers of every runtime.\n\n"
    "Exit codes: 0 success; 1 the request was refused, or differences were found; 2 wrong usage; "
    "3 the daemon or its store is unreachable. Errors are one line on stderr.",
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        emit(f"netplug {__version__}")
        raise typer.Exit


@app.callback()
def before_commands(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show this command's version.")
    ] = False,
) -> None:
    """Handle the options before a command."""
