"""Translates a CNI configuration into a network and an endpoint for the engine.

Keys are netplug's options, or those of the reference plugins with their meaning: with ``isGateway``, there is a default
route only if ``isDefaultGateway`` or a route says so. Without such keys the network is as `netplug network create`
makes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from netplug.drivers import shared
from netplug.drivers.api import Network, PortMapping, StaticRoute
from netplug.drivers.option_values import MACVLAN_MODES
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import EVERYTHING, IPAddress, IPNetwork, Proto
from netplug.engine.records import FrontEnd, NetworkSpec, SubnetSpec
from netplug.errors.redaction import is_secret
from netplug.frontends.cni.result import Dns, read_resolv_conf
from netplug.frontends.cni.types import ConfigIn, IpamIn, PortIn, RangeIn, RouteIn, address_texts, section
from netplug.frontends.cni.wire import CniError, Code, Request
from netplug.frontends.rest.fields import unicast_mac
from netplug.ipam.pool import parse_address
from netplug.names.short_ids import short_id

_OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
DHCP = "dhcp"
"""The reference IPAM plugin that asks DHCP servers, by way of the interface."""
_RESOLV_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a configuration asks for.

    `groups`, `addresses`, `pinned`, `hairpin`: see `EndpointSpec`. `routes` None: default routes by the network's
    gateways; else these routes, by the network's gateway if they name none. `default_route`: add a default route to
    `routes`. `limits`: options of the endpoint.
    """

    network: NetworkSpec
    groups: tuple[tuple[IPNetwork, ...], ...] | None = None
    addresses: tuple[IPAddress, ...] = ()
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    routes: tuple[RouteIn, ...] | None = None
    default_route: bool = False
    dns: Dns = field(default_factory=Dns)
    limits: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    hairpin: bool = False

    def routes_in(self, net: Network, gateways: dict[int, IPAddress]) -> tuple[StaticRoute, ...] | None:
        """Return the sandbox's routes with these gateways; None for the network's own."""
        if self.routes is None:
            return None
        found = [StaticRoute(route.dst, route.gw or gateways.get(route.dst.version)) for route in self.routes]
        if self.default_route:
            listed = {route.destination for route in found}
            found += [
                StaticRoute(EVERYTHING[version], gateway)
                for version, gateway in sorted(gateways.items())
                if EVERYTHING[version] not in listed
            ]
        return tuple(route for route in found if not (net.internal and route.destination.prefixlen == 0))


def translate(request: Request, drivers: Drivers) -> Wanted:
    """Return what a configuration asks for.

    Raises:
        CniError: 2 for what we do not support, 7 for what is wrong. Nothing is ignored.
    """
    config = section(ConfigIn, request.raw)
    ipam = section(IpamIn, config.ipam or {}, "ipam") if not request.foreign_ipam else IpamIn()
    if config.promiscMode and config.hairpinMode:
        raise CniError(Code.CONFIG, "cannot set hairpin mode and promiscuous mode at the same time")
    if request.foreign_ipam == DHCP:
        _refuse_gateway(config)
    options = _options(config, drivers)
    mode = drivers.parse(options).mode  # refuses what is ill-formed before anything else is looked at
    sets = (*config.runtimeConfig.ipRanges, *ipam.sets())
    routes, default_route = _routes(config, ipam)
    asked = config.runtimeConfig.gw_priority or config.args.cni.gw_priority
    priority = {shared.GW_PRIORITY.key: asked} if asked else {}
    drivers.parse_endpoint(priority, mode)
    if not request.foreign_ipam:
        _refuse_useless({**options, **priority}, routes, default_route=default_route)
    return Wanted(
        NetworkSpec(
            name=request.network,
            options=options,
            subnets=_subnets(config, sets, silent=mode == drivers.default()),
            internal=config.internal,
            front_end=FrontEnd.CNI,
        ),
        tuple(tuple(dict.fromkeys(one.subnet for one in group)) for group in sets) if sets else None,
        _addresses(request, config),
        config.runtimeConfig.mac or config.args.cni.mac or _mac_argument(request) or config.mac,
        tuple(_port(port) for port in config.runtimeConfig.portMappings),
        _name(request, config),
        _aliases(request, config),
        routes,
        default_route,
        _dns(config, ipam),
        _limits(config, drivers) | priority,
        pinned=config.macspoofchk,
        hairpin=config.hairpinMode,
    )


def _refuse_useless(options: Mapping[str, str], routes: Sequence[RouteIn] | None, *, default_route: bool) -> None:
    """Refuse options about the default route of containers that get none."""
    if routes is None or default_route or any(not route.dst.prefixlen for route in routes):
        return
    for key in (shared.GW_PRIORITY.key, shared.METRIC.key):
        if key in options:
            words = f"{key}={options[key]}: this configuration gives its containers no default route"
            raise CniError(Code.CONFIG, words, "isDefaultGateway=true does")


