"""Forwarding rules: which upstreams are asked about which names; with the cache of their answers.

Rules come from settings, from a network's options, and from the host's resolv.conf(5).
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from . import wire
from .cache import Answer, Cache, NoCache
from .rebinding import Guard

PORT = 53
_SCOPE = re.compile(r"[!-~]{1,15}")
"""The name of a link."""


@dataclass(frozen=True, slots=True)
class Server:
    """An upstream. `scope`: the link of a link-local address (RFC 4007)."""

    address: wire.IPAddress
    port: int = PORT
    scope: str = ""
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        # Each query looks it up several times, and an IP address computes its hash each time.
        object.__setattr__(self, "_hash", hash((self.address, self.port, self.scope)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Parse ``10.0.0.1``, ``10.0.0.1#5353`` or ``fe80::1%eth0``.

        >>> Server.parse("10.0.0.1#5353")
        Server(address=IPv4Address('10.0.0.1'), port=5353, scope='')

        Raises:
            ValueError: the address or the port is invalid.
        """
        host, _, port = text.partition("#")
        host, percent, scope = host.partition("%")
        try:
            address = ip_address(host)
            if percent and (address.version == 4 or not _SCOPE.fullmatch(scope)):
                raise ValueError  # noqa: TRY301 - the same words
        except ValueError:
            raise ValueError(f"{text[:80]!r} is not an address such as 10.0.0.1 or 10.0.0.1#5353") from None
        if port and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
            raise ValueError(f"{text[:80]!r} has no port from 1 to 65535")
        return cls(address, int(port or PORT), scope)

    def __str__(self) -> str:
        scope = f"%{self.scope}" if self.scope else ""
        return f"{self.address}{scope}" + (f"#{self.port}" if self.port != PORT else "")


@dataclass(frozen=True, slots=True)
class Rule:
    """Queries for names in `zone` go to `servers`; without servers they are not answered."""

    zone: bytes
    servers: tuple[Server, ...]

    @classmethod
    def parse(cls, text: str) -> "Rule":
        r"""Parse ``10.0.0.1`` (for all names) or ``corp.example=10.0.0.1`` (for names in this zone).

        >>> Rule.parse("corp.example=10.0.0.1").zone
        b'\x04corp\x07example\x00'

        Raises:
            ValueError: it is neither.
        """
        zone, equals, server = text.rpartition("=")
        return cls(wire.to_wire(zone if equals else "."), (Server.parse(server),))


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Rules:
    """A set of rules with its own cache, as other rules may lead to other answers.

    `forward`: False forwards nothing. `guard`: refuses answers with private addresses for names without a zone's rule.
    """

    rules: tuple[Rule, ...] = ()
    forward: bool = True
    cache: Cache = field(default_factory=Cache, compare=False, repr=False)
    guard: Guard | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        rules: Sequence[Rule],
        default: Sequence[Server],
        *,
        avoid: Collection[wire.IPAddress] = (),
        cache: Cache | None = None,
        also: Iterable[bytes] = (),
        guard: Guard | None = None,
    ) -> "Rules":
        """Merge the rules of each zone, and sort them by zone, the longest first.

        Args:
            rules: the rules; those of one zone are asked in this order.
            default: the servers for names without a rule.
            avoid: our own addresses, which are removed from the servers to avoid a loop.
            cache: None: a new one.
            also: zones of special-use domain names that go to `default` too.
            guard: see the class.
        """
        zones: dict[bytes, dict[Server, None]] = {}
        for rule in rules:
            zones.setdefault(rule.zone, {}).update(dict.fromkeys(rule.servers))
        zones.setdefault(wire.ROOT, dict.fromkeys(default))
        for zone in also:
            zones.setdefault(zone, dict.fromkeys(default))
        made = [
            Rule(zone, tuple(server for server in servers if server.port != PORT or server.address not in avoid))
            for zone, servers in zones.items()
        ]
        ordered = tuple(sorted(made, key=lambda rule: (-len(rule.zone), rule.zone)))
        return cls(ordered, cache=Cache() if cache is None else cache, guard=guard)

    def below(
        self, nearer: Sequence[Rule], *, avoid: Collection[wire.IPAddress] = (), cache: Cache | None = None
    ) -> "Rules":
        """Return these rules with those in `nearer` added or, for the same zone, replaced; with a cache of its own."""
        zones = {rule.zone for rule in nearer}
        rest = (rule for rule in self.rules if rule.zone not in zones)
        return Rules.of((*nearer, *rest), (), avoid=avoid, cache=cache, guard=self.guard)

    @property
    def zones(self) -> tuple[bytes, ...]:
        """The zones with a rule, except the root."""
        return tuple(rule.zone for rule in self.rules if rule.zone != wire.ROOT) if self.forward else ()

    def servers(self, name: bytes) -> tuple[Server, ...]:
        """Return the servers to ask about a lower-case name, in order."""
        if not self.forward:
            return ()
        for rule in self.rules:
            if rule.zone == wire.ROOT or wire.below(name, rule.zone):
                return rule.servers
        return ()

    def refuse(self, name: bytes, answer: Answer) -> bool:
        """Tell whether an answer for a lower-case name is refused; a zone of its own is trusted."""
        if self.guard is None or not self.guard.on or any(wire.below(name, zone) for zone in self.zones):
            return False
        return self.guard.refuses(name, answer)


def everything(server: Server, guard: Guard | None = None) -> Rules:
    """Return rules that send all queries to one server, without a cache; also those for special-use domain names."""
    return Rules((Rule(wire.ROOT, (server,)),), cache=NoCache(), guard=guard)


NO_FORWARDING = Rules(forward=False)


def resolv_conf(text: str) -> tuple[Server, ...]:
    r"""Return the name servers in resolv.conf(5). Malformed lines are ignored, as in libc.

    >>> [str(server) for server in resolv_conf("nameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver ?")]
    ['10.0.0.1', 'fe80::1%eth0']
    """
    found: dict[Server, None] = {}
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        for word in words[1:]:
            try:
                found[Server.parse(word)] = None
            except ValueError:
                continue
    return tuple(found)


def search_list(text: str) -> tuple[str, ...]:
    r"""Return the search list in resolv.conf(5). Of several `search` and `domain` lines, the last one counts.

    >>> search_list("domain a.example\nsearch corp.local Lab.Example.\n")
    ('corp.local', 'lab.example')
    """
    found: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if words and words[0] in {"search", "domain"}:
            found = tuple(dict.fromkeys(word.lower().removesuffix(".") for word in words[1:] if _is_domain(word)))
    return found


def _is_domain(text: str) -> bool:
    try:
        return wire.to_wire(text) != wire.ROOT
    except ValueError:
        return False
