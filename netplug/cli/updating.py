"""`netplug network update`: change a network under its containers."""

from typing import Annotated

import typer

from netplug.cli import USAGE, CliError, arguments
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, NetworkRef, RunDir
from netplug.cli.output import emit, emit_json, table

_Option = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="Network option such as rate=50mbit; 'KEY=' sets it back to its default. May be repeated.",
    ),
]
_Internal = Annotated[
    str | None, typer.Option(metavar="true|false", help="Isolate the network, or give it external access again.")
]
_Label = Annotated[list[str] | None, typer.Option(metavar="KEY[=VALUE]", help="Set a label; may be repeated.")]
_LabelRm = Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove a label; may be repeated.")]
_SubnetAdd = Annotated[
    list[str] | None,
    typer.Option(metavar="CIDR", help="Add a subnet, for containers that come; its gateway is the first address."),
]
_SubnetRm = Annotated[
    list[str] | None, typer.Option(metavar="CIDR", help="Remove a subnet in which no container has an address.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")]


def update(
    network: NetworkRef,
    option: _Option = None,
    internal: _Internal = None,
    label: _Label = None,
    label_rm: _LabelRm = None,
    subnet_add: _SubnetAdd = None,
    subnet_rm: _SubnetRm = None,
    dry_run: _DryRun = False,
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Change a network while its containers run.

    The command prints which kernel objects change. What cannot change is refused with the reason, and then nothing
    changes.
    """
    wanted = {
        "options": arguments.options(option or [], None),
        "internal": None if internal is None else arguments.boolean(internal, "--internal"),
        "labels": arguments.labels(label or []),
        "remove_labels": label_rm or [],
        "add_subnets": [{"subnet": str(arguments.network(text, "--subnet-add"))} for text in subnet_add or []],
        "remove_subnets": [str(arguments.network(text, "--subnet-rm")) for text in subnet_rm or []],
    }
    if not any(value or value is False for value in wanted.values()):
        raise CliError(USAGE, "nothing to change is given", hint="see netplug network update --help")
    answer = Client(run_dir.absolute()).patch("networks", network, body={**wanted, "dry_run": dry_run})
    if as_json:
        emit_json(answer)
        return
    for text in answer["notes"]:
        typer.echo(f"netplug: {text}", err=True)
    rows = [(one["owner"], one["object"], one["what"]) for one in answer["changes"]]
    emit(table(("owner", "object", "change"), rows) if rows else "no kernel object changes")
