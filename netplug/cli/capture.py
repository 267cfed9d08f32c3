"""`netplug capture`: the packets of a container, which needs no tools for it."""

import sys
from typing import Annotated

import typer

from netplug.cli import USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, RunDir
from netplug.cli.output import note_line

_ELSEWHERE_BYTES = 256
"""Of a packet on another host, by default: they come through the shared store."""

_Endpoint = Annotated[
    str,
    typer.Argument(metavar="ENDPOINT", help="Id or name of an endpoint or container, or NETWORK/NAME."),
]
_Filter = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILTER]...",
        help="Only packets that match, in tcpdump's language: 'tcp port 80 and host 10.1.0.2'. 'host' also takes the "
        "name of a container in the same network.",
        show_default=False,
    ),
]
_Write = Annotated[
    str,
    typer.Option("-w", "--write", metavar="FILE", help="Write pcapng for Wireshark; '-' is stdout."),
]
_Count = Annotated[int | None, typer.Option("-c", "--count", metavar="NUMBER", help="End after so many packets.")]
_Seconds = Annotated[float | None, typer.Option("--seconds", metavar="SECONDS", help="End after this time.")]
_SnapLen = Annotated[
    int,
    typer.Option(
        "-s",
        "--snaplen",
        metavar="BYTES",
        help=f"Keep so many bytes of a packet. Default: all; {_ELSEWHERE_BYTES} of those on other hosts.",
    ),
]
_BothEnds = Annotated[
    bool,
    typer.Option(
        "--both-ends",
        help="Also read what other endpoints of its networks, on all hosts, exchange with it: those that the filter "
        "names by 'host', or all.",
    ),
]
_Drops = Annotated[
    bool,
    typer.Option(
        "--drops",
        help="Only packets that rules of nf_tables drop, each with the rule: in the sandbox and on the host. Slows the "
        "container's traffic meanwhile.",
    ),
]
_Dns = Annotated[bool, typer.Option("--dns", help="Show DNS questions with their answers, one a line.")]


def capture(
    endpoint: _Endpoint,
    filters: _Filter = None,
    write: _Write = "",
    count: _Count = None,
    seconds: _Seconds = None,
    snaplen: _SnapLen = 0,
    both_ends: _BothEnds = False,
    dns: _Dns = False,
    drops: _Drops = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Capture the packets of a container.

    The container needs no tools. OUT is what it sends, IN what it receives. The link is read in its sandbox, or else
    its other side on the host. End it with Ctrl-C. 'netplug capture web -w - | wireshark -k -i -' shows it live.
    """
    _check(write, count, seconds, snaplen, both_ends=both_ends, dns=dns, drops=drops)
    from netplug.cli.capture_links import Links, chosen, compiled, with_names  # noqa: PLC0415 - takes 0.2 s
    from netplug.cli.capture_output import show, summarize  # noqa: PLC0415
    from netplug.cli.capturing import Reading  # noqa: PLC0415
    from netplug.cli.dropping import Dropping  # noqa: PLC0415
    from netplug.kernel.probes.capture import MOST_BYTES  # noqa: PLC0415

    client, text = Client(run_dir.absolute()), " ".join(filters or [])
    found = client.get("capture", endpoint=endpoint, **({"others": "true"} if both_ends or "host" in text else {}))
    ends, others = found["ends"], found["others"]
    text = with_names(text, [*ends, *others])
    reading: Reading | Dropping
    if drops:
        reading = Dropping(ends, compiled(text), text, seconds or 0.0)
    else:
        links = Links(client, snaplen or MOST_BYTES, snaplen or _ELSEWHERE_BYTES, dns=dns)
        links.open_ends(ends, text)
        if both_ends:
            links.open_others(chosen(text, others), ends, text)
        reading = Reading(links.here, links.elsewhere, seconds or 0.0)
    for note in reading.notes:
        note_line(note)
    try:
        shown = show(reading, write, count or 0, dns=dns)
    finally:
        reading.close()
    summarize(reading, shown)


def _check(
    write: str,
    count: int | None,
    seconds: float | None,
    snaplen: int,
    *,
    both_ends: bool,
    dns: bool,
    drops: bool,
) -> None:
    from netplug.kernel.probes.capture import MOST_BYTES  # noqa: PLC0415

    for option, number in (("-c", count), ("--seconds", seconds)):
        if number is not None and not number > 0:  # nor nan
            raise CliError(USAGE, f"{option} {number:g} would end before the first packet", hint="give more than 0")
    if snaplen < 0:
        raise CliError(USAGE, f"--snaplen {snaplen} is negative")
    if snaplen > MOST_BYTES:
        raise CliError(USAGE, f"--snaplen {snaplen} is more than a packet has", hint=f"at most {MOST_BYTES}")
    if write == "-" and sys.stdout.isatty():
        raise CliError(USAGE, "-w - would write binary data to this terminal", hint="add: | wireshark -k -i -")
    if write and dns:
        raise CliError(USAGE, "--dns shows lines and -w writes packets", hint="use 'port 53' as the filter of -w")
    if drops and (dns or both_ends):
        raise CliError(USAGE, "--drops shows the drops of one endpoint: it does not go with --dns or --both-ends")
