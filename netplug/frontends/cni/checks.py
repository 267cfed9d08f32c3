"""What CHECK and STATUS look at, and whether a configuration fits a network that is there."""

from collections.abc import Iterator
from contextlib import suppress

from netplug.drivers.api import Network
from netplug.drivers.naming import short
from netplug.drivers.options import fields, parse
from netplug.engine import Engine
from netplug.engine.base_plan import driver_of
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord, NetworkSpec, SubnetSpec
from netplug.errors import NetplugError
from netplug.frontends.cni.result import Result
from netplug.frontends.cni.wire import CniError, Code
from netplug.ipam.allocator import Allocator

_NAMED = 3
"""Of those who are in a network so many are named."""


def refuse_disagreement(engine: Engine, record: NetworkRecord, wanted: NetworkSpec) -> None:
    """Refuse a configuration that wants the network otherwise than it is; what it does not say may be as it is.

    Raises:
        CniError: code 7, with all differences, who is in the network, and what to do.
    """
    if differences := list(_differences(engine, record, wanted)):
        said = "; ".join(f"{key} is {_shown(found)}, not {_shown(asked)}" for key, asked, found in differences)
        who, hint = _in_it(engine, record, wanted)
        raise CniError(Code.CONFIG, f"network {record.network.name!r} exists and differs: {said}{who}", hint)


def _differences(engine: Engine, record: NetworkRecord, wanted: NetworkSpec) -> Iterator[tuple[str, object, object]]:
    """Yield what differs, as it is wanted and as it is."""
    net, options = record.network, parse(wanted.options)
    for key in fields(wanted.options):
        asked, found = getattr(options, key), getattr(net.options, key)
        if asked != found:
            yield key, asked, found
    if wanted.internal and not net.internal:
        yield "internal", True, net.internal
    for subnet in wanted.subnets:
        if subnet.pool is not None:
            yield from _subnet_differences(record, subnet, engine.allocator)


def _in_it(engine: Engine, record: NetworkRecord, wanted: NetworkSpec) -> tuple[str, str]:
    """Return what keeps a network from being made anew as it is wanted, and what to do; both in words."""
    name, of = record.network.name, record.front_end
    if of is not wanted.front_end:
        tool = "docker" if of is FrontEnd.DOCKER else "netplug"
        hint = f"choose another name, say what it is like, or remove it: {tool} network rm {name}"
        return f"; it was made by {of}", hint
    there = engine.registry.endpoints(record.network.id)
    inside = sorted(f"container {it.name or short(it.container or it.endpoint.id)}" for it in there)
    if len(inside) > _NAMED:
        inside[_NAMED:] = [f"{len(inside) - _NAMED} more"]
    who = f"; in it: {', '.join(inside)}" if inside else ""
    return who, "choose another name, or remove first what is in the network"


def _subnet_differences(
    record: NetworkRecord, wanted: SubnetSpec, allocator: Allocator
) -> Iterator[tuple[str, object, object]]:
    net = record.network
    for subnet, pool_id in zip(net.subnets, record.pools, strict=True):
        if subnet.pool != wanted.pool:
            continue
        gateway = subnet.gateway.ip if subnet.gateway else None
        if wanted.gateway is not None and gateway is not None and gateway != wanted.gateway:
            yield f"gateway of {subnet.pool}", wanted.gateway, gateway
        pool = allocator.pool(pool_id)
        if record.front_end.shares and pool is not None and pool.ends != wanted.ends:
            yield f"range of {subnet.pool}", _ends(wanted), _ends(pool)
        return
    yield "subnet", wanted.pool, tuple(subnet.pool for subnet in net.subnets)


def _ends(of: object) -> str:
    ends = getattr(of, "ends", None)
    return f"{ends[0]}-{ends[1]}" if ends else "all"


def _shown(value: object) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) if value not in {None, ""} else "none"


async def refuse_drift(engine: Engine, network: NetworkRecord, built: EndpointRecord, previous: Result) -> None:
    """Refuse an endpoint that is not as it was made.

    Raises:
        CniError: code 104, with all that is missing or different.
    """
    listed = {ip.address for ip in previous.ips}
    if missing := [str(address) for address in built.endpoint.addresses if address not in listed]:
        raise CniError(Code.WRONG, f"prevResult lacks {', '.join(missing)}")
    drifts = await engine.kernel.drift((*network.plan, *built.present))
    if drifts:
        wrong = "; ".join(f"{drift.step.key}: {drift.what}" for drift in drifts)
        raise CniError(Code.WRONG, "the kernel is not as it was made", wrong)


async def refuse_unready(engine: Engine, record: NetworkRecord | None, wanted: NetworkSpec) -> None:
    """Refuse to be ready for an ADD that would fail, or when those who are in the network suffer.

    What can be mended is: what others displaced a moment ago is no reason to send a runtime away.

    Raises:
        CniError: 50, or 51 when existing containers are limited too.
    """
    if record is None:
        await _refuse_unmakeable(engine, wanted)
        return
    refuse_disagreement(engine, record, wanted)
    seen = await engine.kernel.compare((*engine.base_plan.plan, *record.plan))
    if seen.drifts:
        await _mend(engine, record)
        seen = await engine.kernel.compare((*engine.base_plan.plan, *record.plan))
    if seen.drifts:
        wrong = "; ".join(f"{drift.step.key}: {drift.what}" for drift in seen.drifts)
        raise CniError(Code.LIMITED, f"network {record.network.name!r} is damaged", wrong)
    driver = driver_of(record.network.options.mode, engine.drivers)
    if (link := driver.segment(record.network)) and not any(one.name == link and one.up for one in seen.facts.links):
        raise CniError(Code.LIMITED, f"link {link!r} of network {record.network.name!r} is gone or down")
    for family in record.network.families():
        pools = [p for p, s in zip(record.pools, record.network.subnets, strict=True) if s.pool.version == family]
        if all(engine.allocator.usage(pool).free == 0 for pool in pools):
            words = f"no IPv{family} address is free in network {record.network.name!r}"
            raise CniError(Code.NOT_AVAILABLE, words)


async def _mend(engine: Engine, record: NetworkRecord) -> None:
    """Mend what can be of a network and of what it shares with others; what cannot is seen by whoever looks again."""
    with suppress(NetplugError, ExceptionGroup):
        await engine.base_plan.mend(engine.registry.all_networks())
    async with engine.registry.lock(record.network.id):
        if record in engine.registry.networks():
            with suppress(NetplugError, ExceptionGroup):
                await engine.executor.mend(record.plan)


async def _refuse_unmakeable(engine: Engine, wanted: NetworkSpec) -> None:
    """Refuse a network that its first ADD could not make."""
    options = parse(wanted.options)
    driver = driver_of(options.mode, engine.drivers)
    host = await engine.base_plan.read_host()
    net = Network("status", wanted.name, options=driver.complete(options, host), internal=wanted.internal)
    try:
        driver.check(net, engine.registry.all_networks(), host)
    except Exception as exc:
        if getattr(exc, "kind", "") not in {"invalid", "exists"}:
            raise
        raise CniError(Code.NOT_AVAILABLE, str(exc)) from None