def _refuse_gateway(config: ConfigIn) -> None:
    """Refuse options that need the subnet before the DHCP server names it. The gateway is a router on the segment."""
    for key in ("isGateway", "isDefaultGateway", "ipMasq"):
        if getattr(config, key):
            raise CniError(Code.CONFIG, f"{key}=true: not with ipam.type=dhcp", "the DHCP server names the gateway")


def _limits(config: ConfigIn, drivers: Drivers) -> dict[str, str]:
    """Return the endpoint's limits. "ingress" is what the endpoint receives. Rates and bursts are in bits."""
    asked = config.runtimeConfig.bandwidth
    if asked is None or not (asked.ingressRate or asked.egressRate):
        return {}
    options = {"rate": f"{asked.ingressRate}/{asked.egressRate}"}
    received = asked.ingressBurst // 8 if asked.ingressRate else 0
    sent = asked.egressBurst // 8 if asked.egressRate else 0
    if received or sent:
        options["burst"] = f"{received}/{sent}"
    drivers.parse_endpoint(options, drivers.taking(shared.RATE))
    return options


# Options


def _options(config: ConfigIn, drivers: Drivers) -> dict[str, str]:
    spellings = {key.lower(): name for key, name in drivers.spellings().items()}
    given: dict[str, str] = {}
    for key, value in (config.model_extra or {}).items():
        if key.startswith("cni.dev/"):
            continue
        name = spellings.get(key.lower())
        if name is None:
            shown = "***" if is_secret(key) else str(value)[:200]
            raise CniError(Code.UNSUPPORTED, f"unsupported field {key}={shown!r}")
        text = _text(key, value)
        if text and not (name == "mtu" and text == "0"):
            given[name] = text
    if config.master or given.get("mode") in set(MACVLAN_MODES) - set(drivers):
        given = _as_macvlan(config, given, drivers.taking(shared.MACVLAN_MODE))
    if config.ipMasq is not None:
        given.setdefault("masquerade", _text("ipMasq", config.ipMasq))
    if config.portIsolation is not None:
        given.setdefault("icc", _text("portIsolation", not config.portIsolation))
    return given


def _as_macvlan(config: ConfigIn, given: dict[str, str], ours: str) -> dict[str, str]:
    """Read a configuration of the reference's macvlan plugin: its ``mode`` is our ``macvlan_mode``."""
    mode = given.get("mode", ours)
    found = given | {"mode": ours}
    if config.master:
        found.setdefault("parent", config.master)
    if mode in MACVLAN_MODES:
        found.setdefault("macvlan_mode", mode)
    elif mode != ours:
        raise CniError(Code.CONFIG, f"master={config.master!r} is of macvlan, and mode is {mode!r}")
    return found


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise CniError(Code.CONFIG, f"invalid network configuration: {key}={str(value)[:200]!r}", "not a plain value")


# Subnets and addresses


def _subnets(config: ConfigIn, sets: tuple[tuple[RangeIn, ...], ...], *, silent: bool) -> tuple[SubnetSpec, ...]:
    """Return the subnets; `silent`: without a word of addresses there is one, with ``"ipam": {}`` none."""
    found: dict[IPNetwork, SubnetSpec] = {}
    for group in sets:
        if len({one.subnet.version for one in group}) > 1:
            raise CniError(Code.CONFIG, "ipam.ranges: a set has subnets of both families")
        for one in group:
            if one.subnet in found:
                raise CniError(Code.UNSUPPORTED, f"unsupported field ipam.ranges: two ranges of {one.subnet}")
            found[one.subnet] = _subnet(one)
    families = {subnet.version for subnet in found}
    silent &= not sets and (config.ipam is None or bool(config.ipam))
    wanted = {4, 6} if config.ipv6 else {4} if silent else set()
    return (*found.values(), *(SubnetSpec(v6=version == 6) for version in sorted(wanted - families)))


def _subnet(one: RangeIn) -> SubnetSpec:
    subnet = one.subnet
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        raise CniError(Code.CONFIG, f"subnet {subnet} is too small to allocate from")
    for key, address in (("rangeStart", one.rangeStart), ("rangeEnd", one.rangeEnd), ("gateway", one.gateway)):
        if address is not None and address not in subnet:
            raise CniError(Code.CONFIG, f"{key} {address} is not in subnet {subnet}")
    first, last = one.rangeStart or subnet[0], one.rangeEnd or subnet[-1]
    if int(first) > int(last):
        raise CniError(Code.CONFIG, f"rangeStart {first} is after rangeEnd {last}")
    ends = (first, last) if one.rangeStart or one.rangeEnd else None
    return SubnetSpec(subnet, one.gateway or subnet[1], v6=subnet.version == 6, ends=ends)


