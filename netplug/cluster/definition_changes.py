"""What is between a definition and a network on a host, and between a definition and its next version."""

from collections.abc import Mapping
from dataclasses import replace

from netplug.cluster.allocation import completed, subnets_for
from netplug.cluster.records import Definition
from netplug.drivers import shared
from netplug.drivers.registry import Drivers
from netplug.drivers.steps import IPNetwork
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import NetworkRecord, NetworkSpec, Origin


def to_follow(definition: Definition, record: NetworkRecord, drivers: Drivers) -> NetworkChange:
    """Return what makes a network on this host as it is defined.

    Raises:
        DriverError: it is defined with an option that its driver does not have here.
    """
    if _is_as_written(definition, record):  # as nearly always, of hundreds of networks
        return NetworkChange()
    mode, here = record.network.options.mode, Definition.of(record)
    wanted, present = (_by_key(it.options, drivers, mode) for it in (definition, here))
    options = {key: text for key, text in wanted.items() if present.get(key) != text}
    kept = {it.subnet for it in here.subnets} & {it.subnet for it in definition.subnets}
    return NetworkChange(
        options | dict.fromkeys(present.keys() - wanted.keys(), ""),
        None if definition.internal == here.internal else definition.internal,
        {key: text for key, text in definition.labels.items() if here.labels.get(key) != text},
        tuple(sorted(here.labels.keys() - definition.labels.keys())),
        tuple(it.to_spec() for it in definition.subnets if it.subnet not in kept),
        tuple(it.subnet for it in here.subnets if it.subnet not in kept),
    )


def changed(definition: Definition, change: NetworkChange, drivers: Drivers) -> Definition:
    """Return a definition after a change, still without the subnets that it adds."""
    return replace(
        definition,
        options=change.options_after(definition.options, drivers.parse(definition.options).mode, drivers),
        internal=change.internal_after(definition.internal),
        labels=change.labels_after(definition.labels),
        subnets=tuple(it for it in definition.subnets if it.subnet not in change.remove),
    )


def with_subnets(
    definition: Definition,
    ident: str,
    change: NetworkChange,
    others: Mapping[str, Definition],
    taken: list[IPNetwork],
    identity: str,
) -> Definition:
    """Return a definition with the subnets that a change adds. `others`: all definitions; see `allocation`.

    Raises:
        NetplugError, IpamError: a network of the cluster has one of them, or none is free.
    """
    spec = NetworkSpec(subnets=change.add)
    more = subnets_for(spec, {**others, ident: definition}, taken, identity)
    return replace(definition, subnets=definition.subnets + more)


def next_version(before: Definition, after: Definition, built: NetworkRecord) -> Definition:
    """Return the next version of a definition. `built`: the network on this host, as it would be with `after`."""
    options = dict(after.options)
    if shared.MTU.key in before.options:  # the cluster has one, whatever underlays its hosts have
        options = completed(options, **{shared.MTU.key: str(built.network.options.mtu)})
    same = (options, after.internal) == (dict(before.options), before.internal)
    origin = before.origin or (None if same else Origin(before.options, before.internal))
    return replace(after, options=options, origin=origin, version=before.version + 1, closing=(), closer="")


def is_same(before: Definition, after: Definition) -> bool:
    """Whether the next version of a definition says the same."""
    return after == replace(before, version=after.version, closing=(), closer="")


def _is_as_written(definition: Definition, record: NetworkRecord) -> bool:
    net = record.network
    options, labels = definition.options == record.options, definition.labels == record.labels
    subnets = [it.subnet for it in definition.subnets] == [it.pool for it in net.subnets]
    return options and labels and subnets and definition.internal == net.internal


def _by_key(raw: Mapping[str, str], drivers: Drivers, mode: str) -> dict[str, str]:
    return {drivers.declared(key, mode).key: text for key, text in raw.items()}
