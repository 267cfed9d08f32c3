"""Checks of the host's links and routes."""

from collections.abc import Iterable
from functools import partial

from netplug.drivers.naming import OURS
from netplug.insight.doctor.findings import Finding, failure, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.tasks.apart import apart

_OF_SUBNET = {4: 0, 6: 256}
"""The metric of the route that the kernel adds for an address of a link, by IP version."""
_WRONG_SUMS, _PART = 100, 0.001
"""So many wrong checksums, and such a part of all packets, are no accident."""
_BROKEN = {"vmxnet3": ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")}
"""Drivers whose devices break the checksums of VXLAN packets (UDP 4789, 8472), with the features to turn off."""


async def overlaps(host: HostSubject) -> Iterable[Finding]:
    """Find routes of others into subnets of networks: a VPN that came up later, another engine."""
    facts = await host.kernel.facts()
    own = {net.options.bridge for net in host.networks} | {net.options.parent for net in host.networks}
    found = []
    for net in host.of_mode("bridge", "overlay"):
        for subnet in net.subnets:
            for route, link in facts.routes:
                foreign = not link.startswith(OURS) and link not in own
                if foreign and route.version == subnet.pool.version and route.overlaps(subnet.pool):
                    words = f"route {route} of link {link} overlaps subnet {subnet.pool} of network {net.name}"
                    hides = route.prefixlen >= subnet.pool.prefixlen
                    mend = f"ip route show {route}; choose another subnet for one of them"
                    said = "containers of the part that both have are not reached" if hides else "the network hides it"
                    found.append((failure if hides else note)(f"{words}: {said}", mend))
    return found + await _refused(host)


async def _refused(host: HostSubject) -> list[Finding]:
    """Find routes that drop a part of a subnet. One of a wider range is hidden by the network's own route."""
    found = []
    for route in await apart(host.kernel.inspection.refusing_routes):
        to = route.destination
        for net in host.of_mode("bridge", "overlay"):
            for subnet in (it.pool for it in net.subnets if it.pool.version == to.version and it.pool.overlaps(to)):
                if to.prefixlen > subnet.prefixlen or (to == subnet and route.metric < _OF_SUBNET[to.version]):
                    words = (
                        f"{route.kind} route {to} drops packets of the host to subnet {subnet} of network {net.name}"
                    )
                    ip = "ip -6" if to.version == 6 else "ip"
                    found.append(failure(words, f"{ip} route del {route.kind} {to}"))
    return found


async def checksums(host: HostSubject) -> Iterable[Finding]:
    """Find packets with wrong checksums, and devices that are known to make them."""
    counters = await apart(host.kernel.inspection.counters)
    found: list[Finding] = []
    for proto, total in (("Tcp", "InSegs"), ("Udp", "InDatagrams")):
        wrong, all_of = counters.get(f"{proto}.InCsumErrors", 0), counters.get(f"{proto}.{total}", 0)
        if wrong >= _WRONG_SUMS and wrong > all_of * _PART:
            words = (
                f"{wrong} of {all_of} {proto.upper()} packets came with wrong checksums: a sender's offload is broken"
            )
            found.append(warning(words, "ethtool -K LINK tx off, on the host that sends them"))
    if host.of_mode("overlay"):
        found += await _devices(host)
    return found


async def _devices(host: HostSubject) -> list[Finding]:
    facts, found = await host.kernel.facts(), []
    for link in (it.name for it in facts.links if not it.kind):
        offloads = await apart(partial(host.kernel.inspection.offloads, link))
        active = [it for it in _BROKEN.get(offloads.driver, ()) if it in offloads.features]
        if active:
            words = f"link {link} ({offloads.driver}) makes checksums of tunnels itself"
            words = f"{words}: on some hypervisors, large packets get lost by that"
            found.append(warning(words, f"ethtool -K {link} {' '.join(f'{it} off' for it in active)}"))
    return found


async def uplink(host: HostSubject) -> Iterable[Finding]:
    """Tell that there is no way out."""
    facts = await host.kernel.facts()
    if facts.uplink:
        return [ok(f"the default route leaves by {facts.uplink} (mtu {facts.mtu})")]
    return [
        note("the host has no default route: containers reach only what is routed", "ip route add default via ADDRESS")
    ]
