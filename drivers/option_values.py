"""Parsers of option values: each function takes the text of one value and returns it typed.

All raise ValueError; the message continues a sentence that begins with the option's name.
"""

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, ip_address
from re import ASCII, fullmatch

from .link_names import is_link_name, is_link_prefix

MACVLAN_MODES = ("bridge", "vepa", "private", "passthru")
LARGEST_VNI = 2**24 - 1
"""RFC 7348 5: 24 bits; 0 is excluded, since many implementations treat it as unset."""


def boolean(text: str) -> bool:
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise ValueError("must be true or false")
    return value


def mtu(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 68 <= int(text[:9]) <= 65535:
        raise ValueError("must be a number of bytes from 68 to 65535")
    return int(text)


def word(text: str) -> str:
    if not 1 <= len(text) <= 128 or not all(char.isascii() and (char.isalnum() or char in "_.-") for char in text):
        raise ValueError("must be 1 to 128 letters, digits, '_', '.' or '-'")
    return text


def link(text: str) -> str:
    if not is_link_name(word(text)):
        raise ValueError("must be an interface name of at most 15 characters")
    return text


def prefix(text: str) -> str:
    if len(text) > 12:
        raise ValueError("must be an interface prefix of at most 12 characters")
    if not is_link_prefix(word(text)):
        raise ValueError("must be the beginning of an interface name")
    return text


def ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text not in {"", "0.0.0.0"} else None
    except ValueError:
        raise ValueError("must be an IPv4 address") from None


def _number(text: str, last: int) -> int:
    if not fullmatch(r"\d{1,9}", text, ASCII) or not 1 <= int(text) <= last:
        raise ValueError(f"must be a number from 1 to {last}")
    return int(text)


def vni(text: str) -> int:
    return _number(text, LARGEST_VNI)


def port(text: str) -> int:
    return _number(text, 65535)


HIGHEST_PRIORITY = 2**31 - 1


def priority(text: str) -> int:
    if not fullmatch(r"-?\d{1,10}", text, ASCII) or abs(int(text)) > HIGHEST_PRIORITY:
        raise ValueError(f"must be a whole number from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}")
    return int(text)


HIGHEST_METRIC = 2**32 - 1


def metric(text: str) -> int:
    if not fullmatch(r"\d{1,10}", text, ASCII) or int(text) > HIGHEST_METRIC:
        raise ValueError(f"must be a number from 0 to {HIGHEST_METRIC}")
    return int(text)


def macvlan_mode(text: str) -> str:
    if text not in MACVLAN_MODES:
        raise ValueError(f"must be one of {', '.join(MACVLAN_MODES)}")
    return text


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
STICKY_S = _UNITS["d"]


def duration(text: str) -> int:
    """Return seconds; true means a day: longer than a night's maintenance, short enough for machines that are gone."""
    switch = {"true": STICKY_S, "1": STICKY_S, "false": 0, "0": 0}.get(text.lower())
    if switch is not None:
        return switch
    found = fullmatch(r"([1-9]\d{0,5})([smhd])", text, ASCII)
    if found is None:
        raise ValueError("must be true, false, or a time such as 30m, 24h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def _quantity(text: str, units: Mapping[str, float]) -> int:
    """Return a number with a unit; as in tc(8), a bare number has the smallest unit."""
    found = fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([a-z]*)", text.lower(), ASCII)
    if found is None or found[2] not in units:
        raise ValueError(f"must be a number with a unit, of {', '.join(unit for unit in units if unit)}")
    return round(float(found[1]) * units[found[2]])


_RATES = {"": 1, "bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12, "bps": 8, "kbps": 8e3, "mbps": 8e6}
_RATES |= {"gbps": 8e9, "kibit": 2**10, "mibit": 2**20, "gibit": 2**30}
_SIZES = {"": 1, "b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "kbit": 2**7, "mbit": 2**17}
LOWEST_RATE, HIGHEST_RATE = 8_000, 10**12
SMALLEST_BURST, LARGEST_BURST = 2_000, 2**30


def _both(text: str, read: Callable[[str], int]) -> tuple[int, int]:
    """Read ``RECEIVED/SENT``, one of which may be 0 for no limit, or one quantity for both."""
    received, slash, sent = text.partition("/")
    if not slash:
        return (read(received),) * 2
    if received == sent == "0":
        raise ValueError("limits neither direction")
    return (0 if received == "0" else read(received)), (0 if sent == "0" else read(sent))


def rate(text: str) -> int:
    rate = _quantity(text, _RATES)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError("must be from 8kbit to 1tbit")
    return rate


def burst(text: str) -> int:
    burst = _quantity(text, _SIZES)
    if not SMALLEST_BURST <= burst <= LARGEST_BURST:
        raise ValueError("must be from 2000 bytes to 1024mb")
    return burst


def rates(text: str) -> tuple[int, int]:
    return _both(text, rate)


def bursts(text: str) -> tuple[int, int]:
    return _both(text, burst)


def switch(text: str) -> bool:
    value = {"on": True, "off": False, "true": True, "false": False}.get(text.lower())
    if value is None:
        raise ValueError("must be on or off")
    return value


LONGEST_TTL = 86_400


def ttl(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > LONGEST_TTL:
        raise ValueError(f"must be a number of seconds from 0 to {LONGEST_TTL}")
    return int(text)


def upstreams(text: str) -> tuple[str, ...]:
    """Read the resolvers for external names: ``10.0.0.1,corp.example=10.0.0.53#5353``.

    >>> upstreams("10.0.0.1, corp.example=10.0.0.53#5353")
    ('10.0.0.1', 'corp.example=10.0.0.53#5353')
    """
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in found:
        domain, _, server = word.rpartition("=")
        address, _, port = server.partition("#")
        address, percent, scope = address.partition("%")
        try:
            if (ip_address(address).version == 4 and percent) or (percent and not is_link_name(scope)):
                raise ValueError  # noqa: TRY301 - the same words
        except ValueError:
            raise ValueError(
                "must be addresses such as 10.0.0.1 or corp.example=10.0.0.53#5353, separated by commas"
            ) from None
        if port:
            _number(port, 65535)
        labels = domain.removesuffix(".").split(".") if domain else []
        if len(domain) > 253 or not all(fullmatch(r"[!-~]{1,63}", label, ASCII) for label in labels):
            raise ValueError(f"{domain[:80]!r} is not a domain name")
    return found
