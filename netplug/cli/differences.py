"""`netplug diff` and `netplug repair`: differences between records and kernel."""

from typing import Any

import typer

from netplug.cli import NO, OK, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import counted, emit, emit_json, table


def diff(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show differences between records and kernel.

    The records say what was requested. They are compared with links, addresses, firewall rules and the records of
    other hosts. Exit code 0: there are no differences; 1: there are some.
    """
    answer = Client(run_dir.absolute()).get("diff")
    found = answer["differences"]
    if as_json:
        emit_json(found)
    else:
        emit(_differences(found) if found else _agreed(answer))
    raise typer.Exit(NO if found else OK)


def repair(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Repair the differences that 'diff' shows.

    The command prints what it repaired and what remains. Exit code 0: nothing remains; 1: something remains.
    """
    client = Client(run_dir.absolute())
    repaired = client.post("repair")["differences"]
    left = client.get("diff")["differences"]
    if as_json:
        emit_json(repaired)
    else:
        parts = [
            f"{word}:\n{_differences(rows)}" for word, rows in (("repaired", repaired), ("remaining", left)) if rows
        ]
        emit("\n".join(parts) or "nothing to repair")
    if left:
        count = "1 difference remains" if len(left) == 1 else f"{len(left)} differences remain"
        raise CliError(NO, f"{count} after the repair", hint="see the log of netplug serve")


def _differences(found: list[dict[str, str]]) -> str:
    return table(("owner", "object", "what"), [(row["owner"], row["object"], row["what"]) for row in found])


def _agreed(answer: dict[str, Any]) -> str:
    """Return in one line what was compared."""
    if "networks" not in answer:
        return "no differences"  # by a daemon of a former version
    networks, endpoints = counted(answer["networks"], "network"), counted(answer["endpoints"], "endpoint")
    return f"no differences: {networks} and {endpoints} compared with the kernel"
