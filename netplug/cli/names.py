"""`netplug dns`: names as the containers of a network see them."""

from typing import Annotated

import typer

from netplug.cli import NO, OK
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

app = typer.Typer(help="Show names, and ask for one as a container of a network does.")


@app.command("ls")
def ls(
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only those of this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """List the names of the endpoints; all but the first are aliases."""
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
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only those from this network.")] = "",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Count the questions from each network.

    Since the daemon's start, by what became of them.
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to ask for; an address for its names.")],
    network: Annotated[
        list[str],
        typer.Option(metavar="NETWORK", help="Ask as a container of this network; repeat it for one in several."),
    ],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="A, AAAA, PTR, SRV, …")] = "A",
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Ask as a container of a network does.

    Exit 0 when there is an answer, else 1.
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
