"""`netplug ps`: the endpoints of all runtimes."""

from typing import Annotated

import typer

from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, note, short, table


def ps(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only endpoints of this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """List endpoints with their addresses and published ports.

    An endpoint is the attachment of one container, or one namespace, to one network. In a network of a cluster, the
    list includes the endpoints of all hosts; it shows published ports only for this host. "(added)" marks those that
    'publish' added.
    """
    query = {"network": network} if network else {}
    answer = Client(run_dir.absolute()).get("endpoints", **query)
    note(answer)
    rows = answer["endpoints"]
    if as_json:
        emit_json(rows)
        return
    columns = ("id", "network", "name", "container", "addresses", "mac", "host", "front end", "ports")
    emit(
        table(
            columns,
            [
                (
                    short(row["id"]),
                    row["network"],
                    row["name"],
                    short(row["container"]),
                    [address.partition("/")[0] for address in row["addresses"]],
                    row["mac"],
                    row["host"],
                    row["front_end"],
                    marked(row),
                )
                for row in rows
            ],
        )
    )


def marked(row: dict[str, list[str]]) -> list[str]:
    """Return the ports of an endpoint, with a mark at those that 'publish' added."""
    return [f"{port} (added)" if port.partition(" ")[0] in row["added_ports"] else port for port in row["ports"]]
