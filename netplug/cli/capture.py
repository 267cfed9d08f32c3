"""`netplug capture`: the packets of a container, which needs no tools for it."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from netplug import __version__
from netplug.cli import NO, PIPE_CLOSED, USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, RunDir
from netplug.cli.output import emit, note_line

if TYPE_CHECKING:
    from netplug.cli.capturing import Elsewhere, Event, Reading, Source
    from netplug.cli.dropping import Dropping
    from netplug.insight.capture.dns import Asked

_End: TypeAlias = dict[str, Any]
_DNS, _DNS_IN_SANDBOX = "port 53", "host 127.0.0.11"
"""Docker's containers ask at 127.0.0.11, by whatever port Docker has chosen in their sandbox."""
_MOST_ENDS = 16
_ELSEWHERE_BYTES = 256
"""Of a packet on another host, by default: they come through the shared store."""
_MOST_BYTES = 262_144

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
    _check(write, count, seconds, snaplen, dns=dns)
    if drops and (dns or both_ends):
        raise CliError(USAGE, "--drops shows the drops of one endpoint: it does not go with --dns or --both-ends")
    from netplug.cli.capturing import Reading  # noqa: PLC0415 - takes 0.2 s
    from netplug.cli.dropping import Dropping  # noqa: PLC0415

    client, text = Client(run_dir.absolute()), " ".join(filters or [])
    found = client.get("capture", endpoint=endpoint, **({"others": "true"} if both_ends or "host" in text else {}))
    reading: Reading | Dropping
    if drops:
        text = _with_names(text, [*found["ends"], *found["others"]])
        reading = Dropping(found["ends"], _compiled(text, _MOST_BYTES), text, seconds or 0.0)
    else:
        reading = Reading(*_opened(client, found, text, snaplen, both_ends=both_ends, dns=dns), seconds or 0.0)
    for note in reading.notes:
        note_line(note)
    try:
        with _output(write) as file, _ended_by_signals():
            shown = _run(reading, file, count or 0, dns=dns)
    finally:
        reading.close()
    _summarize(reading, shown)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the capture as Ctrl-C does, so that a file has all packets to its end."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _check(write: str, count: int | None, seconds: float | None, snaplen: int, *, dns: bool) -> None:
    for option, number in (("-c", count), ("--seconds", seconds)):
        if number is not None and not number > 0:  # nor nan
            raise CliError(USAGE, f"{option} {number:g} would end before the first packet", hint="give more than 0")
    if snaplen < 0:
        raise CliError(USAGE, f"--snaplen {snaplen} is negative")
    if snaplen > _MOST_BYTES:
        raise CliError(USAGE, f"--snaplen {snaplen} is more than a packet has", hint=f"at most {_MOST_BYTES}")
    if write == "-" and sys.stdout.isatty():
        raise CliError(USAGE, "-w - would write binary data to this terminal", hint="add: | wireshark -k -i -")
    if write and dns:
        raise CliError(USAGE, "--dns shows lines and -w writes packets", hint="use 'port 53' as the filter of -w")


# Sources


def _opened(
    client: Client, found: dict[str, Any], text: str, snaplen: int, *, both_ends: bool, dns: bool
) -> "tuple[list[Source], list[Elsewhere]]":
    """Open all links. Those of the ends that are meant come first, and must be there."""
    from netplug.cli.capturing import name_of  # noqa: PLC0415

    ends, others = found["ends"], found["others"]
    text = _with_names(text, [*ends, *others])
    here: list[Source] = []
    elsewhere: list[Elsewhere] = []
    for end in ends:
        expression = _both(text, _DNS if dns else "")
        _open(client, end, expression, snaplen, here, elsewhere)
        if dns and end["here"] and end["sandbox"]:
            _open_loopback(end, _both(text, _DNS_IN_SANDBOX), snaplen, here)
    addresses = [address for end in ends for address in end["addresses"]]
    for end in _chosen(text, others) if both_ends else ():
        expression = _both(_both(text, " or ".join(f"host {it}" for it in addresses)), _DNS if dns else "")
        try:
            _open(client, end, expression, snaplen, here, elsewhere)
        except CliError as exc:
            if exc.code == USAGE:
                raise
            note_line(f"the other end {name_of(end)!r} is not read: {exc}")
    return here, elsewhere


