"""`netplug top`: who receives, sends and asks how much."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

import typer

from netplug.cli import USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, short, table

_Row: TypeAlias = dict[str, Any]
_FIRST_S = 1.0
"""Longest wait for the first rates: the screen shall not stay empty for a long interval."""
_HEADINGS = 12
"""Lines of headings, rules and blank lines of both tables."""
_HOME = "\x1b[H\x1b[J"
"""Move to the top left, and clear the screen below (ECMA-48)."""


def _rate(row: _Row, way: str, what: str) -> float:
    return float(row[way][f"{what}_per_s"])


def _both(what: str) -> Callable[[_Row], float]:
    return lambda row: -_rate(row, "received", what) - _rate(row, "sent", what)


ORDERS: Mapping[str, Callable[[_Row], Any]] = {
    "traffic": _both("bytes"),
    "received": lambda row: -_rate(row, "received", "bytes"),
    "sent": lambda row: -_rate(row, "sent", "bytes"),
    "packets": _both("packets"),
    "drops": _both("dropped"),
    "dns": lambda row: -_rate(row, "dns", "queries"),
    "total": lambda row: -row["received"]["bytes"] - row["sent"]["bytes"],
    "name": lambda row: (row["network"], row["name"], row["id"]),
}

_Network = Annotated[str, typer.Option(metavar="NETWORK", help="Only endpoints of this network.")]
_Sort = Annotated[str, typer.Option(metavar="ORDER", help=f"Order of the rows: {', '.join(ORDERS)}.")]
_Interval = Annotated[
    float, typer.Option("-i", "--interval", metavar="SECONDS", help="Time over which rates are computed.")
]
_Count = Annotated[
    int,
    typer.Option("-n", "--count", metavar="NUMBER", help="End after so many looks. Default: 1 without a terminal."),
]
_Once = Annotated[bool, typer.Option("--once", help="Look once, over one interval, and end; short for -n 1.")]


def top(
    network: _Network = "",
    sort: _Sort = "traffic",
    interval: _Interval = 2.0,
    count: _Count = 0,
    once: _Once = False,
    as_json: AsJson = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Show the traffic of endpoints, live.

    IN is what a container receives, OUT what it sends. Dropped packets are those that its link or queue dropped, such
    as what exceeds a 'rate'; the firewall's are not counted. DNS/S are the queries that a container sends to
    netplug's resolver. It shows endpoints of this host. End it with Ctrl-C.
    """
    if sort not in ORDERS:
        raise CliError(USAGE, f"--sort {sort[:40]!r} is not an order", hint=f"one of {', '.join(ORDERS)}")
    if not 0.1 <= interval <= 3600:
        raise CliError(USAGE, f"--interval {interval:g} is not between 0.1 and 3600 s")
    if count < 0:
        raise CliError(USAGE, f"-n {count} is negative")
    live = sys.stdout.isatty() and not as_json and not once and count != 1
    looks = 1 if once else count or (0 if live else 1)
    try:
        _watch(Client(run_dir.absolute()), network, sort, interval, looks, as_json=as_json, live=live)
    except KeyboardInterrupt:
        if not live:
            raise


def _watch(client: Client, network: str, sort: str, interval: float, looks: int, *, as_json: bool, live: bool) -> None:
    """Print rates. `looks`: how often, 0 for ever."""
    query = {"network": network} if network else {}
    before = client.get("traffic", **query)
    shown = 0
    while not looks or shown < looks:
        time.sleep(interval if shown or not live else min(interval, _FIRST_S))
        now = client.get("traffic", **query)
        found = rates(before, now)
        found["endpoints"].sort(key=ORDERS[sort])
        if as_json:
            emit_json(found)
        else:
            emit(_HOME + render(found, _rows_of_terminal(found)) if live else render(found))
        before, shown = now, shown + 1


def rates(before: _Row, now: _Row) -> _Row:
    """Return the counters of a look with their rates since an earlier one. Rates of what was not there are 0."""
    seconds = max(now["at"] - before["at"], 1e-6)
    then = {row["id"]: row for row in before["endpoints"]}
    asked = {row["network"]: row for row in before["dns"]}
    endpoints = []
    for row in now["endpoints"]:
        old = then.get(row["id"], row)
        ways = {way: _with_rates(row[way], old[way], seconds) for way in ("received", "sent", "dns")}
        endpoints.append(row | ways)
    dns = []
    for row in now["dns"]:
        counts = {key: value for key, value in row.items() if key != "network"}
        dns.append({"network": row["network"]} | _with_rates(counts, asked.get(row["network"], row), seconds))
    return {"interval_s": round(seconds, 3), "endpoints": endpoints, "dns": dns}


def _with_rates(now: Mapping[str, int], before: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Add the rates. A counter that went back belongs to a link that was made anew, and counts from 0."""
    gained = {key: value - before[key] if value >= before[key] else value for key, value in now.items()}
    return {**now, **{f"{key}_per_s": round(value / seconds, 1) for key, value in gained.items()}}


def _rows_of_terminal(found: _Row) -> int:
    """Return how many endpoints fit on the screen."""
    return max(shutil.get_terminal_size().lines - _HEADINGS - len(found["dns"]), 1)


def render(found: _Row, most: int = 0) -> str:
    """Return the tables. `most`: of rows of endpoints; 0 for all."""
    if not found["endpoints"] and not found["dns"]:
        return "no endpoints on this host"
    columns = (
        *("network", "name", "container", "in/s", "out/s", "pkts in/s", "pkts out/s", "drops in/s", "drops out/s"),
        *("dns/s", "in", "out"),
    )
    rows = [
        (
            row["network"],
            row["name"] or short(row["id"]),
            short(row["container"]),
            *(amount(_rate(row, way, "bytes")) for way in ("received", "sent")),
            *(number(_rate(row, way, "packets")) for way in ("received", "sent")),
            *(number(_rate(row, way, "dropped")) for way in ("received", "sent")),
            number(_rate(row, "dns", "queries")),
            *(amount(row[way]["bytes"]) for way in ("received", "sent")),
        )
        for row in found["endpoints"][: most or None]
    ]
    parts = [table(columns, rows)]
    if left := len(found["endpoints"]) - len(rows):
        parts[0] += f"\n… and {left} more"
    if found["dns"]:
        asked = [
            (row["network"], number(row["queries_per_s"]), number(row["failed_per_s"]), str(row["queries"]))
            for row in found["dns"]
        ]
        parts.append(table(("network", "dns queries/s", "failed/s", "dns queries"), asked))
    return "\n\n".join(parts)


def amount(count: float) -> str:
    """Return bytes with a decimal unit.

    >>> [amount(it) for it in (0, 999, 1500, 12_345_678)]
    ['0 B', '999 B', '1.5 kB', '12.3 MB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def number(rate: float) -> str:
    """Return a rate: whole if it is large.

    >>> [number(it) for it in (0, 0.5, 12.3)]
    ['0', '0.5', '12']
    """
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:.0f}"
