"""What an update of a network does not bring to containers that run, said to the user."""

from collections.abc import Collection

from netplug.drivers.steps import Bridge
from netplug.engine.records import EndpointRecord, FrontEnd, NetworkRecord


def notes(before: NetworkRecord, now: NetworkRecord, endpoints: Collection[EndpointRecord]) -> tuple[str, ...]:
    """Return what present containers do not get before they start again, and why."""
    living = [one for one in endpoints if one.sandbox]
    docker = [one for one in living if one.front_end is FrontEnd.DOCKER]
    others = [one for one in living if one.front_end is not FrontEnd.DOCKER]
    old, new = before.network.options, now.network.options
    found = []
    if docker and before.network.internal != now.network.internal:
        route = "keep" if now.network.internal else "get"
        when = "until" if now.network.internal else "when"
        dropped = "; what they send by it is dropped" if now.network.internal else ""
        found.append(f"{_containers(docker)} of Docker {route} the default route {when} they start again{dropped}")
    if docker and (old.gw_priority, old.metric) != (new.gw_priority, new.metric):
        found.append(f"{_containers(docker)} of Docker keep the default route that Docker chose")
    if others and old.dns != new.dns:
        server = "ask the gateway for names" if not new.dns else "do not ask the gateway for names"
        found.append(f"{_containers(others)} {server} until they start again: resolv.conf is written at the start")
    if old.mtu != new.mtu and any(isinstance(step, Bridge) and step.key in now.used for step in now.plan):
        found.append("the bridge is not netplug's: its mtu stays as it is")
    own = [one for one in living if (one.endpoint.options.rate, one.endpoint.options.burst) != (None, None)]
    if own and (old.rate, old.burst) != (new.rate, new.burst):
        found.append(f"{_containers(own)} keep limits of their own")
    if now.network.subnets != before.network.subnets and living:
        found.append("containers that run keep their addresses")
    return tuple(found)


def _containers(endpoints: Collection[EndpointRecord]) -> str:
    names = sorted(one.name or one.container[:12] or one.endpoint.id[:12] for one in endpoints)
    return names[0] if len(names) == 1 else f"{len(names)} containers"
