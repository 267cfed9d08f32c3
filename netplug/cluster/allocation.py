"""Allocation of VNIs and subnets for a network of the cluster, and comparison of a request with an existing network."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import sha256

from netplug.cluster.claims import gateways
from netplug.cluster.records import Definition, Range
from netplug.drivers.errors import DriverError
from netplug.drivers.option_values import LARGEST_VNI
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPNetwork
from netplug.engine.records import NetworkSpec, Origin
from netplug.errors import NetplugError
from netplug.ipam.lease import Lease, Owner, OwnerKind
from netplug.ipam.pool import GLOBAL, check_request, pool_id
from netplug.ipam.spaces import default_spaces, ula
from netplug.ipam.subnets import Subnets
from netplug.store.api import Put

FIRST_VNI = 10_000
"""Smaller ones are defaults of other programs: flannel uses 1, swarm and Calico 4096 and more."""


def vni_for(ident: str, wanted: int, port: int, others: Mapping[str, Definition], drivers: Drivers) -> int:
    """Return the requested VNI, or a free one; the search begins at a hash of the network's id."""
    held = {}
    for other in others.values():
        with suppress(DriverError):  # of a driver that is not on this host
            options = drivers.parse(other.options)
            held[options.vni, options.vxlan_port] = other.name
    if wanted:
        if name := held.get((wanted, port)):
            words = f"option vni={wanted}: network {name!r} of the cluster uses it on UDP port {port}"
            raise NetplugError("exists", words, hint="choose another vni or vxlan_port")
        return wanted
    count = LARGEST_VNI - FIRST_VNI + 1
    start = int.from_bytes(sha256(ident.encode()).digest()[:4])
    return next(vni for vni in (FIRST_VNI + (start + n) % count for n in range(count)) if (vni, port) not in held)


def subnets_for(
    spec: NetworkSpec, others: Mapping[str, Definition], taken: Collection[IPNetwork], identity: str
) -> tuple[Range, ...]:
    chosen: list[Range] = []
    for wanted in spec.subnets:
        network = wanted.pool
        if network is None:
            network = free_subnet(6 if wanted.v6 else 4, others, [*taken, *(it.subnet for it in chosen)], identity)
        else:
            check_request(network, wanted.range, v6=wanted.v6)
            for other in others.values():
                if clash := next((it for it in other.subnets if _overlap(it.subnet, network)), None):
                    words = f"subnet {network} overlaps {clash.subnet} of network {other.name!r} of the cluster"
                    raise NetplugError("exists", words, hint="choose another --subnet")
        part = wanted.range if wanted.range != network else None
        chosen.append(Range(network, wanted.gateway or network[1], part))
    return tuple(chosen)


def free_subnet(
    version: int, others: Mapping[str, Definition], taken: Collection[IPNetwork], identity: str
) -> IPNetwork:
    """Return a subnet that no network of the cluster uses, and that overlaps nothing on this host."""
    obstacles = Subnets(version, (net for net in taken if net.version == version))
    for other in others.values():
        for held in other.subnets:
            if held.subnet.version == version and not obstacles.overlap(held.subnet):
                obstacles.add(held.subnet)
    space = next(it for it in default_spaces(ula(identity.encode())) if it.name == GLOBAL)
    for base in space.bases:
        if base.network.version == version:
            for index in range(base.count):
                if obstacles.overlap(candidate := base.subnet(index)) is None:
                    return candidate
    raise NetplugError("unavailable", f"the cluster has no free IPv{version} subnet", hint="choose a --subnet")


def completed(raw: Mapping[str, str], **values: str) -> dict[str, str]:
    """Return options with allocated values. Docker's name of the option mtu is removed, since ours is set."""
    return {key: value for key, value in raw.items() if key != "com.docker.network.driver.mtu"} | values


def gateways_of(ident: str, definition: Definition) -> list[Put]:
    owner = Owner(OwnerKind.GATEWAY, ident, definition.name)
    return gateways(Lease(pool_id(GLOBAL, it.subnet, it.range), it.gateway, owner) for it in definition.subnets)


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def refuse_other(definition: Definition, wanted: NetworkSpec, drivers: Drivers) -> None:
    """Refuse a request that differs from an existing network. Options that were not requested may differ.

    It may be as the network is, or as it was created: Docker repeats that on every host.

    Raises:
        NetplugError: "exists"; the message names the first difference.
    """
    origin = definition.origin or Origin(definition.options, internal=definition.internal)
    asked, found, first = (drivers.parse(it) for it in (wanted.options, definition.options, origin.options))
    unasked = drivers.parse({"mode": asked.mode})
    here: list[tuple[str, object, object, object]] = [
        ("internal", wanted.internal, definition.internal, origin.internal)
    ]
    here += [
        (f"option {key}", asked.value(key), found.value(key), first.value(key))
        for key in dict.fromkeys(drivers.keys_of(wanted.options, asked.mode))
        if key != "name" and asked.value(key) != unasked.value(key)
    ]
    subnets = {it.subnet for it in definition.subnets}
    here.append(("subnets", {it.pool for it in wanted.subnets}, subnets, subnets))
    gateways = {it.gateway for it in definition.subnets}
    for it in wanted.subnets:
        gateway = it.gateway if it.gateway in gateways else gateways
        here.append(("gateway", it.gateway, gateway, gateway))
    for what, want, there, created in here:
        if want not in (there, created):
            words = f"network {definition.name!r} of the cluster has {what} {_words(there)}, not {_words(want)}"
            raise NetplugError("exists", words, hint="create it as on the other hosts, or choose another name")


def _words(value: object) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, set) else str(value)
