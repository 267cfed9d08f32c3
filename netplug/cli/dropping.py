"""`netplug capture --drops`: packets of a container that rules drop, with the rule."""

import select
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from netplug.cli import NO, USAGE, CliError
from netplug.cli.capturing import Event, Source, name_of, place_of, turns
from netplug.cli.output import counted
from netplug.insight.capture.rules import described
from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes.capture import Packet
from netplug.kernel.probes.filter_run import accepts

if TYPE_CHECKING:
    from netplug.kernel.probes.drops import Drops


class Dropping:
    """Reads what is dropped of some endpoints, as `Reading` does what passes."""

    def __init__(
        self, ends: list[dict[str, Any]], code: Sequence[Instruction], expression: str, seconds: float
    ) -> None:
        self._code = code
        self._traces: list[tuple[Source, Drops]] = []
        self._seconds = seconds
        try:
            for end in ends:
                self._traces.append(_opened(end, expression))
        except BaseException:
            self.close()
            raise

    @property
    def sources(self) -> list[Source]:
        """One for each endpoint."""
        return [source for source, _ in self._traces]

    @property
    def notes(self) -> list[str]:
        """What to know before it begins."""
        return _once(
            f"iptables-legacy drops too, {'in its sandbox' if netns else 'on the host'} (rules that do: {count}). "
            "These packets cannot be shown; at the end it is said which rules have dropped any"
            for _, trace in self._traces
            for netns, count in trace.legacy().items()
        )

    @property
    def lacks(self) -> list[str]:
        """What cannot be seen, and what could only be counted."""
        unseen = (
            f"not shown: {described(rule)}: {counted(rule.packets, 'packet')} meanwhile"
            f"{'' if rule.netns else ', of any sender'}"
            for _, trace in self._traces
            for rule in trace.legacy_drops()
        )
        return _once([*(it for _, trace in self._traces for it in trace.lacks), *unseen])

    def events(self) -> Iterator[Event | None]:
        """Yield dropped packets, and None in each turn, until the time is over."""
        sockets = [sock for _, trace in self._traces for sock in trace.sockets]
        for turn_s in turns(self._seconds):
            select.select(sockets, (), (), turn_s)
            yield from self.rest()
            yield None

    def rest(self) -> Iterator[Event]:
        """Yield what was dropped by now."""
        for source, trace in self._traces:
            for drop in (it for it in trace.read() if accepts(self._code, it.frame)):
                source.seen += 1
                packet = Packet(time.time_ns(), drop.sent, _length(drop.frame), drop.frame)
                yield source, packet, described(drop.rule)

    def close(self) -> None:
        """End the traces."""
        for _, trace in self._traces:
            trace.close()


def _once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _opened(end: dict[str, Any], expression: str) -> "tuple[Source, Drops]":
    from netplug.kernel.probes.drops import Drops  # noqa: PLC0415

    if not end["here"]:
        words = f"what is dropped of {name_of(end)!r} is seen on its host alone"
        raise CliError(USAGE, words, hint=f"run the command on {end['host']}")
    trace = Drops(place_of(end), end["addresses"])
    try:
        trace.open()
    except OSError as exc:
        trace.close()
        raise CliError(NO, f"rules cannot be traced: {(exc.strerror or '').lower()}", hint="run as root") from None
    return Source(end, "drops", expression=expression, dropping=True), trace


def _length(frame: bytes) -> int:
    """Return the length of a frame of which only the headers are known."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) >= 34:
        return max(14 + int.from_bytes(frame[16:18], "big"), len(frame))
    if kind == b"\x86\xdd" and len(frame) >= 54:
        return max(54 + int.from_bytes(frame[18:20], "big"), len(frame))
    return len(frame)
