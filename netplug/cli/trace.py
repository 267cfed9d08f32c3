"""`netplug trace`: where a packet goes, and why it does not arrive."""

from typing import Annotated, Any

import typer

from netplug.cli import NO, OK, USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, table

_Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Who sends: a container, an endpoint (NETWORK/NAME or an id), an address, 'host' for this host, or "
        "'outside[=ADDRESS]' for somebody beyond it.",
    ),
]
_Destination = Annotated[
    str,
    typer.Argument(
        metavar="DST[:PORT[/PROTO]]",
        help="To whom: the same, or a name as SRC would ask for it. PROTO is tcp (default) or udp; without a port an "
        "echo request is sent (ping). IPv6 addresses with a port are in brackets.",
    ),
]


def trace(source: _Source, destination: _Destination, as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Trace a packet, and say where and why it is lost.

    The path follows from records and routes. One packet is sent and watched at each link, and the first link that it
    does not come to is named, with the cause and a command that mends it. Nothing that is made for this stays. Exit
    code 0: it arrives, and the answer comes back; 1: it does not.
    """
    _check(source, destination)
    answer = Client(run_dir.absolute()).post("trace", body={"source": source, "destination": destination})
    if as_json:
        emit_json(answer)
    else:
        emit(_shown(answer))
    raise typer.Exit(OK if answer["reached"] else NO)


def _check(source: str, destination: str) -> None:
    from netplug.errors import NetplugError  # noqa: PLC0415 - other commands need neither
    from netplug.insight.trace.target import parse_both  # noqa: PLC0415

    try:
        parse_both(source, destination)
    except NetplugError as exc:
        raise CliError(USAGE, exc.message, hint=exc.hint) from None


def _shown(answer: dict[str, Any]) -> str:
    columns = ("", "where", "hop", "verdict", "ms")
    rows = [
        (str(number), hop["where"], hop["what"], hop["verdict"], "" if hop["ms"] is None else f"{hop['ms']:.2f}")
        for number, hop in enumerate(answer["hops"], 1)
    ]
    parts = [f"{answer['source']} to {answer['destination']}: {answer['flow']}", table(columns, rows)]
    parts += [f"note: {note}" for note in answer["notes"]]
    return "\n".join([*parts, "", *_verdict(answer)])


def _verdict(answer: dict[str, Any]) -> list[str]:
    broken = answer["broken"]
    if broken is None:
        return [f"reached, in {answer['took_ms'] / 1000:.1f} s of tracing"]
    number = answer["hops"].index(broken) + 1
    cause = broken["cause"]
    lines = [f"not reached: hop {number}, {broken['where']}: {cause['words'] if cause else broken['what']}"]
    return lines + ([f"mend: {cause['mend']}"] if cause and cause["mend"] else [])
