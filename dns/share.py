"""Shares: the records that an endpoint contributes to names, in few objects for many names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import wire
from .wire import Record


@dataclass(frozen=True, slots=True)
class Service:
    """A service of an endpoint, for an SRV record: for example `name` "http", `proto` "tcp"."""

    name: str
    proto: str
    port: int


@dataclass(slots=True)
class Share:
    """The records that one endpoint contributes to names.

    An endpoint has dozens of names, and few shares: all of its names with the same records have the same one. SRV
    records would differ from name to name, so a share has what they are made from.

    Attributes:
        source: the endpoint's id; empty for the network itself.
        records: the same ones for each name.
        services: SRV records: the port, and the octet of the name where the target begins.
        weak: used only if no other endpoint has the name.
    """

    source: str
    records: tuple[Record, ...] = ()
    services: tuple[tuple[int, int], ...] = ()
    healthy: bool = True
    weak: bool = False

    @property
    def empty(self) -> bool:
        return not (self.records or self.services)

    def at(self, name: bytes) -> Iterator[Record]:
        """Yield the records of a name."""
        yield from self.records
        for port, target in self.services:
            yield wire.srv(port, name[target:])


def joined(name: bytes, suffix: bytes) -> bytes:
    """Return a name below a suffix.

    Raises:
        ValueError: it is too long.
    """
    whole = name[:-1] + suffix
    if len(whole) > wire.LONGEST_NAME:
        raise ValueError("the name is too long")
    return whole


def offers(services: Iterable[Service], like: Share) -> Iterator[tuple[bytes, Share]]:
    """Yield for each service what its names begin with (RFC 2782), and their share. `like`: that of the targets."""
    for service in services:
        try:
            prefix = wire.to_wire(f"_{service.name}._{service.proto}")
        except ValueError:
            continue
        yield prefix, replace(like, records=(), services=((service.port, len(prefix) - 1),))


def add_service(shares: dict[bytes, Share], prefix: bytes, target: bytes, offer: Share, nothing: Share) -> None:
    """Add the name of a service of `target` and its parents, unless it is too long. `offer`: see `offers`."""
    try:
        name = joined(prefix, target)
    except ValueError:
        return
    if before := shares.get(name):
        offer = replace(offer, records=before.records, services=before.services + offer.services)
    shares[name] = offer
    add_parents(shares, name, target, nothing)


def add_parents(shares: dict[bytes, Share], name: bytes, limit: bytes, nothing: Share) -> None:
    """Add the parents of a name up to `limit`, as empty non-terminals (RFC 8020). `nothing`: a share of no record.

    If `limit` is the root, no parent is added: the name is in no zone of ours.
    """
    if limit == wire.ROOT:
        return
    at = name[0] + 1
    while at < len(name) - len(limit):
        shares.setdefault(name[at:], nothing)
        at += name[at] + 1


def several(shares: Share | tuple[Share, ...]) -> tuple[Share, ...]:
    """Return shares as they are, or one alone as a tuple. A tuple for each name would take a kilobyte an endpoint."""
    return (shares,) if isinstance(shares, Share) else shares


def used(shares: Sequence[Share]) -> Sequence[Share]:
    """Return the shares of a name that are used. A weak share is used only if it is the only one."""
    strong = [share for share in shares if not share.weak]
    if not strong:
        return shares if len(shares) == 1 else []
    healthy = [share for share in strong if share.healthy]
    return healthy if not all(share.empty for share in healthy) else strong
