"""Network options: ``-o key=value`` and Docker's own ``com.docker.network.*`` keys into a typed object.

One table says of each key its aliases, the modes that know it, how its text is read and what it means; the parser,
the error messages and the README's table all come from it. An unknown or ill-formed key is an error that names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from re import ASCII, fullmatch

from .errors import DriverError, Kind

BRIDGE = "bridge"
HOST = "host"
MACVLAN = "macvlan"
NONE = "none"
OVERLAY = "overlay"
MACVLAN_MODES = ("bridge", "vepa", "private", "passthru")

LARGEST_VNI = 2**24 - 1
"""RFC 7348 5: 24 bits; 0 is left out, since many take it for none."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """The options of one network.

    `mtu` 0: the uplink's. `bridge` empty: a name made from the network's id. `parent` empty: the uplink. `sticky`:
    seconds for which addresses are kept for the container that had them. `rate`: bits a second that
    a container receives and sends, 0 for no limit; `burst`: bytes, 0 for what the rate needs. `vni` 0: none yet.
    `dns`: we answer for the network's names; `ttl`: seconds that they hold.
    """

    mode: str = BRIDGE
    name: str = ""
    mtu: int = 0
    bridge: str = ""
    masquerade: bool = True
    icc: bool = True
    spoofchk: bool = True
    host_binding_ipv4: IPv4Address | None = None
    ifname: str = "eth"
    parent: str = ""
    macvlan_mode: str = "bridge"
    host_access: bool = False
    sticky: int = 0
    rate: tuple[int, int] | None = None
    burst: tuple[int, int] | None = None
    vni: int = 0
    vxlan_port: int = 4789
    bum: bool = False
    dns: bool = True
    ttl: int = 5


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """The options of one endpoint, before those of its network."""

    rate: tuple[int, int] | None = None
    burst: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the options table. No `modes`: all of them, those of other people's drivers too.

    `endpoint`: it can be given for one endpoint as well.
    """

    key: str
    aliases: tuple[str, ...]
    modes: tuple[str, ...]
    read: Callable[[str], object]
    default: str
    meaning: str
    endpoint: bool = False


def _boolean(text: str) -> bool:
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise ValueError("must be true or false")
    return value


def _mtu(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 68 <= int(text[:9]) <= 65535:
        raise ValueError("must be a number of bytes from 68 to 65535")
    return int(text)


def _word(text: str) -> str:
    if not 1 <= len(text) <= 128 or not all(sign.isascii() and (sign.isalnum() or sign in "_.-") for sign in text):
        raise ValueError("must be 1 to 128 letters, digits, '_', '.' or '-'")
    return text


def _link(text: str) -> str:
    if len(text) > 15:
        raise ValueError("must be an interface name of at most 15 signs")
    return _word(text)


def _prefix(text: str) -> str:
    if len(text) > 12:
        raise ValueError("must be an interface prefix of at most 12 signs")
    return _word(text)


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text) if text not in {"", "0.0.0.0"} else None
    except ValueError:
        raise ValueError("must be an IPv4 address") from None


def _number(text: str, last: int) -> int:
    if not fullmatch(r"\d{1,9}", text, ASCII) or not 1 <= int(text) <= last:
        raise ValueError(f"must be a number from 1 to {last}")
    return int(text)


def _vni(text: str) -> int:
    return _number(text, LARGEST_VNI)


def _port(text: str) -> int:
    return _number(text, 65535)


def _macvlan_mode(text: str) -> str:
    if text not in MACVLAN_MODES:
        raise ValueError(f"must be one of {', '.join(MACVLAN_MODES)}")
    return text


_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
STICKY_S = _UNITS["d"]


