"""`netplug events`: what happened, and what happens."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from netplug.cli import USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, RunDir
from netplug.cli.output import emit, note_line, table
from netplug.times import point_in_time

MOST = 10_000
_COLUMNS = ("time", "kind", "object", "what", "cause", "by", "request")


def events(
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only events after this time: '10m' ago, RFC 3339, or Unix time.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each event as it happens.")] = False,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="Only this kind, such as 'drift.healed', or 'drift' for all of them.")
    ] = "",
    network: Annotated[str, typer.Option(metavar="NETWORK", help="Only events of this network: name or id.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line; field names are stable.")] = (
        False
    ),
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Show what happened to networks, endpoints and ports.

    Also to hosts; and heals, differences that stay, faults, and refused requests: each with its cause, who asked, and
    the id of the request in the log. The daemon keeps some ten thousand, over restarts. Equal events in a row are one,
    with a count.
    """
    query = {key: text for key, text in (("since", _since(since)), ("kind", kind), ("network", network)) if text}
    client = Client(run_dir.absolute())
    if follow:
        for event in _stream(client, query):
            emit(json.dumps(event) if as_json else "  ".join(filter(None, _row(event))))
        return
    answer = client.get("events", limit=str(MOST), **query)
    if answer["more"]:
        note_line(f"only the last {MOST} events are shown: use --since, --kind or --network")
    found = answer["events"]
    if as_json:
        for event in found:
            emit(json.dumps(event))
    else:
        emit(table(_COLUMNS, map(_row, found)))


def _since(text: str) -> str:
    try:
        return f"{point_in_time(text):.6f}" if text else ""
    except ValueError as exc:
        raise CliError(USAGE, f"--since: {exc}") from None


def _stream(client: Client, query: dict[str, str]) -> Iterator[dict[str, Any]]:
    for line in client.lines("events", "stream", **query):
        if line.startswith("data:"):
            yield json.loads(line[5:])


def _row(event: dict[str, Any]) -> tuple[str, ...]:
    when = datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    count = f" (x{event['count']})" if event["count"] > 1 else ""
    where = f" of {event['network_name']}" if event["endpoint"] and event["network_name"] else ""
    subject = f"{event['object']}{where}"
    return (
        when,
        event["kind"],
        subject,
        f"{event['what']}{count}".strip(),
        event["cause"],
        event["by"],
        event["request"],
    )
