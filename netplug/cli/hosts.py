"""`netplug host`: the hosts of the cluster."""

from typing import Annotated

import typer

from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

app = typer.Typer(help="List, forget and move the hosts of the cluster.")


@app.command("ls")
def ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List the hosts of the cluster.

    The list shows for each host whether it is alive, its VTEP, the version of its daemon, its numbers of endpoints
    and addresses, and its faults. Daemons before 0.2.0 do not say their version.
    """
    found = Client(run_dir.absolute()).get("hosts")["hosts"]
    if as_json:
        emit_json(found)
        return
    emit(
        table(
            ("id", "name", "vtep", "alive", "version", "endpoints", "addresses", "note"),
            [
                (
                    short(one["id"]),
                    one["name"],
                    one["vtep"] or "",
                    "this host" if one["me"] else "yes" if one["alive"] else "no",
                    one.get("version") or "-",  # also of a former daemon
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
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name, id, or unique prefix of an id.")],
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Remove a dead host from the cluster.

    Its endpoints, addresses and Docker memberships are removed.

    The command is refused while the host's daemon is alive, and for 15 s afterwards. If the host comes back
    nevertheless, it publishes its endpoints again. It logs addresses that others have got meanwhile as lost.
    """
    Client(run_dir.absolute()).delete("hosts", host)


@app.command("rebind")
def rebind(run_dir: RunDir = RUN_DIR) -> None:
    """Adopt the identity of a host whose state was moved here.

    From then on, this machine is the host in the state directory.

    Without this command, a daemon is not admitted to the cluster if its state comes from another machine, or is a copy
    of a live host's. The command is refused while the other daemon is alive, and for 15 s afterwards.
    """
    Client(run_dir.absolute()).post("hosts", "rebind", body={})
