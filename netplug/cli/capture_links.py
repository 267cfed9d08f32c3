"""The links that `netplug capture` reads, and the filters for their packets."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from netplug.cli import NO, USAGE, CliError
from netplug.cli.capturing import Elsewhere, Source, name_of, open_here
from netplug.cli.client import Client
from netplug.cli.output import note_line
from netplug.kernel.host.socket_filters import Instruction
from netplug.kernel.probes import filters
from netplug.kernel.probes.capture import MOST_BYTES, CaptureError
from netplug.kernel.probes.filter_language import FilterError

_End: TypeAlias = dict[str, Any]
_DNS, _DNS_IN_SANDBOX = "port 53", "host 127.0.0.11"
"""Docker's containers ask at 127.0.0.11, by whatever port Docker has chosen in their sandbox."""
_MOST_ENDS = 16


class Links:
    """Opens links. `most_bytes`, `most_bytes_elsewhere`: of a packet that are kept. `dns`: only packets of DNS."""

    def __init__(self, client: Client, most_bytes: int, most_bytes_elsewhere: int, *, dns: bool) -> None:
        self._client = client
        self._most_bytes = most_bytes
        self._most_bytes_elsewhere = most_bytes_elsewhere
        self._dns = dns
        self.here: list[Source] = []
        self.elsewhere: list[Elsewhere] = []

    def open_ends(self, ends: Sequence[_End], text: str) -> None:
        """Open the links of the ends that are meant, which must be there. `text`: the filter."""
        for end in ends:
            self._open(end, _both(text, _DNS if self._dns else ""))
            if self._dns and end["here"] and end["sandbox"]:
                self._open_loopback(end, _both(text, _DNS_IN_SANDBOX))

    def open_others(self, others: Sequence[_End], ends: Sequence[_End], text: str) -> None:
        """Open those of other ends, for what they exchange with the ends that are meant."""
        addresses = [address for end in ends for address in end["addresses"]]
        exchanged = _both(text, " or ".join(f"host {it}" for it in addresses))
        for end in others:
            try:
                self._open(end, _both(exchanged, _DNS if self._dns else ""))
            except CliError as exc:
                if exc.code == USAGE:
                    raise
                note_line(f"the other end {name_of(end)!r} is not read: {exc}")

    def _open(self, end: _End, expression: str) -> None:
        if not end["here"]:
            other = Elsewhere(self._client, Source(end, expression=expression))
            other.start(compiled(expression, self._most_bytes_elsewhere))
            self.elsewhere.append(other)
            return
        try:
            self.here.append(open_here(end, compiled(expression, self._most_bytes), expression))
        except CaptureError as exc:
            raise CliError(NO, f"the packets of {name_of(end)!r} cannot be read: {exc}") from None

    def _open_loopback(self, end: _End, expression: str) -> None:
        with suppress(CaptureError):  # then its other link is read, and it was said why
            self.here.append(open_here(end, compiled(expression, self._most_bytes), expression, loopback=True))


def compiled(expression: str, most_bytes: int = MOST_BYTES) -> list[Instruction]:
    """Compile a filter; of packets that match it takes so many bytes.

    Raises:
        CliError: it is wrong.
    """
    try:
        return filters.compiled(expression, most_bytes)
    except FilterError as exc:
        raise CliError(USAGE, f"filter {expression[:200]!r}: {exc}") from None


def _both(left: str, right: str) -> str:
    return f"({left}) and ({right})" if left and right else left or right


def _words(text: str) -> list[str]:
    return text.replace("(", " ( ").replace(")", " ) ").split()


def with_names(text: str, ends: Sequence[_End]) -> str:
    """Replace names of containers behind 'host' by their addresses."""
    addresses = {name: end["addresses"] for end in ends for name in (end["name"], end["container"]) if name}
    found: list[str] = []
    for word in _words(text):
        if found and found[-1] == "host" and word in addresses:
            found.pop()
            way = [found.pop()] if found and found[-1] in {"src", "dst"} else []
            each = [" ".join((*way, "host", address)) for address in addresses[word]]
            found.append(f"({' or '.join(each)})")
        else:
            found.append(word)
    return " ".join(found)


def chosen(text: str, others: Sequence[_End]) -> list[_End]:
    """Return the other ends: those whose addresses the filter has, or all.

    Raises:
        CliError: they are too many.
    """
    named = set(_words(text))
    found = [end for end in others if named.intersection(end["addresses"])] or list(others)
    if len(found) > _MOST_ENDS:
        words = f"--both-ends would read {len(found)} endpoints (at most {_MOST_ENDS})"
        raise CliError(USAGE, words, hint="name the other end by the filter: host NAME")
    return found