def _open(
    client: Client, end: _End, expression: str, snaplen: int, here: "list[Source]", elsewhere: "list[Elsewhere]"
) -> None:
    from netplug.cli.capturing import Elsewhere, Source, name_of, open_here  # noqa: PLC0415
    from netplug.kernel.probes.capture import CaptureError  # noqa: PLC0415

    if not end["here"]:
        other = Elsewhere(client, Source(end, expression=expression))
        other.start(_compiled(expression, snaplen or _ELSEWHERE_BYTES))
        elsewhere.append(other)
        return
    try:
        here.append(open_here(end, _compiled(expression, snaplen or _MOST_BYTES), expression))
    except CaptureError as exc:
        raise CliError(NO, f"the packets of {name_of(end)!r} cannot be read: {exc}") from None


def _open_loopback(end: _End, expression: str, snaplen: int, here: "list[Source]") -> None:
    from netplug.cli.capturing import open_here  # noqa: PLC0415
    from netplug.kernel.probes.capture import CaptureError  # noqa: PLC0415

    with suppress(CaptureError):  # then its other link is read, and it was said why
        here.append(open_here(end, _compiled(expression, snaplen or _MOST_BYTES), expression, loopback=True))


def _compiled(expression: str, most_bytes: int) -> list[tuple[int, int, int, int]]:
    from netplug.kernel.probes.filter_language import FilterError  # noqa: PLC0415
    from netplug.kernel.probes.filters import compiled  # noqa: PLC0415

    try:
        return compiled(expression, most_bytes)
    except FilterError as exc:
        raise CliError(USAGE, f"filter {expression[:200]!r}: {exc}") from None


def _both(left: str, right: str) -> str:
    return f"({left}) and ({right})" if left and right else left or right


def _with_names(text: str, ends: Sequence[_End]) -> str:
    """Replace names of containers behind 'host' by their addresses."""
    addresses = {name: end["addresses"] for end in ends for name in (end["name"], end["container"]) if name}
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    found: list[str] = []
    for word in words:
        if found and found[-1] == "host" and word in addresses:
            found.pop()
            way = [found.pop()] if found and found[-1] in {"src", "dst"} else []
            each = [" ".join((*way, "host", address)) for address in addresses[word]]
            found.append(f"({' or '.join(each)})")
        else:
            found.append(word)
    return " ".join(found)


def _chosen(text: str, others: Sequence[_End]) -> list[_End]:
    """Return the other ends: those whose addresses the filter has, or all."""
    named = set(text.replace("(", " ").replace(")", " ").split())
    chosen = [end for end in others if named.intersection(end["addresses"])] or list(others)
    if len(chosen) > _MOST_ENDS:
        words = f"--both-ends would read {len(chosen)} endpoints (at most {_MOST_ENDS})"
        raise CliError(USAGE, words, hint="name the other end by the filter: host NAME")
    return chosen


# Output


class _Pcapng:
    """Writes a file, or to a pipe, in pieces."""

    def __init__(self, file: IO[bytes], sources: "Sequence[Source]") -> None:
        from netplug.insight.capture.pcapng import Writer  # noqa: PLC0415

        self._file = file
        self._writer = writer = Writer(file, f"netplug {__version__}")
        self._numbers = {
            it: writer.interface(it.label, it.described, _MOST_BYTES, expression=it.expression, comment=it.clock)
            for it in sources
        }
        file.flush()

    def packet(self, source: "Source", packet: Any, rule: str) -> None:
        comment = f"dropped by {rule}" if rule else ""
        number, data = self._numbers[source], packet.data
        self._writer.packet(number, packet.time_ns, data, packet.length, sent=packet.sent, comment=comment)

    def flush(self) -> None:
        self._file.flush()

    def end(self, sources: "Sequence[Source]") -> None:
        for source in sources:
            dropped = (source.tap.dropped if source.tap else source.dropped) + source.lost
            self._writer.statistics(self._numbers[source], time.time_ns(), source.seen, dropped)
        self._file.flush()


