"""`netplug dns`: DNS names as the containers of a network see them."""

from typing import Annotated

import typer

from netplug.cli import NO, OK
from netplug.cli.client import Client
from netplug.cli.host_names import app as host
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

app = typer.Typer(help="List DNS names, and query them as a container does.")
app.add_typer(host, name="host")


@app.command("ls")
def ls(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only names of this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """List the names and aliases of endpoints.

    In JSON, the first of an endpoint's names is its own; the others are aliases.
    """
    query = {"network": network} if network else {}
    found = Client(run_dir.absolute()).get("dns", **query)["names"]
    if as_json:
        emit_json(found)
        return
    emit(
        table(
            ("network", "name", "aliases", "addresses", "services", "healthy", "endpoint"),
            [
                (
                    one["network"],
                    one["names"][0],
                    one["names"][1:] or [""],
                    one["addresses"],
                    one["services"] or [""],
                    "yes" if one["healthy"] else "no",
                    short(one["endpoint"]),
                )
                for one in found
            ],
        )
    )


@app.command("stats")
def stats(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only queries from this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Count the DNS queries from each network.

    The numbers begin at the daemon's start, and are listed by outcome.
    """
    query = {"network": network} if network else {}
    found = Client(run_dir.absolute()).get("dns", "stats", **query)["networks"]
    if as_json:
        emit_json(found)
        return
    codes = sorted({code for one in found for code in one["answers"]} | {"NOERROR"})
    rest = ("outward", "strangers", "dropped", "faults")
    rows = [
        (
            one["network"],
            *(str(one["answers"].get(code, 0)) for code in codes),
            *(str(one[column]) for column in rest),
        )
        for one in found
    ]
    emit(table(("network", *codes, *rest), rows))


@app.command("query")
def query(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name to query, or an address for its names.")],
    network: Annotated[
        list[str],
        typer.Option(metavar="NETWORK", help="Network of the client; repeat it for a client in several networks."),
    ],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="A, AAAA, PTR, SRV, …")] = "A",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Query a name as a container of a network does.

    Exit code 0: there is an answer; 1: there is none.
    """
    body = {"name": name, "type": kind, "networks": network}
    found = Client(run_dir.absolute()).post("dns", "query", body=body)
    if as_json:
        emit_json(found)
    else:
        rows = [(one["name"], str(one["ttl"]), one["type"], one["data"]) for one in found["answers"]]
        emit(
            table(("name", "ttl", "type", "data"), rows)
            if rows
            else ": ".join(filter(None, (found["code"], found["why"])))
        )
    raise typer.Exit(OK if found["answers"] else NO)
