"""Network options: what a declaration of one says, and the typed values that come of ``-o key=value``.

`shared` has the options that drivers offer by name; their values are fields of `NetworkOptions`. A driver declares
options of its own beside them; their values are in `NetworkOptions.own`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Generic, TypeAlias, TypeVar, cast

from .checked_texts import LinkOrNone, LinkPrefix
from .codec import OMIT_DEFAULT, Json

Value: TypeAlias = bool | int | float | str | tuple["Value", ...] | None
"""What an option of a driver's own may be; records keep it as JSON."""
T = TypeVar("T")


class OwnOptions(Mapping[str, Value]):
    """The values of a driver's own options, by key; it does not change.

    >>> OwnOptions({"ports": [1, 2]})
    OwnOptions({'ports': (1, 2)})
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        self._values = {key: _value(item) for key, item in (values or {}).items()}

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"OwnOptions({self._values!r})"

    @classmethod
    def from_json(cls, data: Json) -> "OwnOptions":
        """Return what the codec stored.

        Raises:
            ValueError: it is not a mapping.
        """
        if not isinstance(data, dict):
            raise ValueError("options are stored as an object")
        return cls(data)


def _value(item: object) -> Value:
    if item is None or isinstance(item, bool | int | float | str):
        return item
    if isinstance(item, tuple | list):
        return tuple(map(_value, item))
    raise ValueError(f"its parser returns {type(item).__name__}, which no record can keep")


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """The options of one network.

    `mtu` 0: the uplink's. `bridge` empty: a name derived from the network's id. `parent` empty: the uplink. `sticky`:
    seconds for which the addresses of a removed container are kept for its name. `rate`: bits per second that a
    container receives and sends, 0 for no limit; `burst`: bytes, 0 for what the rate needs. `vni` 0: not allocated yet.
    `dns`: netplug answers for the network's names; `ttl`: TTL of the records in seconds. `dns_upstream`: resolvers for
    external names, each ``[DOMAIN=]ADDRESS[#PORT]``; empty for those of the host. `own`: those that only this mode's
    driver knows. `gw_priority`: the network with the highest one provides the default route of a sandbox.
    `metric`: of that route, 0 for the kernel's.
    """

    mode: str = "bridge"
    name: str = ""
    mtu: int = 0
    bridge: LinkOrNone = ""
    masquerade: bool = True
    icc: bool = True
    spoofchk: bool = True
    slaac: bool = False
    host_binding_ipv4: IPv4Address | None = None
    ifname: LinkPrefix = "eth"
    parent: LinkOrNone = ""
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
    own: OwnOptions = field(default=OwnOptions(), metadata=OMIT_DEFAULT)
    gw_priority: int = field(default=0, metadata=OMIT_DEFAULT)
    metric: int = field(default=0, metadata=OMIT_DEFAULT)

    def value(self, key: str) -> object:
        """Return the value of an option by its key; None for one that the network does not have."""
        return self.own[key] if key in self.own else getattr(self, key, None)


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """The options of one endpoint; they override those of its network."""

    rate: tuple[int, int] | None = None
    burst: tuple[int, int] | None = None
    own: OwnOptions = field(default=OwnOptions(), metadata=OMIT_DEFAULT)
    gw_priority: int | None = field(default=None, metadata=OMIT_DEFAULT)

    def value(self, key: str) -> object:
        """Return the value of an option by its key; None for one that was not given."""
        return self.own[key] if key in self.own else getattr(self, key, None)


@dataclass(frozen=True, slots=True)
class Option(Generic[T]):
    """The declaration of an option.

    `read`: turns the text of a value into the value, or raises ValueError with words that go on after the option's
    name: "must be …". `default`: what users read that it is; of a driver's own option, such a text. `meaning`: one
    phrase for users. `aliases`: other spellings of the key. `endpoint`: it can be given for one endpoint as well, and
    overrides that of the network there. `fixed`: why a network that lives cannot take another value; empty: it can,
    since the plans of the network and its endpoints, computed with it, are enough.
    """

    key: str
    read: Callable[[str], T]
    default: str
    meaning: str
    aliases: tuple[str, ...] = ()
    endpoint: bool = False
    fixed: str = "its driver does not offer that"

    def of(self, net: NetworkOptions, ep: EndpointOptions | None = None) -> T:
        """Return the value of a driver's own option in a network, or at an endpoint of it.

        >>> Option("hops", int, "1", "how far").of(NetworkOptions(own=OwnOptions({"hops": 2})))
        2
        >>> Option("hops", int, "1", "how far").of(NetworkOptions())
        1
        """
        for own in (ep.own if ep else OwnOptions(), net.own):
            if self.key in own:
                return cast("T", own[self.key])
        return self.read(self.default)


AnyOption: TypeAlias = Option[Any]