def _addresses(request: Request, config: ConfigIn) -> tuple[IPAddress, ...]:
    texts = address_texts(request.args.ip.split(","), config.args.cni.ips, config.runtimeConfig.ips)
    try:
        return tuple(parse_address(text) for text in texts)
    except ValueError as exc:
        raise CniError(Code.CONFIG, "a requested address is none", str(exc)) from None


def _mac_argument(request: Request) -> str:
    try:
        return unicast_mac(request.args.mac) if request.args.mac else ""
    except ValueError as exc:
        raise CniError(Code.ENVIRONMENT, f"CNI_ARGS: MAC {exc}") from None


def _port(port: PortIn) -> PortMapping:
    return PortMapping(Proto(port.protocol), port.containerPort, port.hostIP or None, port.hostPort, port.hostPort)


def _called(request: Request, config: ConfigIn) -> list[str]:
    """Return the names of a container: the pod's name, nerdctl's ``--name`` and ``--hostname``.

    Without ``--hostname`` nerdctl sends the beginning of the id, which is a name anyway.
    """
    labels = {**request.labels, **{label.key: label.value for label in config.args.cni.labels}}
    said = (request.args.pod, labels.get("nerdctl/name", ""), request.args.hostname, labels.get("nerdctl/hostname", ""))
    short = short_id(request.container)
    return [name for name in dict.fromkeys(said) if _OWN_NAME.fullmatch(name) and name != short]


def _name(request: Request, config: ConfigIn) -> str:
    return next(iter(_called(request, config)), "")


def _aliases(request: Request, config: ConfigIn) -> tuple[str, ...]:
    given = config.runtimeConfig.aliases
    names = given.get(request.network, ()) if isinstance(given, dict) else given
    if wrong := [name for name in names if not _OWN_NAME.fullmatch(name)]:
        raise CniError(Code.CONFIG, f"runtimeConfig.aliases: {wrong[0][:80]!r} is not a name")
    return tuple(dict.fromkeys((*names, *_called(request, config)[1:])))


# Routes and names


def _routes(config: ConfigIn, ipam: IpamIn) -> tuple[tuple[RouteIn, ...] | None, bool]:
    """Return the routes, None for the network's own, and whether to add a default route."""
    listed = [routes for routes in (config.routes, ipam.routes) if routes is not None]
    if not listed and (config.isDefaultGateway or config.isGateway is config.isDefaultGateway is None):
        return None, False
    return tuple(route for routes in listed for route in routes), bool(config.isDefaultGateway)


def _dns(config: ConfigIn, ipam: IpamIn) -> Dns:
    """Return the resolver's settings: the runtime's, else the configuration's, else those of IPAM's ``resolvConf``."""
    if asked := config.runtimeConfig.dns:
        return Dns(asked.servers, "", asked.searches, asked.options)
    if config.dns is not None:
        return Dns(config.dns.nameservers, config.dns.domain, config.dns.search, config.dns.options)
    if not ipam.resolvConf:
        return Dns()
    try:
        with Path(ipam.resolvConf).open(encoding="utf-8", errors="replace") as file:
            return read_resolv_conf(file.read(_RESOLV_BYTES))
    except OSError as exc:
        raise CniError(Code.CONFIG, f"ipam.resolvConf={ipam.resolvConf!r} cannot be read", str(exc.strerror)) from None


def translate_ipam(request: Request, drivers: Drivers) -> Wanted:
    """Return what another plugin's configuration asks of us as its IPAM: subnets, addresses, routes, names.

    Raises:
        CniError: as `translate`; the rest of the configuration is not ours to read.
    """
    ipam = section(IpamIn, request.get("ipam"), "ipam")
    ours = {key: request.get("runtimeConfig", key) for key in ("ips", "ipRanges", "dns")}
    runtime = {key: value for key, value in ours.items() if value is not None}
    config = section(
        ConfigIn,
        {
            "name": request.network,
            "ipam": {"type": ipam.type},
            "runtimeConfig": runtime,
            "args": request.get("args"),
        },
    )
    sets = (*config.runtimeConfig.ipRanges, *ipam.sets())
    return Wanted(
        NetworkSpec(
            name=request.network,
            options={"mode": drivers.bare()},
            subnets=_subnets(config, sets, silent=True),
            front_end=FrontEnd.CNI,
        ),
        tuple(tuple(dict.fromkeys(one.subnet for one in group)) for group in sets) if sets else None,
        _addresses(request, config),
        name=_name(request, config),
        routes=ipam.routes or (),
        dns=_dns(config, ipam),
    )


def without_ipam(wanted: Wanted) -> Wanted:
    """Return what is wanted if another IPAM chooses the addresses."""
    return replace(wanted, network=replace(wanted.network, subnets=()), groups=(), addresses=())