def _duration(text: str) -> int:
    """Return seconds; true is a day, which outlives a night's maintenance and not a machine that is gone."""
    switch = {"true": STICKY_S, "1": STICKY_S, "false": 0, "0": 0}.get(text.lower())
    if switch is not None:
        return switch
    found = fullmatch(r"([1-9]\d{0,5})([smhd])", text, ASCII)
    if found is None:
        raise ValueError("must be true, false, or a time such as 30m, 24h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def _quantity(text: str, units: Mapping[str, float]) -> int:
    """Return a number with a unit; as tc(8) has it, a bare number is of the smallest."""
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
    """Read ``RECEIVED/SENT``, of which one may be 0 for no limit, or one quantity for both."""
    received, slash, sent = text.partition("/")
    if not slash:
        return (read(received),) * 2
    if received == sent == "0":
        raise ValueError("is no limit either way")
    return (0 if received == "0" else read(received)), (0 if sent == "0" else read(sent))


def _rate(text: str) -> int:
    rate = _quantity(text, _RATES)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError("must be from 8kbit to 1tbit")
    return rate


def _burst(text: str) -> int:
    burst = _quantity(text, _SIZES)
    if not SMALLEST_BURST <= burst <= LARGEST_BURST:
        raise ValueError("must be from 2000 bytes to 1024mb")
    return burst


def _rates(text: str) -> tuple[int, int]:
    return _both(text, _rate)


def _bursts(text: str) -> tuple[int, int]:
    return _both(text, _burst)


def _switch(text: str) -> bool:
    value = {"on": True, "off": False, "true": True, "false": False}.get(text.lower())
    if value is None:
        raise ValueError("must be on or off")
    return value


LONGEST_TTL = 86_400


def _ttl(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > LONGEST_TTL:
        raise ValueError(f"must be a number of seconds from 0 to {LONGEST_TTL}")
    return int(text)


_ALL: tuple[str, ...] = ()
_DOCKER = "com.docker.network."
OPTIONS: tuple[Option, ...] = (
    Option(
        "mode",
        (),
        _ALL,
        _word,
        BRIDGE,
        "how the network is built: `bridge`, `host`, `macvlan`, `none`, or what a driver adds",
    ),
    Option("name", (), _ALL, _word, "learned from Docker", "the network's name outside Docker"),
    Option("mtu", (_DOCKER + "driver.mtu",), _ALL, _mtu, "the uplink's", "bytes"),
    Option(
        "bridge",
        (_DOCKER + "bridge.name",),
        (BRIDGE, OVERLAY),
        _link,
        "made from the id",
        "interface name; an existing bridge is used and never deleted",
    ),
    Option(
        "masquerade",
        (_DOCKER + "bridge.enable_ip_masquerade",),
        (BRIDGE, HOST, OVERLAY),
        _boolean,
        "true",
        "containers leave the host under the host's address",
    ),
    Option(
        "icc",
        (_DOCKER + "bridge.enable_icc",),
        (BRIDGE, OVERLAY),
        _boolean,
        "true",
        "containers of the network may talk to each other",
    ),
    Option(
        "spoofchk",
        (),
        (BRIDGE, OVERLAY),
        _boolean,
        "true",
        "containers send with no address or MAC but their own; `false` for those that route for others",
    ),
    Option(
        "host_binding_ipv4",
        (_DOCKER + "bridge.host_binding_ipv4",),
        (BRIDGE, OVERLAY),
        _ipv4,
        "all addresses",
        "default host address of published ports",
    ),
    Option(
        "ifname",
        (_DOCKER + "container_iface_prefix",),
        _ALL,
        _prefix,
        "eth",
        "prefix of the interface's name in the sandbox",
    ),
    Option("parent", (), (MACVLAN,), _link, "the uplink", "link of the host on whose segment the containers are"),
    Option(
        "macvlan_mode",
        (),
        (MACVLAN,),
        _macvlan_mode,
        "bridge",
        "`bridge`, `vepa` (by way of the switch), `private` (not among each other), `passthru` (one container alone)",
    ),
    Option(
        "host_access",
        (),
        (MACVLAN,),
        _boolean,
        "false",
        "the host has an address beside the containers, and they reach each other",
    ),
    Option(
        "rate",
        (),
        (BRIDGE, HOST, OVERLAY),
        _rates,
        "no limit",
        "bits a second each way, `100mbit` style, or received and sent, `100mbit/20mbit`; also of one container, by "
        "`--driver-opt`",
        endpoint=True,
    ),
    Option(
        "burst",
        (),
        (BRIDGE, HOST, OVERLAY),
        _bursts,
        "10 ms at that rate, at least 80kb",
        "bytes that may pass at once, `128kb` style; also of one container",
        endpoint=True,
    ),
    Option("vni", (), (OVERLAY,), _vni, "allocated", "VXLAN network identifier, the same on all hosts"),
    Option("vxlan_port", (), (OVERLAY,), _port, "4789", "UDP port of the tunnels, the same on all hosts"),
    Option(
        "bum",
        (),
        (OVERLAY,),
        _boolean,
        "false",
        "broadcast, unknown unicast and multicast are copied to every host of the network",
    ),
    Option(
        "sticky",
        (),
        _ALL,
        _duration,
        "false",
        "a container of the same name gets its former addresses and MAC back within this time: `30m`, `7d`; "
        "`true` is `24h`; see [docs/docker.md](docs/docker.md#sticky-addresses)",
    ),
    Option(
        "dns",
        (),
        _ALL,
        _switch,
        "on",
        "`off`: the containers' names are not served, nor is port 53 of the gateway; see [docs/dns.md](docs/dns.md)",
    ),
    Option("ttl", (), _ALL, _ttl, "5", "seconds for which others may remember the names"),
)
ENDPOINT_OPTIONS = tuple(option for option in OPTIONS if option.endpoint)
_BY_KEY = {key: option for option in OPTIONS for key in (option.key, *option.aliases)}


def parse(raw: Mapping[str, str]) -> NetworkOptions:
    """Return the typed form of a network's options.

    >>> options = parse({"com.docker.network.driver.mtu": "1400", "icc": "false"})
    >>> options.mtu, options.icc, options.masquerade
    (1400, False, True)

    Raises:
        DriverError: a key is unknown, ill-formed, given twice with two values, or of another mode.
    """
    options = NetworkOptions(**_values(raw, OPTIONS))  # type: ignore[arg-type]  # each read by its row of the table
    _check_modes(raw, options.mode)
    return options


def parse_endpoint(raw: Mapping[str, str], mode: str) -> EndpointOptions:
    """Return the typed form of an endpoint's options in a network of this mode.

    >>> parse_endpoint({"rate": "10mbit/0", "burst": "32kb"}, "bridge")
    EndpointOptions(rate=(10000000, 0), burst=(32768, 32768))

    Raises:
        DriverError: as `parse`.
    """
    options = EndpointOptions(**_values(raw, ENDPOINT_OPTIONS))  # type: ignore[arg-type]  # each read by its row
    _check_modes(raw, mode)
    return options


def _values(raw: Mapping[str, str], known: Sequence[Option]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, text in raw.items():
        option = _find(key, known)
        value = _read(option, key, text)
        if values.setdefault(option.key, value) != value:
            raise DriverError(Kind.INVALID, f"option {key!r} contradicts another spelling of {option.key!r}")
    return values


def _check_modes(raw: Mapping[str, str], mode: str) -> None:
    for key in raw:
        option = _BY_KEY[key]
        if option.modes and mode not in option.modes:
            *others, last = option.modes
            modes = f"{', '.join(others)} and {last}" if others else last
            raise DriverError(Kind.INVALID, f"option {key!r} is of mode {modes}, the network's is {mode!r}")


def _find(key: str, known: Sequence[Option]) -> Option:
    option = _BY_KEY.get(key)
    if option in known and option:
        return option
    words = f"option {key!r} is of networks, not of endpoints" if option else f"unknown option {key[:80]!r}"
    raise DriverError(Kind.INVALID, words, hint=f"known options: {', '.join(option.key for option in known)}")


def _read(option: Option, key: str, text: str) -> object:
    try:
        return option.read(text)
    except ValueError as exc:
        raise DriverError(Kind.INVALID, f"option {key}={text[:80]!r}: {exc}") from None
