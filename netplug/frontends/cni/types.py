"""The network configuration of CNI, as the specification and the reference plugins have it.

Keys are matched in any case, as Go's decoder does: containerd and nerdctl send ``HostPort`` where the specification
says ``hostPort``. A key is supported or refused by name, never ignored.
"""
# ruff: noqa: N815 - the names are those of the wire

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from netplug.errors.redaction import is_secret
from netplug.errors.validation import wrong
from netplug.frontends.cni.wire import CniError, Code
from netplug.frontends.first_error import FirstError
from netplug.frontends.rest.fields import Cidr, Ip, Mac, Port


def _listed(value: Any) -> Any:
    return [] if value is None else value


class _Section(BaseModel):
    """An object of the configuration; its keys come in any case, and null means absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {name.lower(): name for name in cls.model_fields}
        return {known.get(key.lower(), key): value for key, value in data.items() if value is not None}


class RouteIn(_Section):
    dst: Cidr
    gw: Ip | None = None


class RangeIn(_Section):
    subnet: Cidr
    rangeStart: Ip | None = None
    rangeEnd: Ip | None = None
    gateway: Ip | None = None


class IpamIn(_Section):
    """The section of our own IPAM, with host-local's keys. `dataDir` is host-local's, and has no effect."""

    type: str = ""
    ranges: tuple[Annotated[tuple[RangeIn, ...], Field(min_length=1)], ...] = ()
    subnet: Cidr | None = None
    rangeStart: Ip | None = None
    rangeEnd: Ip | None = None
    gateway: Ip | None = None
    routes: tuple[RouteIn, ...] | None = None
    resolvConf: str = ""
    dataDir: str = ""

    def sets(self) -> tuple[tuple[RangeIn, ...], ...]:
        """Return the sets of ranges: an endpoint gets one address of each set. The single range comes first."""
        if self.subnet is None:
            return self.ranges
        single = RangeIn(subnet=self.subnet, rangeStart=self.rangeStart, rangeEnd=self.rangeEnd, gateway=self.gateway)
        return ((single,), *self.ranges)


class DnsIn(_Section):
    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class RuntimeDnsIn(_Section):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortIn(_Section):
    hostPort: Port
    containerPort: Port
    protocol: Annotated[
        Literal["tcp", "udp", "sctp"],
        BeforeValidator(lambda text: text.lower() or "tcp" if isinstance(text, str) else text),
    ] = "tcp"
    hostIP: Ip | Literal[""] = ""


class BandwidthIn(_Section):
    """Rates in bits per second, bursts in bits."""

    ingressRate: Annotated[int, Field(ge=0)] = 0
    ingressBurst: Annotated[int, Field(ge=0)] = 0
    egressRate: Annotated[int, Field(ge=0)] = 0
    egressBurst: Annotated[int, Field(ge=0)] = 0


Whole = Annotated[str, BeforeValidator(lambda it: str(it) if type(it) is int else it)]
"""A number, or its text."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class RuntimeIn(_Section):
    """`aliases`: a list, or with podman a map from networks to lists. Not ours: `cgroupPath`, `infinibandGUID`."""

    portMappings: Annotated[tuple[PortIn, ...], FirstError()] = ()
    bandwidth: BandwidthIn | None = None
    ips: Texts = ()
    mac: Mac | Literal[""] = ""
    ipRanges: tuple[Annotated[tuple[RangeIn, ...], Field(min_length=1)], ...] = ()
    dns: RuntimeDnsIn | None = None
    aliases: Texts | dict[str, Texts] = ()
    cgroupPath: str = ""
    infinibandGUID: Literal[""] = ""
    gw_priority: Whole | None = None
    deviceID: Literal[""] = ""


class LabelIn(_Section):
    key: str
    value: str = ""


class CniArgsIn(BaseModel):
    """Every plugin of a list gets these, so what is not for us is for another one, such as `sysctl` for tuning.

    A plugin may ignore what it does not know (CONVENTIONS.md of CNI, "args in network config").
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    labels: tuple[LabelIn, ...] = ()
    ips: Texts = ()
    mac: Mac | Literal[""] = ""
    gw_priority: Whole | None = None


class ArgsIn(BaseModel):
    """`args` belongs to runtimes (podman keeps labels of its own there); only ``cni`` is for plugins."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    cni: CniArgsIn = CniArgsIn()


Zero = Annotated[int, Field(ge=0, le=0)]


class ConfigIn(_Section):
    """The plugin object.

    netplug's own options are in `model_extra`. The fields are the keys of the reference plugins. A `Literal` is the
    only value that we support.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    cniVersion: str = ""
    type: str = ""
    capabilities: dict[str, bool] = {}
    runtimeConfig: RuntimeIn = RuntimeIn()
    args: ArgsIn = ArgsIn()
    prevResult: dict[str, Any] | None = None
    ipam: dict[str, Any] | None = None
    dns: DnsIn | None = None
    routes: tuple[RouteIn, ...] | None = None

    internal: bool = False
    ipv6: bool = False

    isGateway: bool | None = None
    isDefaultGateway: bool | None = None
    ipMasq: bool | None = None
    ipMasqBackend: Literal["", "iptables", "nftables"] = ""
    hairpinMode: bool = False
    promiscMode: bool = False
    portIsolation: bool | None = None
    forceAddress: bool = False
    macspoofchk: bool = False
    vlan: Zero = 0
    vlanTrunk: Annotated[tuple[Any, ...], Field(max_length=0)] = ()
    preserveDefaultVlan: bool = False
    enabledad: Literal[False] = False
    disableContainerInterface: Literal[False] = False
    master: Annotated[str, Field(max_length=15)] = ""
    linkInContainer: Literal[False] = False
    bcqueuelen: Zero = 0
    mac: Mac | Literal[""] = ""


_M = TypeVar("_M", bound=BaseModel)


def section(model: type[_M], data: Any, where: str = "") -> _M:
    """Read an object of the configuration.

    Raises:
        CniError: 2: an unknown key, or a value of the reference plugins that we do not support; else 7.
    """
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise _explain(exc, where) from None


def _explain(exc: ValidationError, where: str) -> CniError:
    error = exc.errors()[0]
    # Where a value may be of several kinds, pydantic adds the kind's name to the path.
    path = ".".join([where] * bool(where) + [str(part) for part in error["loc"] if not _is_kind(str(part))])
    secret = is_secret(path)
    shown = '"***"' if secret else json.dumps(error["input"], default=str)[:200]
    unsupported = {"extra_forbidden", "literal_error", "less_than_equal", "greater_than_equal", "too_long"}
    if error["type"] in unsupported and path.rpartition(".")[2] not in {"hostPort", "containerPort", "protocol"}:
        return CniError(Code.UNSUPPORTED, f"unsupported field {path}={shown}")
    if error["type"] == "missing":
        return CniError(Code.CONFIG, f"invalid network configuration: {path} is missing")
    details = "" if secret else wrong(dict(error))
    return CniError(Code.CONFIG, f"invalid network configuration: {path}={shown}", details)


def _is_kind(part: str) -> bool:
    return "[" in part or part in {"tuple", "dict", "str"}


def address_texts(*sources: Sequence[str]) -> tuple[str, ...]:
    """Return requested addresses without prefix lengths, each once, in order."""
    return tuple(dict.fromkeys(text.strip().partition("/")[0] for source in sources for text in source if text.strip()))
