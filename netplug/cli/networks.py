"""`netplug network`: create, list, show, update, remove and prune networks."""

from typing import Annotated

import typer

from netplug.cli import NO, CliError, arguments
from netplug.cli.client import Client
from netplug.cli.inspecting import inspect
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import confirmed, emit, emit_json, note, short, table
from netplug.cli.updating import update

app = typer.Typer(help="Create, list, show, update and remove networks.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the network: letters, digits, '_', '.', '-'.")]
_Mode = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="Mode: bridge (default), host, macvlan, none, overlay, or the mode of another driver.",
    ),
]
_Subnet = Annotated[
    list[str] | None,
    typer.Option(metavar="CIDR", help="Subnet; give it twice for IPv4 and IPv6. Default: a free one."),
]
_Gateway = Annotated[
    list[str] | None,
    typer.Option(
        metavar="IP",
        help="Gateway: the host's address in a --subnet, or with mode macvlan the router's. Default: the first "
        "address; none with macvlan.",
    ),
]
_IpRange = Annotated[
    list[str] | None, typer.Option(metavar="CIDR", help="Part of a --subnet to allocate addresses from.")
]
_Internal = Annotated[bool, typer.Option("--internal", help="Isolate the network: no default route, no ports.")]
_Ipv6 = Annotated[bool, typer.Option("--ipv6", help="Use IPv4 and IPv6: each without a --subnet gets a free one.")]
_Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Create it on all hosts that share the store, with mode overlay; needs --store etcd."
    ),
]
_Option = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="Network option such as icc=false, as with 'docker network create -o'; may be repeated. The error for "
        "an unknown option lists all options.",
    ),
]
_Label = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY[=VALUE]", help="Label: a note of yours, by which 'prune' can choose; may be repeated."),
]


@app.command("create")
def create(
    name: _Name,
    mode: _Mode = None,
    subnet: _Subnet = None,
    gateway: _Gateway = None,
    ip_range: _IpRange = None,
    internal: _Internal = False,
    ipv6: _Ipv6 = False,
    cluster: _Cluster = False,
    option: _Option = None,
    label: _Label = None,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Create a network and print its id."""
    body = {
        "name": name,
        "subnets": arguments.subnets(subnet or [], gateway or [], ip_range or []),
        "internal": internal,
        "ipv6": ipv6,
        "cluster": cluster,
        "options": arguments.options(option or [], mode),
        # Only if given, since a daemon of a former version refuses what it does not know.
        **({"labels": arguments.labels(label)} if label else {}),
    }
    emit(Client(run_dir.absolute()).post("networks", body=body)["id"])


@app.command("ls")
def ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List networks.

    The number of endpoints includes those of all hosts.
    """
    answer = Client(run_dir.absolute()).get("networks")
    note(answer)
    rows = answer["networks"]
    if as_json:
        emit_json(rows)
        return
    columns = ("id", "name", "mode", "subnets", "internal", "front end", "endpoints")
    emit(
        table(
            columns,
            [
                (
                    short(row["id"]),
                    row["name"],
                    row["mode"],
                    [subnet["subnet"] for subnet in row["subnets"]],
                    "yes" if row["internal"] else "no",
                    row["front_end"],
                    str(row["endpoint_count"]),
                )
                for row in rows
            ],
        )
    )


app.command("inspect")(inspect)
app.command("update")(update)


@app.command("rm")
def rm(
    network: Annotated[list[str], typer.Argument(metavar="NETWORK...", help="Names or ids.")], run_dir: RunDir = RUN_DIR
) -> None:
    """Remove networks.

    The command is refused for networks with endpoints, and for Docker's networks (use 'docker network rm').
    """
    client = Client(run_dir.absolute())
    for ref in network:
        client.delete("networks", ref)
        emit(ref)


_Filter = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only networks with label=K or label=K=V, without label!=K or label!=K=V, of mode=MODE, or created before "
        "until=TIME (a time, or a duration such as 24h); may be repeated.",
    ),
]
_Force = Annotated[bool, typer.Option("-f", "--force", help="Do not ask.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")]


@app.command("prune")
def prune(
    filters: _Filter = None,
    force: _Force = False,
    dry_run: _DryRun = False,
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Remove networks without endpoints, and print their names.

    Docker's networks and podman's stay: use 'docker network prune' and 'podman network prune'. With --json, kept
    networks are printed too, with the reason.
    """
    client, chosen = Client(run_dir.absolute()), arguments.filters(filters or [])
    if not force and not dry_run:
        unused = client.post("networks", "prune", body={"filters": chosen, "dry_run": True})["removed"]
        if unused and not confirmed(f"This removes {', '.join(row['name'] for row in unused)}."):
            raise CliError(NO, "nothing was removed", hint="answer y, or give --force")
    answer = client.post("networks", "prune", body={"filters": chosen, "dry_run": dry_run})
    if as_json:
        emit_json(answer)
        return
    for row in answer["removed"]:
        emit(row["name"])
