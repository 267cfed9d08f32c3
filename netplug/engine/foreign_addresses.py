"""Reports addresses and routes of others that take packets away from networks: only their owner can remove them."""

from collections.abc import Iterable, Iterator

from netplug.drivers.api import HostFacts
from netplug.drivers.naming import BRIDGES, PORTS
from netplug.drivers.steps import Address
from netplug.engine.conditions import Difference
from netplug.engine.records import NetworkRecord


def conflicting(host: HostFacts, records: Iterable[NetworkRecord]) -> Iterator[Difference]:
    """Yield what of the host's addresses and routes lies in the subnet of a network, on a link that is not its own.

    An address makes the host take for itself what is for a container. A route sends it elsewhere, if it is as narrow as
    the subnet, or narrower.
    """
    foreign = [(address, link) for address, link in host.addresses if not link.startswith((BRIDGES, PORTS))]
    routes = [(destination, link) for destination, link in host.routes if not link.startswith((BRIDGES, PORTS))]
    for record in records:
        for step in record.plan:
            if not isinstance(step, Address) or step.netns:
                continue
            subnet = step.address.network
            taken = [(it, link) for it, link in foreign if link != step.link and it.ip in subnet]
            for it, link in taken:
                words = f"is on link {link!r} too, in subnet {subnet} of this network: containers there are not reached"
                mend = f"ip address del {it} dev {link}"
                yield Difference(record.described, f"address {it}", f"{words}; remove it: {mend}")
            connected = {(it.network, link) for it, link in taken}
            for destination, link in routes:
                same = destination.version == subnet.version and destination.subnet_of(subnet)  # type: ignore[arg-type]
                if same and link != step.link and (destination, link) not in connected:
                    words = f"leads to link {link!r}, and is in subnet {subnet} of this network"
                    mend = f"ip route del {destination} dev {link}"
                    yield Difference(record.described, f"route {destination}", f"{words}; remove it: {mend}")
