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
    if docker and now.network.internal and not before.network.internal:
        rest = "the default route until the next start; what is sent by that route is dropped"
        found.append(_say(docker, "keeps", "keep", rest))
    if docker and before.network.internal and not now.network.internal:
        found.append(_say(docker, "gets", "get", "the default route with the next start"))
    if docker and (old.gw_priority, old.metric) != (new.gw_priority, new.metric):
        found.append(_say(docker, "keeps", "keep", "the default route that Docker chose"))
    if others and old.dns != new.dns:
        until = "the gateway for names until the next start: resolv.conf is written at the start"
        found.append(
            _say(others, "does not ask", "do not ask", until) if new.dns else _say(others, "asks", "ask", until)
        )
    if old.mtu != new.mtu and any(isinstance(step, Bridge) and step.key in now.used for step in now.plan):
        found.append("the bridge is not netplug's: netplug does not set its mtu")
    own = [one for one in living if (one.endpoint.options.rate, one.endpoint.options.burst) != (None, None)]
    if own and (old.rate, old.burst) != (new.rate, new.burst):
        found.append(_say(own, "keeps", "keep", "limits of its own" if len(own) == 1 else "limits of their own"))
    if now.network.subnets != before.network.subnets and living:
        found.append("containers that run keep their addresses")
    return tuple(found)


def _say(endpoints: Collection[EndpointRecord], one: str, many: str, what: str) -> str:
    """Return what the containers of some endpoints do; the verb is `one` or `many`."""
    of = "Docker's " if all(it.front_end is FrontEnd.DOCKER for it in endpoints) else ""
    names = sorted(it.name or it.container[:12] or it.endpoint.id[:12] for it in endpoints)
    who = (
        f"{of}container {names[0]!r} {one}" if len(names) == 1 else f"{len(names)} {of and 'Docker '}containers {many}"
    )
    return f"{who} {what}"
