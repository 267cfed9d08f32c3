"""What `netplug capture` shows or writes."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import IO

import typer

from netplug import __version__
from netplug.cli import NO, PIPE_CLOSED, CliError
from netplug.cli.capturing import Event, Reading, Source
from netplug.cli.dropping import Dropping
from netplug.cli.output import counted, emit, note_line
from netplug.insight.capture.dns import PATIENCE_NS, Pairs
from netplug.insight.capture.packets import dns_payload, summary
from netplug.insight.capture.pcapng import Writer
from netplug.kernel.probes.capture import MOST_BYTES, Packet


class Pcapng:
    """Writes a file, or to a pipe, in pieces."""

    def __init__(self, file: IO[bytes], sources: Sequence[Source]) -> None:
        self._file = file
        self._writer = writer = Writer(file, f"netplug {__version__}")
        self._numbers = {
            it: writer.interface(it.label, it.described, MOST_BYTES, expression=it.expression, comment=it.clock)
            for it in sources
        }
        file.flush()

    def packet(self, source: Source, packet: Packet, rule: str) -> None:
        comment = f"dropped by {rule}" if rule else ""
        number, data = self._numbers[source], packet.data
        self._writer.packet(number, packet.time_ns, data, packet.length, sent=packet.sent, comment=comment)

    def flush(self) -> None:
        self._file.flush()

    def end(self) -> None:
        for source, number in self._numbers.items():
            dropped = (source.tap.dropped if source.tap else source.dropped) + source.lost
            self._writer.statistics(number, time.time_ns(), source.seen, dropped)
        self._file.flush()


class Lines:
    """Shows packets, or DNS questions with their answers, as lines."""

    def __init__(self, sources: Sequence[Source], *, dns: bool) -> None:
        ends = {source.end["id"] for source in sources}
        self._several = len(sources) > 1 and not (dns and len(ends) == 1)
        self._pairs = Pairs() if dns else None
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def packet(self, source: Source, packet: Packet, rule: str) -> None:
        found = summary(packet.data)
        if self._pairs is None:
            way = "out" if packet.sent else "in "
            words = f"{way} {found.source} → {found.destination}  {found.protocol} {packet.length}  {found.words}"
            self._print(packet.time_ns, source, f"{words}  dropped by {rule}" if rule else words)
            return
        for asked in self._pairs.take(packet.time_ns, found.source, found.destination, dns_payload(found)):
            self._print(asked.time_ns, source, asked.line)

    def flush(self) -> None:
        self._unanswered(PATIENCE_NS)

    def end(self) -> None:
        self._unanswered(0)

    def _unanswered(self, patience_ns: int) -> None:
        for asked in self._pairs.unanswered(time.time_ns(), patience_ns) if self._pairs else ():
            emit(f"{_clock(asked.time_ns)} {asked.line}")

    def _print(self, time_ns: int, source: Source, words: str) -> None:
        line = f"{_clock(time_ns)} {f'{source.label}  ' if self._several else ''}{words}"
        emit(line[: self._width] if self._width else line)


def _clock(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds):%H:%M:%S}.{rest // 1000:06d}"  # noqa: DTZ006 - the local time


def show(reading: Reading | Dropping, write: str, count: int, *, dns: bool) -> int:
    """Show packets, or write them to a file, until the end; return how many.

    Raises:
        CliError: the file cannot be written.
    """
    with _output(write) as file, _ended_by_signals():
        return _shown(reading, file, count, dns=dns)


def _shown(reading: Reading | Dropping, file: IO[bytes] | None, count: int, *, dns: bool) -> int:
    shown, sources = 0, reading.sources
    try:
        output = Pcapng(file, sources) if file else Lines(sources, dns=dns)
        note_line("capturing " + "; ".join(it.described for it in sources) + " (end with Ctrl-C)")
        try:
            for event in reading.events():
                shown += _take(output, event)
                if count and shown >= count:
                    break
        except KeyboardInterrupt:
            for event in reading.rest():
                shown += _take(output, event)
        output.end()
    except BrokenPipeError:
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as exc:
        raise CliError(NO, "the capture cannot be written", hint=(exc.strerror or "").lower()) from None
    return shown


def _take(output: Pcapng | Lines, event: Event | None) -> int:
    if event is None:
        output.flush()
        return 0
    output.packet(*event)
    return 1


def summarize(reading: Reading | Dropping, shown: int) -> None:
    """Say how many packets there were, and whether any are missing."""
    sources = reading.sources
    parts = [f"{counted(shown, 'packet')} captured"]
    parts.append(f"{sum(it.dropped for it in sources)} dropped by the kernel")
    if lost := sum(it.lost for it in sources):
        parts.append(f"{lost} of other hosts cut: more than can be fetched through the store")
    note_line(", ".join(parts))
    for source in sources:
        if source.ended:
            note_line(f"{source.label}: {source.ended}")
    for lack in reading.lacks:
        note_line(lack)


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


def _output(write: str) -> AbstractContextManager[IO[bytes] | None]:
    """Open the file; None: lines are shown."""
    if not write:
        return nullcontext()
    try:
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb") if write == "-" else Path(write).open("wb")
    except OSError as exc:
        raise CliError(NO, f"{write} cannot be written", hint=exc.strerror or "") from None
