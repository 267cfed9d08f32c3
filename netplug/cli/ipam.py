"""`netplug ipam`: show address pools and leases."""

from typing import Any

import typer

from netplug.cli import NO, OK
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

app = typer.Typer(help="Show address pools and leases.")


@app.command("ls")
def ls(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """List address pools and their leases.

    Pools are shown with size and use, leases with their owners.
    """
    pools = Client(run_dir.absolute()).get("ipam")["pools"]
    if as_json:
        emit_json(pools)
        return
    emit(_pools(pools))
    emit("")
    emit(_leases(pools))


def _pools(pools: list[dict[str, Any]]) -> str:
    columns = ("space", "subnet", "range", "size", "used", "kept", "networks")
    return table(
        columns,
        [
            (
                pool["space"],
                pool["subnet"],
                pool["range"] or "",
                str(pool["size"]),
                str(pool["used"]),
                str(pool["kept"]),
                pool["networks"] or [""],
            )
            for pool in pools
        ],
    )


def _leases(pools: list[dict[str, Any]]) -> str:
    columns = ("subnet", "address", "owner", "name", "owner id", "host", "until")
    return table(
        columns,
        [
            (
                pool["subnet"],
                lease["address"],
                lease["owner_kind"],
                lease["owner_name"],
                short(lease["owner_id"]),
                lease["host"],
                lease["until"] or "",
            )
            for pool in pools
            for lease in pool["leases"]
        ],
    )


@app.command("audit")
def audit(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show differences between leases and endpoints.

    This includes leaked leases. Exit code 0: there are none; 1: there are some.
    """
    found = Client(run_dir.absolute()).get("ipam/audit")["findings"]
    if as_json:
        emit_json(found)
    else:
        rows = [(one["subnet"], one["address"], one["what"]) for one in found]
        emit(table(("subnet", "address", "what"), rows) if rows else "no findings")
    raise typer.Exit(NO if found else OK)
