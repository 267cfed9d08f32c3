"""Network options: ``-o key=value`` and Docker's own ``com.docker.network.*`` keys into a typed object.

One table says of each key its aliases, the modes that know it, how its text is read and what it means; the parser,
the error messages and the README's table all come from it. An unknown or ill-formed key is an error that names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from . import values
from .errors import DriverError, Kind

BRIDGE = "bridge"
HOST = "host"
MACVLAN = "macvlan"
NONE = "none"
OVERLAY = "overlay"


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """The options of one network.

    `mtu` 0: the uplink's. `bridge` empty: a name made from the network's id. `parent` empty: the uplink. `sticky`:
    seconds for which addresses are kept for the container that had them. `rate`: bits a second that
    a container receives and sends, 0 for no limit; `burst`: bytes, 0 for what the rate needs. `vni` 0: none yet.
    `dns`: we answer for the network's names; `ttl`: seconds that they hold. `dns_upstream`: whom to ask for names of
    others, each ``[DOMAIN=]ADDRESS[#PORT]``; empty for those of the host.
    """

    mode: str = BRIDGE
    name: str = ""
    mtu: int = 0
    bridge: str = ""
    masquerade: bool = True
    icc: bool = True
    spoofchk: bool = True
    slaac: bool = False
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
    dns_upstream: tuple[str, ...] = ()
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


_ALL: tuple[str, ...] = ()
_DOCKER = "com.docker.network."
OPTIONS: tuple[Option, ...] = (
    Option(
        "mode",
        (),
        _ALL,
        values.word,
        BRIDGE,
        "how the network is built: `bridge`, `host`, `macvlan`, `none`, `overlay` (several hosts), or a driver's own",
    ),
    Option("name", (), _ALL, values.word, "learned from Docker", "the network's name outside Docker"),
    Option("mtu", (_DOCKER + "driver.mtu",), _ALL, values.mtu, "the uplink's", "bytes"),
    Option(
        "bridge",
        (_DOCKER + "bridge.name",),
        (BRIDGE, OVERLAY),
        values.link,
        "made from the id",
        "interface name; an existing bridge is used and never deleted",
    ),
    Option(
        "masquerade",
        (_DOCKER + "bridge.enable_ip_masquerade",),
        (BRIDGE, HOST, OVERLAY),
        values.boolean,
        "true",
        "containers leave the host under the host's address",
    ),
    Option(
        "icc",
        (_DOCKER + "bridge.enable_icc",),
        (BRIDGE, OVERLAY),
        values.boolean,
        "true",
        "containers of the network may talk to each other",
    ),
    Option(
        "spoofchk",
        (),
        (BRIDGE, OVERLAY),
        values.boolean,
        "true",
        "containers send with no address or MAC but their own; `false` for those that route for others",
    ),
    Option(
        "slaac",
        (),
        (BRIDGE, MACVLAN),
        values.boolean,
        "false",
        "containers take routes from router advertisements, and addresses of their prefixes; on a bridge with "
        "`spoofchk=false` only. Not of Docker's, which decides by `--sysctl net.ipv6.conf.default.accept_ra=…`",
    ),
    Option(
        "host_binding_ipv4",
        (_DOCKER + "bridge.host_binding_ipv4",),
        (BRIDGE, OVERLAY),
        values.ipv4,
        "all addresses",
        "default host address of published ports",
    ),
    Option(
        "ifname",
        (_DOCKER + "container_iface_prefix",),
        _ALL,
        values.prefix,
        "eth",
        "prefix of the interface's name in the sandbox",
    ),
    Option("parent", (), (MACVLAN,), values.link, "the uplink", "link of the host on whose segment the containers are"),
    Option(
        "macvlan_mode",
        (),
        (MACVLAN,),
        values.macvlan_mode,
        "bridge",
        "`bridge`, `vepa` (by way of the switch), `private` (not among each other), `passthru` (one container alone)",
    ),
    Option(
        "host_access",
        (),
        (MACVLAN,),
        values.boolean,
        "false",
        "the host has an address beside the containers, and they reach each other",
    ),
    Option(
        "rate",
        (),
        (BRIDGE, HOST, OVERLAY),
        values.rates,
        "no limit",
        "bits a second each way, `100mbit` style, or received and sent, `100mbit/20mbit`; also of one container, by "
        "`--driver-opt`",
        endpoint=True,
    ),
    Option(
        "burst",
        (),
        (BRIDGE, HOST, OVERLAY),
        values.bursts,
        "10 ms at that rate, at least 80kb",
        "bytes that may pass at once, `128kb` style; also of one container",
        endpoint=True,
    ),
    Option("vni", (), (OVERLAY,), values.vni, "allocated", "VXLAN network identifier, the same on all hosts"),
    Option("vxlan_port", (), (OVERLAY,), values.port, "4789", "UDP port of the tunnels, the same on all hosts"),
    Option(
        "bum",
        (),
        (OVERLAY,),
        values.boolean,
        "false",
        "broadcast, unknown unicast and multicast are copied to every host of the network",
    ),
    Option(
        "sticky",
        (),
        _ALL,
        values.duration,
        "false",
        "a container of the same name gets its former addresses and MAC back within this time: `30m`, `7d`; "
        "`true` is `24h`; see [docs/docker.md](docs/docker.md#sticky-addresses)",
    ),
    Option(
        "dns",
        (),
        _ALL,
        values.switch,
        "on",
        "`off`: the containers' names are not served, nor is port 53 of the gateway; see [docs/dns.md](docs/dns.md)",
    ),
    Option(
        "dns_upstream",
        (),
        _ALL,
        values.upstreams,
        "the daemon's",
        "who is asked for names of others, `10.0.0.1` or for one domain `corp.example=10.0.0.53`; several with commas",
    ),
    Option("ttl", (), _ALL, values.ttl, "5", "seconds for which others may remember the names"),
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


def fields(raw: Mapping[str, str]) -> list[str]:
    """Return the fields of `NetworkOptions` that options are, in whichever spelling.

    >>> fields({"com.docker.network.driver.mtu": "1400", "icc": "false"})
    ['mtu', 'icc']
    """
    return [_find(key, OPTIONS).key for key in raw]


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
    found: dict[str, object] = {}
    for key, text in raw.items():
        option = _find(key, known)
        value = _read(option, key, text)
        if found.setdefault(option.key, value) != value:
            raise DriverError(Kind.INVALID, f"option {key!r} contradicts another spelling of {option.key!r}")
    return found


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
