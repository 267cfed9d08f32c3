"""Compiles the common part of tcpdump's filters (pcap-filter(7)) to classic BPF, where libpcap is not installed.

``[ip|ip6|tcp|udp|sctp|icmp|icmp6|arp] [src|dst] [host|net|port|portrange] VALUE``, ``and``, ``or``, ``not`` and
parentheses. As with tcpdump, ``and`` and ``or`` bind equally, from left to right, and ``port 80 or 443`` is understood.
A filter is a tree of tests of the packet, and each test a few instructions that jump forward.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

from netplug.kernel.host.socket_filters import AND, EQUAL, LOAD, LOAD_BYTE, LOAD_HALF, RETURN, Instruction

_INDEXED = 0x20
"""Added to a load: relative to the length of the IPv4 header, which `_HEADER_LENGTH` puts into the index register."""
_HEADER_LENGTH = 0xB1
_AT_LEAST, _ANY_BIT = 0x35, 0x45
_IP, _ARP, _IP6 = 0x0800, 0x0806, 0x86DD
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
_WORDS = re.compile(r"\(|\)|&&|\|\||!|[^\s()!&|]+")
_FAMILIES = ("ip", "ip6", "arp", *_PROTOCOLS)
_MOST_JUMP = 255


class FilterError(ValueError):
    """A filter that is not understood; says at which word."""


@dataclass(frozen=True, slots=True)
class _Test:
    """Compares `mask`ed bytes of a packet at an offset; `indexed`: behind the IPv4 header."""

    load: int
    at: int
    value: int
    mask: int = 0
    compare: int = EQUAL
    indexed: bool = False


@dataclass(frozen=True, slots=True)
class _All:
    left: "_Tree"
    right: "_Tree"


@dataclass(frozen=True, slots=True)
class _Any:
    left: "_Tree"
    right: "_Tree"


@dataclass(frozen=True, slots=True)
class _Not:
    tree: "_Tree"


_Tree: TypeAlias = _Test | _All | _Any | _Not


def _all(*trees: _Tree) -> _Tree:
    return reduce(_All, trees)


def _any(*trees: _Tree) -> _Tree:
    return reduce(_Any, trees)


def _ether(kind: int) -> _Test:
    return _Test(LOAD_HALF, 12, kind)


def _protocol(number: int) -> _Tree:
    """Of an IP packet. In IPv6 it may come behind a fragment header (44)."""
    direct, fragment = _Test(LOAD_BYTE, 20, number), _all(_Test(LOAD_BYTE, 20, 44), _Test(LOAD_BYTE, 54, number))
    of_ip6 = _all(_ether(_IP6), _any(direct, fragment))
    if number == _PROTOCOLS["icmp6"]:
        return of_ip6
    of_ip = _all(_ether(_IP), _Test(LOAD_BYTE, 23, number))
    return of_ip if number == _PROTOCOLS["icmp"] else _any(of_ip, of_ip6)


def _address(at: int, packed: bytes, mask: bytes) -> _Tree:
    """Compare an address word by word; words that the mask leaves out are skipped."""
    tests: list[_Tree] = []
    for word in range(0, len(packed), 4):
        bits = int.from_bytes(mask[word : word + 4], "big")
        if bits:
            value = int.from_bytes(packed[word : word + 4], "big") & bits
            tests.append(_Test(LOAD, at + word, value, bits if bits != 0xFFFFFFFF else 0))
    return _all(*tests) if tests else _any(_Test(LOAD_BYTE, 0, 0, compare=_AT_LEAST))


def _net(text: str, ways: Sequence[str]) -> _Tree:
    net = ip_network(text)
    packed, mask = net.network_address.packed, net.netmask.packed
    if net.version == 6:
        places = {"src": 22, "dst": 38}
        return _all(_ether(_IP6), _any(*(_address(places[way], packed, mask) for way in ways)))
    of_ip, of_arp = {"src": 26, "dst": 30}, {"src": 28, "dst": 38}
    return _any(
        _all(_ether(_IP), _any(*(_address(of_ip[way], packed, mask) for way in ways))),
        _all(_ether(_ARP), _any(*(_address(of_arp[way], packed, mask) for way in ways))),
    )


def _ports(first: int, last: int, ways: Sequence[str]) -> _Tree:
    if not 0 <= first <= last <= 0xFFFF:
        raise ValueError("no ports")

    def port(at: int, *, indexed: bool) -> _Tree:
        if first == last:
            return _Test(LOAD_HALF, at, first, indexed=indexed)
        low = _Test(LOAD_HALF, at, first, compare=_AT_LEAST, indexed=indexed)
        return _all(low, _Not(_Test(LOAD_HALF, at, last + 1, compare=_AT_LEAST, indexed=indexed)))

    numbers = [_PROTOCOLS[name] for name in ("tcp", "udp", "sctp")]
    places = [{"src": 0, "dst": 2}[way] for way in ways]
    whole = _Not(_Test(LOAD_HALF, 20, 0x1FFF, compare=_ANY_BIT))  # later fragments have no ports
    of_ip = _any(*(port(14 + place, indexed=True) for place in places))
    of_ip6 = _any(*(port(54 + place, indexed=False) for place in places))
    return _any(
        _all(_ether(_IP), _any(*(_Test(LOAD_BYTE, 23, it) for it in numbers)), whole, of_ip),
        _all(_ether(_IP6), _any(*(_Test(LOAD_BYTE, 20, it) for it in numbers)), of_ip6),
    )


def _family(name: str) -> _Tree:
    kinds: dict[str, _Tree] = {"ip": _ether(_IP), "ip6": _ether(_IP6), "arp": _ether(_ARP)}
    return kinds[name] if name in kinds else _protocol(_PROTOCOLS[name])


@dataclass(slots=True)
class _Parser:
    words: list[str]
    at: int = 0
    last: tuple[str, str, str] = ("", "", "")
    """Family, direction and kind of the last primitive, which a bare value takes over."""

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def take(self) -> str:
        word = self.peek()
        self.at += 1
        return word

    def expression(self) -> _Tree:
        tree = self.negated()
        while self.peek() in {"and", "&&", "or", "||"}:
            join = _All if self.take() in {"and", "&&"} else _Any
            tree = join(tree, self.negated())
        return tree

    def negated(self) -> _Tree:
        if self.peek() in {"not", "!"}:
            self.take()
            return _Not(self.negated())
        if self.peek() == "(":
            self.take()
            tree = self.expression()
            if self.take() != ")":
                raise FilterError("a ')' is missing")
            return tree
        return self.primitive()

    def primitive(self) -> _Tree:
        family = self.take() if self.peek() in _FAMILIES else ""
        way = self.take() if self.peek() in {"src", "dst"} else ""
        kind = self.take() if self.peek() in {"host", "net", "port", "portrange"} else ""
        if family and not way and not kind:
            self.last = (family, "", "")
            return _family(family)
        word = self.take()
        if not word:
            raise FilterError("the filter ends in the middle")
        if not family and not way and not kind:
            family, way, kind = self.last
            kind = kind or ("host" if _is_address(word) else "")
        if not kind and way:
            kind = "host"
        self.last = (family, way, kind)
        tree = self.value(kind, word, (way,) if way else ("src", "dst"))
        return _all(_family(family), tree) if family else tree

    def value(self, kind: str, word: str, ways: Sequence[str]) -> _Tree:
        try:
            if kind == "host":
                return _net(str(ip_address(word)), ways)
            if kind == "net":
                return _net(word, ways)
            if kind in {"port", "portrange"}:
                first, _, last = word.partition("-")
                return _ports(int(first), int(last or first), ways)
        except ValueError:
            raise FilterError(f"{word[:40]!r} is not a {kind}") from None
        raise FilterError(f"{word[:40]!r} is not understood")


def _is_address(word: str) -> bool:
    try:
        return isinstance(ip_address(word), IPv4Address | IPv6Address)
    except ValueError:
        return False


@dataclass(slots=True)
class _Label:
    """A place in the code, known when it is reached."""

    at: int = -1


@dataclass(slots=True)
class _Code:
    """Instructions whose jumps are labels yet."""

    lines: list[tuple[int, _Label | None, _Label | None, int]] = field(default_factory=list)

    def tree(self, tree: _Tree, yes: _Label, no: _Label) -> None:
        """Append what jumps to `yes` or `no`."""
        match tree:
            case _Test():
                self.test(tree, yes, no)
            case _Not():
                self.tree(tree.tree, no, yes)
            case _All() | _Any():
                middle = _Label()
                self.tree(tree.left, *((middle, no) if isinstance(tree, _All) else (yes, middle)))
                middle.at = len(self.lines)
                self.tree(tree.right, yes, no)

    def test(self, test: _Test, yes: _Label, no: _Label) -> None:
        if test.indexed:
            self.lines.append((_HEADER_LENGTH, None, None, 14))
        self.lines.append((test.load + (_INDEXED if test.indexed else 0), None, None, test.at))
        if test.mask:
            self.lines.append((AND, None, None, test.mask))
        self.lines.append((test.compare, yes, no, test.value))

    def resolved(self) -> list[Instruction]:
        found: list[Instruction] = []
        for number, (code, yes, no, value) in enumerate(self.lines):
            jumps = [label.at - number - 1 if label else 0 for label in (yes, no)]
            if max(jumps) > _MOST_JUMP:
                raise FilterError("the filter is too long")
            found.append((code, jumps[0], jumps[1], value))
        return found


def compiled(text: str, most_bytes: int) -> list[Instruction]:
    """Compile a filter for Ethernet frames; of those that match it takes so many bytes.

    Raises:
        FilterError: it is not understood.
    """
    words = _WORDS.findall(text)
    if not words:
        return [(RETURN, 0, 0, most_bytes)]
    parser = _Parser(words)
    tree = parser.expression()
    if parser.peek():
        raise FilterError(f"{parser.peek()[:40]!r} is not expected there")
    code, yes, no = _Code(), _Label(), _Label()
    code.tree(tree, yes, no)
    yes.at = len(code.lines)
    code.lines.append((RETURN, None, None, most_bytes))
    no.at = len(code.lines)
    code.lines.append((RETURN, None, None, 0))
    return code.resolved()
