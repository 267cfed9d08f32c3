"""From outside, a container is reached by its published ports: which one that is, or why there is none."""

from netplug.drivers.steps import IPAddress
from netplug.insight.trace.ends import End, Ends
from netplug.insight.trace.mends import publishing
from netplug.insight.trace.model import Cause, Hop, Verdict
from netplug.insight.trace.preparing import Preparing
from netplug.insight.trace.target import Target


async def entrance(
    ends: Ends, preparing: Preparing, source: End, end: End, target: Target
) -> tuple[IPAddress, int, Hop]:
    """Return the host's address and port by which a container is reached from outside."""
    name, what = end.place.name, f"port {target.port}/{target.proto} of {end.place.name}"
    address = end.address
    assert address is not None  # noqa: S101 - a sandbox that was found by name has one
    if all(ends.network(it).options.mode == "macvlan" for it in end.records):
        return address, target.port, Hop("published", name, f"{what} is on the segment of its parent link")
    found = ends.publishing(end, target.port, target.proto)
    if found is None and all(ends.network(it).options.mode == "host" for it in end.records):
        own, _ = await preparing.address(source, Target("host"))
        return own, target.port, Hop("published", name, f"{what} is that of the host")
    if found is None:
        cause = _unpublished(ends, end, target)
        return address, target.port, Hop("published", name, what, Verdict.BROKEN, cause=cause)
    mapping, port = found
    host_address = mapping.host_address
    if host_address is None or host_address.is_unspecified or host_address.is_loopback:
        host_address, _ = await preparing.address(source, Target("host"))
    if mapping.host_address and mapping.host_address.is_loopback:
        words = f"{what} is published on {mapping.host_address} only (port {port}), where only this host reaches it"
        cause = Cause("not_published", words, publishing(name, port, target.port, target.proto, host_address))
        return host_address, port, Hop("published", name, what, Verdict.BROKEN, cause=cause)
    return host_address, port, Hop("published", name, f"{what} is published as {host_address} port {port}")


def _unpublished(ends: Ends, end: End, target: Target) -> Cause:
    """Say that a port is not published; it may be the host's that is meant."""
    name, what = end.place.name, f"port {target.port}/{target.proto}"
    words = f"{what} of {name} is not published"
    if found := ends.published_as(target.port, target.proto, end):
        words += f"; {what} of this host leads to its port {found[2]}"
        suffix = "" if target.proto == "tcp" else f"/{target.proto}"
        return Cause("not_published", words, f"netplug trace outside host:{target.port}{suffix}")
    return Cause("not_published", words, publishing(name, target.port, target.port, target.proto))
