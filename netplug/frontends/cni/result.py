"""CNI results: read in any version of the specification, merged, and written in any.

Inside, all results have the form of version 1.1.0. Older versions lose what they have no field for. 0.1.0 and 0.2.0
have one address for each IP version and nothing else: a result with none, or more, cannot be written in them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from netplug.drivers.steps import IPAddress, IPInterface, IPNetwork
from netplug.frontends.cni.wire import CniError, Code

_FIRST_LISTS = "0.3.0"
_FIRST_PLAIN = "1.0.0"
_FIRST_MTU = "1.1.0"


@dataclass(frozen=True, slots=True)
class Interface:
    """`sandbox`: empty on the host. `extra`: fields that only 1.1.0 has, beside the MTU."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ip:
    """`interface`: index in the result's interfaces."""

    address: IPInterface
    gateway: IPAddress | None = None
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class RouteOf:
    """`extra`: mtu, advmss, priority, table, scope."""

    dst: IPNetwork
    gw: IPAddress | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dns:
    """Settings for resolv.conf(5)."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def render(self) -> dict[str, Any]:
        """Return its JSON, without empty fields."""
        lists = {"nameservers": self.nameservers, "search": self.search, "options": self.options}
        found: dict[str, Any] = {key: list(value) for key, value in lists.items() if value}
        return found | ({"domain": self.domain} if self.domain else {})


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an ADD."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[RouteOf, ...] = ()
    dns: Dns = field(default_factory=Dns)

    def after(self, previous: "Result") -> "Result":
        """Return `previous`, the result of the plugin before, with this one added."""
        shift = len(previous.interfaces)
        moved = tuple(ip if ip.interface is None else replace(ip, interface=ip.interface + shift) for ip in self.ips)
        return Result(
            previous.interfaces + self.interfaces,
            previous.ips + moved,
            previous.routes + self.routes,
            self.dns if self.dns != Dns() else previous.dns,
        )

    def interface(self, name: str, sandbox: str) -> int | None:
        """Return the index of an interface in a sandbox; None if there is none."""
        found = (i for i, one in enumerate(self.interfaces) if (one.name, one.sandbox) == (name, sandbox))
        return next(found, None)


def render(result: Result, version: str) -> dict[str, Any]:
    """Return a result's JSON in a version of the specification.

    Raises:
        CniError: the version cannot express it.
    """
    if _older(version, _FIRST_LISTS):
        return _render_first(result, version)
    mtu = not _older(version, _FIRST_MTU)
    data: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        data["interfaces"] = [_interface(one, mtu=mtu) for one in result.interfaces]
    if result.ips:
        data["ips"] = [_ip(one, versions=_older(version, _FIRST_PLAIN)) for one in result.ips]
    if result.routes:
        data["routes"] = [_route(one) | (dict(one.extra) if mtu else {}) for one in result.routes]
    return _with_dns(data, result, version)


def _render_first(result: Result, version: str) -> dict[str, Any]:
    if not result.ips:
        raise CniError(Code.UNSUPPORTED, "cannot convert: no valid IP addresses", f"version {version} needs one")
    data: dict[str, Any] = {"cniVersion": version}
    for ip in result.ips:
        key = f"ip{ip.address.version}"
        if key in data:
            words = f"CNI version {version} does not support more than 1 address per family"
            raise CniError(Code.UNSUPPORTED, words)
        routes = [_route(route) for route in result.routes if route.dst.version == ip.address.version]
        data[key] = {
            "ip": str(ip.address),
            **({"gateway": str(ip.gateway)} if ip.gateway else {}),
            **({"routes": routes} if routes else {}),
        }
    return _with_dns(data, result, version)


def _with_dns(data: dict[str, Any], result: Result, version: str) -> dict[str, Any]:
    dns = result.dns.render()
    return data | ({"dns": dns} if dns or _older(version, _FIRST_PLAIN) else {})


def _interface(one: Interface, *, mtu: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"name": one.name}
    data |= {key: value for key, value in (("mac", one.mac), ("sandbox", one.sandbox)) if value}
    return data | (({"mtu": one.mtu} if one.mtu else {}) | dict(one.extra) if mtu else {})


def _ip(one: Ip, *, versions: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"version": str(one.address.version)} if versions else {}
    data["address"] = str(one.address)
    if one.gateway:
        data["gateway"] = str(one.gateway)
    return data | ({"interface": one.interface} if one.interface is not None else {})


def _route(one: RouteOf) -> dict[str, Any]:
    return {"dst": str(one.dst), **({"gw": str(one.gw)} if one.gw else {})}


def _older(version: str, than: str) -> bool:
    return [int(part) for part in version.split(".")] < [int(part) for part in than.split(".")]


def parse(data: Mapping[str, Any], version: str) -> Result:
    """Read a result of another plugin. Without a version it has the configuration's.

    Raises:
        CniError: code 6: it is no result.
    """
    try:
        return _parse(data, str(data.get("cniVersion") or version))
    except (AttributeError, TypeError, ValueError, OverflowError):
        why = f"it is not of the form that CNI {version} has"
    except KeyError as exc:
        why = f"{exc.args[0]!r} is missing"
    raise CniError(Code.DECODE, "a previous result cannot be read", why)


def _parse(data: Mapping[str, Any], version: str) -> Result:
    dns = data.get("dns") or {}
    names = Dns(
        tuple(dns.get("nameservers") or ()),
        str(dns.get("domain") or ""),
        tuple(dns.get("search") or ()),
        tuple(dns.get("options") or ()),
    )
    if _older(version, _FIRST_LISTS):
        families = [data[key] for key in ("ip4", "ip6") if data.get(key)]
        ips = tuple(Ip(ip_interface(_text(one["ip"])), _address(one.get("gateway"))) for one in families)
        return Result((), ips, _routes(route for one in families for route in one.get("routes") or ()), names)
    return Result(
        tuple(_read_interface(one) for one in data.get("interfaces") or ()),
        tuple(
            Ip(ip_interface(_text(one["address"])), _address(one.get("gateway")), one.get("interface"))
            for one in data.get("ips") or ()
        ),
        _routes(data.get("routes") or ()),
        names,
    )


def _read_interface(data: Mapping[str, Any]) -> Interface:
    extra = {key: data[key] for key in ("socketPath", "pciID") if data.get(key)}
    mac, sandbox = str(data.get("mac") or ""), str(data.get("sandbox") or "")
    return Interface(str(data["name"]), mac, sandbox, int(data.get("mtu") or 0), extra)


def _routes(found: Iterable[Mapping[str, Any]]) -> tuple[RouteOf, ...]:
    keys: Sequence[str] = ("mtu", "advmss", "priority", "table", "scope")
    return tuple(
        RouteOf(
            ip_network(_text(one["dst"]), strict=False),
            _address(one.get("gw")),
            {key: one[key] for key in keys if one.get(key) is not None},
        )
        for one in found
    )


def _address(text: str | None) -> IPAddress | None:
    return ip_address(_text(text)) if text else None


def _text(value: object) -> str:
    if not isinstance(value, str):  # `ipaddress` takes numbers for addresses
        raise TypeError
    return value


def read_resolv_conf(text: str) -> Dns:
    """Read resolv.conf(5)."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    domain = ""
    for words in (line.split() for line in text.splitlines()):
        match words:
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["domain", name, *_]:
                domain = name
            case ["search", *names]:
                search = tuple(names)
            case ["options", *names]:
                options += names
    return Dns(tuple(servers), domain, search, tuple(options))
