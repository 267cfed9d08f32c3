"""SRC and DST as the user writes them, without a look at records.

DST may end in a port: ``web:80``, ``10.1.0.2:53/udp``, ``[fd00::2]:80/tcp``. ``outside`` stands for a host beyond this
one, ``outside=198.51.100.7`` for that one; ``host`` is this host.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address

from netplug.drivers.steps import IPAddress
from netplug.errors import NetplugError

PROTOCOLS = ("tcp", "udp")
ICMP = "icmp"
"""What is asked without a port: an echo."""
OUTSIDE, HOST = "outside", "host"
_PORT = re.compile(r"(?P<name>.*):(?P<port>\d{1,6})(?:/(?P<proto>\w+))?", re.DOTALL)
_BRACKETS = re.compile(r"\[(?P<name>[^\]]*)\](?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """`name`: without port; `address`: if it is one, or that of ``outside=``. `port` 0, `proto` "icmp": no port."""

    name: str
    address: IPAddress | None = None
    port: int = 0
    proto: str = ICMP

    @property
    def outside(self) -> bool:
        return self.name == OUTSIDE

    @property
    def is_host(self) -> bool:
        return self.name == HOST


def parse_both(source: str, destination: str) -> tuple[Target, Target]:
    """Read SRC and DST.

    Raises:
        NetplugError: "invalid": one is no end, or the packet would not come to this host.
    """
    sender, target = parse(source, "SRC", port=False), parse(destination, "DST", port=True)
    if sender.outside and target.outside:
        raise passing_by()
    return sender, target


def passing_by() -> NetplugError:
    """Return the refusal of a packet between others."""
    words = "SRC and DST are both outside: nothing between them is traced here"
    return NetplugError("invalid", words, hint="one of them is a container, its address, or host")


def parse(text: str, what: str, *, port: bool) -> Target:
    """Read SRC or DST; `what` names it in errors, `port`: it may have one.

    >>> parse("web:80", "DST", port=True)
    Target(name='web', address=None, port=80, proto='tcp')
    >>> parse("[fd00::2]:53/udp", "DST", port=True)
    Target(name='fd00::2', address=IPv6Address('fd00::2'), port=53, proto='udp')
    >>> parse("fd00::2", "DST", port=True)
    Target(name='fd00::2', address=IPv6Address('fd00::2'), port=0, proto='icmp')
    >>> parse("outside=192.0.2.7", "SRC", port=False)
    Target(name='outside', address=IPv4Address('192.0.2.7'), port=0, proto='icmp')
    """
    name, number, proto = _parted(text, what)
    if number and not port:
        raise NetplugError(
            "invalid", f"{what} {text[:80]!r} has a port", hint="only DST has one: netplug trace web db:80"
        )
    if not name:
        raise NetplugError(
            "invalid", f"{what} {text[:80]!r} names nothing", hint="a container, an address, host or outside"
        )
    key, equals, value = name.partition("=")
    if equals and key == OUTSIDE:
        value = value.removeprefix("[").removesuffix("]")
        return Target(OUTSIDE, _address(value, f"{what} {text[:80]!r}"), number, proto)
    if equals and key == HOST:
        raise NetplugError("invalid", f"{what} {text[:80]!r}: host takes no address", hint="give the address alone")
    found = _if_address(name)
    if found is None:
        _refuse_names(name, f"{what} {text[:80]!r}")
    elif found.is_unspecified or (found.version == 6 and found.is_link_local):
        kind = "stands for all addresses" if found.is_unspecified else "is valid on one link only"
        raise NetplugError("invalid", f"{what} {text[:80]!r}: {found} {kind}", hint="give the address of somebody")
    return Target(name, found, number, proto)


def written(address: IPAddress, port: int) -> str:
    """Return an address, and a port if it is not 0, as DST has them.

    >>> written(ip_address("fd00::2"), 80), written(ip_address("10.1.0.2"), 80), written(ip_address("fd00::2"), 0)
    ('[fd00::2]:80', '10.1.0.2:80', 'fd00::2')
    """
    if not port:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _refuse_names(name: str, what: str) -> None:
    """Refuse what is neither a name nor an address.

    Raises:
        NetplugError: "invalid".
    """
    if "://" in name:
        raise NetplugError("invalid", f"{what} is a URL", hint="a name or address, and a port: web:80")
    if ":" in name:
        raise NetplugError("invalid", f"{what}: no port is behind the colon, and it is no address", hint="web:80")
    if any(it.isspace() or not it.isprintable() for it in name):
        raise NetplugError("invalid", f"{what}: a name has no blanks and control characters")
    address, slash, _ = name.partition("/")
    if slash and _if_address(address):
        raise NetplugError("invalid", f"{what} is a subnet", hint=f"give an address: {address}")


def _parted(text: str, what: str) -> tuple[str, int, str]:
    brackets = _BRACKETS.fullmatch(text)
    if brackets and not brackets["rest"]:
        return brackets["name"], 0, ICMP
    found = _PORT.fullmatch(text)
    if not found or (not brackets and _if_address(text.removeprefix(OUTSIDE + "="))):
        return text, 0, ICMP
    number, proto = int(found["port"]), (found["proto"] or "tcp").lower()
    if not 0 < number < 1 << 16:
        raise NetplugError("invalid", f"{what} {text[:80]!r}: {number} is no port", hint="1 to 65535")
    if proto not in PROTOCOLS:
        raise NetplugError("invalid", f"{what} {text[:80]!r}: protocol {proto!r} cannot be traced", hint="tcp or udp")
    inside = _BRACKETS.fullmatch(found["name"])
    return (inside["name"] if inside else found["name"]), number, proto


def _if_address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _address(text: str, what: str) -> IPAddress:
    if found := _if_address(text):
        return found
    raise NetplugError("invalid", f"{what}: {text[:80]!r} is no address", hint="outside=198.51.100.7")
