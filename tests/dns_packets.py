"""DNS packets for tests: questions made by hand, answers read by dnslib, an implementation that is not ours."""

import struct
from dataclasses import dataclass
from ipaddress import ip_address

import dnslib

from netplug.dns import wire
from netplug.dns.fast_path import answer
from netplug.dns.question import Question
from netplug.dns.slow_path import respond
from netplug.dns.zone import Entry, Network, Service, View, Zones

COOKIE = b"\0\x0a\0\x08" + b"12345678"


def query(
    name: str | bytes,
    kind: int = wire.A,
    *,
    ident: int = 0x1234,
    flags: int = 0x0100,
    klass: int = 1,
    edns: bytes | None = None,
) -> bytes:
    """Return a query; a name of bytes is taken as it is. `edns`: see `opt`."""
    asked = name if isinstance(name, bytes) else _keep_case(name)
    head = struct.pack("!6H", ident, flags, 1, 0, 0, edns is not None)
    return head + asked + struct.pack("!HH", kind, klass) + (edns or b"")


def opt(size: int = 1232, *, version: int = 0, flags: int = 0, options: bytes = b"", owner: bytes = b"\0") -> bytes:
    return owner + struct.pack("!HHBBHH", wire.OPT, size, 0, version, flags, len(options)) + options


def _keep_case(name: str) -> bytes:
    labels = name.rstrip(".").split(".") if name.strip(".") else []
    return b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0"


@dataclass(frozen=True)
class Reply:
    """An answer as dnslib reads it: name, type and data of each record as text."""

    rcode: int
    aa: bool
    tc: bool
    answers: tuple[tuple[str, str, str], ...]
    authorities: tuple[tuple[str, str, str], ...]
    additional: tuple[tuple[str, str, str], ...]
    ttls: tuple[int, ...]

    @property
    def data(self) -> list[str]:
        return sorted(record[2] for record in self.answers)


def read(data: bytes) -> Reply:
    packet = dnslib.DNSRecord.parse(data)

    def lines(section: list[dnslib.RR]) -> tuple[tuple[str, str, str], ...]:
        return tuple(
            (str(rr.rname), str(dnslib.QTYPE.get(rr.rtype)), str(rr.rdata)) for rr in section if rr.rtype != wire.OPT
        )

    extended = sum(rr.edns_rcode << 4 for rr in packet.ar if rr.rtype == wire.OPT) if packet.ar else 0
    return Reply(
        packet.header.rcode | extended,
        bool(packet.header.aa),
        bool(packet.header.tc),
        lines(packet.rr),
        lines(packet.auth),
        lines(packet.ar),
        tuple(rr.ttl for rr in packet.rr),
    )


def both(view: View, data: bytes) -> bytes | Question | None:
    """Return what the server says: by the fast path, or by the careful one."""
    return answer(view, data) or respond(view, data)


def ask(view: View, name: str | bytes, kind: int = wire.A, **more: object) -> Reply:
    """Ask by both paths, and expect of them the same but for the order of records."""
    data = query(name, kind, **more)  # type: ignore[arg-type]
    careful = respond(view, data)
    assert isinstance(careful, bytes), careful
    fast = answer(view, data)
    if fast is not None:
        assert set(read(fast).answers) == set(read(careful).answers)
        assert len(fast) == len(careful)
        assert fast[:12] == careful[:12]
    return read(fast or careful)


def zones() -> Zones:
    """Return networks blue and red, with web and two of an alias in blue, and db in red."""
    made = Zones()
    made.set_network(Network("b" * 64, "blue", 7, (ip_address("10.1.0.1"), ip_address("fd00:1::1"))))
    made.set_network(Network("r" * 64, "red", 5, (ip_address("10.2.0.1"),)))
    blue, red = made.networks["b" * 64], made.networks["r" * 64]
    http = Service("http", "tcp", 80)
    blue.add(
        Entry(
            "w",
            ("web", "www", "0a1b2c3d4e5f"),
            (ip_address("10.1.0.2"), ip_address("fd00:1::2")),
            (http, Service("domain", "udp", 53)),
        )
    )
    blue.add(Entry("a1", ("app1", "app"), (ip_address("10.1.0.3"),), (http,)))
    blue.add(Entry("a2", ("app2", "app"), (ip_address("10.1.0.4"),), (http,)))
    red.add(Entry("d", ("db",), (ip_address("10.2.0.2"),)))
    return made


def view(made: Zones, *names: str) -> View:
    found = made.view({index.network.id for index in made.networks.values() if index.network.name in names})
    assert found is not None
    return found
