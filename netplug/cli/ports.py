"""The text of ``--publish``, in Docker's notation: ``[ip:][host[-host]:]container[-container][/proto]``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

_FORM = re.compile(
    r"(?:(?:\[(?P<v6>[^\]]*)\]|(?P<v4>[^:\[\]]*)):(?=[^:]*:))?"
    r"(?:(?P<host>[^:]*):)?"
    r"(?P<port>[^:/]+)"
    r"(?:/(?P<proto>[^/]*))?"
)
_PROTOS = ("tcp", "udp", "sctp")
_HINT = "write it as [ip:][host:]container[/proto], for example 8080:80 or 127.0.0.1:5353:53/udp"


@dataclass(frozen=True, slots=True)
class Publish:
    """A port to publish, in the field names of the REST API.

    `host_address` None: every address of the host. `host_port` 0: any free port. `host_port_end` above `host_port`:
    the first free port of the range; else 0.
    """

    port: int
    proto: str = "tcp"
    host_address: str | None = None
    host_port: int = 0
    host_port_end: int = 0

    def __str__(self) -> str:
        address = self.host_address or ""
        if ":" in address:
            address = f"[{address}]"
        host = f"{self.host_port}-{self.host_port_end}" if self.host_port_end else f"{self.host_port or ''}"
        head = f"{address}:{host}:" if address else f"{host}:" if host else ""
        return f"{head}{self.port}/{self.proto}"


def parse(text: str) -> tuple[Publish, ...]:
    """Return the ports of one ``--publish``; two ranges of the same length are paired.

    >>> [str(port) for port in parse("8000-8001:80-81")]
    ['8000:80/tcp', '8001:81/tcp']
    >>> str(parse("[::1]:8080:80/udp")[0])
    '[::1]:8080:80/udp'

    Raises:
        ValueError: the text is invalid; the message names it and the reason.
    """
    try:
        return tuple(_ports(text))
    except ValueError as exc:
        raise ValueError(f"published port {text[:80]!r}: {exc}") from None


def _ports(text: str) -> Iterator[Publish]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(_HINT)
    proto = (match["proto"] if match["proto"] is not None else "tcp").lower()
    if proto not in _PROTOS:
        raise ValueError(f"the protocol must be one of {', '.join(_PROTOS)}")
    address = _address(match["v4"], match["v6"])
    first, last = _range(match["port"], lowest=1)
    if not match["host"]:
        yield from (Publish(port, proto, address) for port in range(first, last + 1))
        return
    host, host_end = _range(match["host"], lowest=0)
    if host_end > host and host == 0:
        raise ValueError("a range of host ports cannot begin at 0")
    if first == last:
        yield Publish(first, proto, address, host, host_end if host_end > host else 0)
    elif last - first == host_end - host:
        yield from (Publish(port, proto, address, host + port - first) for port in range(first, last + 1))
    else:
        raise ValueError("the ranges of host and container ports differ in length")


def _address(v4: str | None, v6: str | None) -> str | None:
    if v4 == "":
        raise ValueError("the host address is empty")
    if v4 is None and v6 is None:
        return None
    address = ip_address(v6 if v6 is not None else v4 or "")
    if (address.version == 6) is not (v6 is not None):
        raise ValueError("brackets are for IPv6 addresses, and these need them")
    return str(address)


def _range(text: str, *, lowest: int) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    ports = _port(first, lowest), _port(last if dash else first, lowest)
    if ports[0] > ports[1]:
        raise ValueError(f"range {text} ends before it begins")
    return ports


def _port(text: str, lowest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port from {lowest} to 65535")
    return int(text)