def _output(write: str) -> AbstractContextManager[IO[bytes] | None]:
    """Open the file; None: lines are shown."""
    if not write:
        return nullcontext()
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb") if write == "-" else Path(write).open("wb")
    except OSError as exc:
        raise CliError(NO, f"{write} cannot be written", hint=exc.strerror or "") from None


def _run(reading: "Reading | Dropping", file: IO[bytes] | None, count: int, *, dns: bool) -> int:
    """Show or write packets until the end; return how many."""
    shown, sources = 0, reading.sources
    try:
        output = _Pcapng(file, sources) if file else _Lines(sources, dns=dns)
        _begin(sources)
        events = reading.events()
        try:
            for event in events:
                shown += _take(output, event)
                if count and shown >= count:
                    break
        except KeyboardInterrupt:
            for event in reading.rest():
                shown += _take(output, event)
        output.end(sources)
    except BrokenPipeError:
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as exc:
        raise CliError(NO, "the capture cannot be written", hint=(exc.strerror or "").lower()) from None
    return shown


def _take(output: "_Pcapng | _Lines", event: "Event | None") -> int:
    if event is None:
        output.flush()
        return 0
    output.packet(*event)
    return 1


class _Lines:
    """Shows packets, or DNS questions with their answers, as lines."""

    def __init__(self, sources: "Sequence[Source]", *, dns: bool) -> None:
        from netplug.insight.capture.dns import Pairs  # noqa: PLC0415

        ends = {source.end["id"] for source in sources}
        self._several = len(sources) > 1 and not (dns and len(ends) == 1)
        self._pairs = Pairs() if dns else None
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def packet(self, source: "Source", packet: Any, rule: str) -> None:
        from netplug.insight.capture.packets import dns_payload, summary  # noqa: PLC0415

        found = summary(packet.data)
        if self._pairs is None:
            way = "out" if packet.sent else "in "
            words = f"{way} {found.source} → {found.destination}  {found.protocol} {packet.length}  {found.words}"
            self._print(packet.time_ns, source, f"{words}  dropped by {rule}" if rule else words)
            return
        for asked in self._pairs.take(packet.time_ns, found.source, found.destination, dns_payload(found)):
            self._print(asked.time_ns, source, asked.line)

    def flush(self) -> None:
        if self._pairs:
            _unanswered(self._pairs.unanswered(time.time_ns()))

    def end(self, sources: "Sequence[Source]") -> None:
        del sources
        if self._pairs:
            _unanswered(self._pairs.unanswered(time.time_ns(), patience_ns=0))

    def _print(self, time_ns: int, source: "Source", words: str) -> None:
        line = f"{_clock(time_ns)} {f'{source.label}  ' if self._several else ''}{words}"
        emit(line[: self._width] if self._width else line)


def _unanswered(questions: "Iterable[Asked]") -> None:
    for asked in questions:
        emit(f"{_clock(asked.time_ns)} {asked.line}")


def _clock(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds):%H:%M:%S}.{rest // 1000:06d}"  # noqa: DTZ006 - the local time


def _begin(sources: "Sequence[Source]") -> None:
    note_line("capturing " + "; ".join(source.described for source in sources) + " (end with Ctrl-C)")


def _summarize(reading: "Reading | Dropping", shown: int) -> None:
    """Say how many packets there were, and whether any are missing."""
    sources = reading.sources
    parts = [f"{shown} packet{'' if shown == 1 else 's'} captured"]
    parts.append(f"{sum(it.dropped for it in sources)} dropped by the kernel")
    if lost := sum(it.lost for it in sources):
        parts.append(f"{lost} of other hosts cut: more than can be fetched through the store")
    note_line(", ".join(parts))
    for source in sources:
        if source.ended:
            note_line(f"{source.label}: {source.ended}")
    for lack in reading.lacks:
        note_line(lack)
