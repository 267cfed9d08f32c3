"""Network options: ``-o key=value`` and Docker's own ``com.docker.network.*`` keys into a typed object.

One table lists for each key its aliases, its modes, its parser and its meaning. The parser, the error messages and the
README's table all come from it. An unknown key or a malformed value is an error that names the key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from . import option_values
from .errors import DriverError, Kind

BRIDGE = "bridge"
HOST = "host"
MACVLAN = "macvlan"
NONE = "none"
OVERLAY = "overlay"


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """The options of one network.

    `mtu` 0: the uplink's. `bridge` empty: a name derived from the network's id. `parent` empty: the uplink. `sticky`:
    seconds for which the addresses of a removed container are kept for its name. `rate`: bits per second that a
    container receives and sends, 0 for no limit; `burst`: bytes, 0 for what the rate needs. `vni` 0: not allocated yet.
    `dns`: netplug answers for the network's names; `ttl`: TTL of the records in seconds. `dns_upstream`: resolvers for
    external names, each ``[DOMAIN=]ADDRESS[#PORT]``; empty for those of the host.
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
    """The options of one endpoint; they override those of its network."""

    rate: tuple[int, int] | None = None
    burst: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the options table. No `modes`: all modes, including those of third-party drivers.

    `endpoint`: the option can be given for one endpoint as well.
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
        option_values.word,
        BRIDGE,
        "how the network is built: `bridge`, `host`, `macvlan`, `none`, `overlay` (several hosts), or the mode "
        "of another driver",
    ),
    Option("name", (), _ALL, option_values.word, "learned from Docker", "name of the network outside Docker"),
    Option(
        "mtu",
        (_DOCKER + "driver.mtu",),
        _ALL,
        option_values.mtu,
        "the uplink's",
        "MTU of the network's links, in bytes",
    ),
    Option(
        "bridge",
        (_DOCKER + "bridge.name",),
        (BRIDGE, OVERLAY),
        option_values.link,
        "derived from the network's id",
        "interface name of the bridge; an existing bridge is used and never deleted",
    ),
    Option(
        "masquerade",
        (_DOCKER + "bridge.enable_ip_masquerade",),
        (BRIDGE, HOST, OVERLAY),
        option_values.boolean,
        "true",
        "source NAT: traffic of containers leaves the host with the host's address",
    ),
    Option(
        "icc",
        (_DOCKER + "bridge.enable_icc",),
        (BRIDGE, OVERLAY),
        option_values.boolean,
        "true",
        "containers of the network may communicate with each other",
    ),
    Option(
        "spoofchk",
        (),
        (BRIDGE, OVERLAY),
        option_values.boolean,
        "true",
        "anti-spoofing: a container sends only with its own MAC and addresses; set `false` for containers that route "
        "for others",
    ),
    Option(
        "slaac",
        (),
        (BRIDGE, MACVLAN),
        option_values.boolean,
        "false",
        "containers take routes and addresses from router advertisements (SLAAC, RFC 4862); on a bridge this needs "
        "`spoofchk=false`. It does not apply to Docker's containers: set `--sysctl net.ipv6.conf.default.accept_ra=…` "
        "there",
    ),
    Option(
        "host_binding_ipv4",
        (_DOCKER + "bridge.host_binding_ipv4",),
        (BRIDGE, OVERLAY),
        option_values.ipv4,
        "all addresses",
        "host address for published ports that name none",
    ),
    Option(
        "ifname",
        (_DOCKER + "container_iface_prefix",),
        _ALL,
        option_values.prefix,
        "eth",
        "prefix of interface names in the sandbox",
    ),
    Option(
        "parent",
        (),
        (MACVLAN,),
        option_values.link,
        "the uplink",
        "parent link on the host: containers join its segment",
    ),
    Option(
        "macvlan_mode",
        (),
        (MACVLAN,),
        option_values.macvlan_mode,
        "bridge",
        "`bridge`, `vepa` (containers reach each other through the switch), `private` (containers do not reach each "
        "other), `passthru` (one container has the parent to itself)",
    ),
    Option(
        "host_access",
        (),
        (MACVLAN,),
        option_values.boolean,
        "false",
        "the host gets an address in the network, so that host and containers reach each other",
    ),
    Option(
        "rate",
        (),
        (BRIDGE, HOST, OVERLAY),
        option_values.rates,
        "no limit",
        "bandwidth limit: `100mbit` for each direction, or `100mbit/20mbit` for received and sent traffic; also for "
        "one container, by `--driver-opt`",
        endpoint=True,
    ),
    Option(
        "burst",
        (),
        (BRIDGE, HOST, OVERLAY),
        option_values.bursts,
        "10 ms at the rate, at least 80kb",
        "bytes that may exceed the rate at once, such as `128kb`; also for one container",
        endpoint=True,
    ),
    Option("vni", (), (OVERLAY,), option_values.vni, "allocated", "VXLAN network identifier, the same on all hosts"),
    Option("vxlan_port", (), (OVERLAY,), option_values.port, "4789", "UDP port of the tunnels, the same on all hosts"),
    Option(
        "bum",
        (),
        (OVERLAY,),
        option_values.boolean,
        "false",
        "broadcast, unknown unicast and multicast frames are copied to every host of the network",
    ),
    Option(
        "sticky",
        (),
        _ALL,
        option_values.duration,
        "false",
        "a new container with the same name gets the former addresses and MAC back within this time: `30m`, `7d`; "
        "`true` means `24h`; see [docs/docker.md](docs/docker.md#sticky-addresses)",
    ),
    Option(
        "dns",
        (),
        _ALL,
        option_values.switch,
        "on",
        "`off`: netplug does not serve the containers' names and does not answer at port 53 of the gateway; see "
        "[docs/dns.md](docs/dns.md)",
    ),
    Option(
        "dns_upstream",
        (),
        _ALL,
        option_values.upstreams,
        "the daemon's",
        "resolvers for external names: `10.0.0.1`, or `corp.example=10.0.0.53` for one domain; separate several with "
        "commas",
    ),
    Option("ttl", (), _ALL, option_values.ttl, "5", "TTL of the network's DNS records, in seconds"),
)
ENDPOINT_OPTIONS = tuple(option for option in OPTIONS if option.endpoint)
_BY_KEY = {key: option for option in OPTIONS for key in (option.key, *option.aliases)}


def parse(raw: Mapping[str, str]) -> NetworkOptions:
    """Return the typed form of a network's options.

    >>> options = parse({"com.docker.network.driver.mtu": "1400", "icc": "false"})
    >>> options.mtu, options.icc, options.masquerade
    (1400, False, True)

    Raises:
        DriverError: a key is unknown, malformed, given twice with different values, or belongs to another mode.
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
            raise DriverError(
                Kind.INVALID, f"option {key!r} exists only in mode {modes}, the network has mode {mode!r}"
            )


def _find(key: str, known: Sequence[Option]) -> Option:
    option = _BY_KEY.get(key)
    if option in known and option:
        return option
    words = f"option {key!r} applies to networks, not to endpoints" if option else f"unknown option {key[:80]!r}"
    raise DriverError(Kind.INVALID, words, hint=f"known options: {', '.join(option.key for option in known)}")


def _read(option: Option, key: str, text: str) -> object:
    try:
        return option.read(text)
    except ValueError as exc:
        raise DriverError(Kind.INVALID, f"option {key}={text[:80]!r}: {exc}") from None
