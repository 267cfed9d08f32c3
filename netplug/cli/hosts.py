"""`netplug host`: the hosts that share networks."""

from typing import Annotated

import typer

from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

app = typer.Typer(help="List, forget and move the hosts that share networks.")


@app.command("ls")
def ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List the hosts that share networks.

    Whether each lives, where the others tunnel to, what it has, and what is wrong with it.
    """
    found = Client(run_dir.absolute()).get("hosts")["hosts"]
    if as_json:
        emit_json(found)
        return
    emit(
        table(
            ("id", "name", "vtep", "alive", "endpoints", "addresses", "note"),
            [
                (
                    short(one["id"]),
                    one["name"],
                    one["vtep"] or "",
                    "this host" if one["me"] else "yes" if one["alive"] else "no",
                    str(one["endpoints"]),
                    str(one["addresses"]),
                    "; ".join(one["notes"]),
                )
                for one in found
            ],
        )
    )


@app.command("forget")
def forget(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name, id, or beginning of an id.")],
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Give up a dead host.

    Its endpoints and addresses go, and what its Docker had is not waited for any more.

    Refused while its daemon lives, or did less than 15 s ago. If the host comes back all the same, it tells of
    what it has again; an address that somebody else has by then is logged there as lost.
    """
    Client(run_dir.absolute()).delete("hosts", host)


@app.command("rebind")
def rebind(run_dir: RunDir = RUN_DIR) -> None:
    """Take over the host whose state was moved here.

    From now on this machine is the host that the state here says.

    Until then a daemon whose state was made on another machine, or that is a copy of one that lives, is not let into
    the cluster. Refused while the other one lives, or did less than 15 s ago.
    """
    Client(run_dir.absolute()).post("hosts", "rebind", body={})
