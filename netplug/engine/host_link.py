"""What the kernel needs so that the host itself can ask for names: a listener, and a link that bears the domain.

The listener is for packets of the host alone. To the kernel they come by the link with the address they are sent to
(`ip_route_output_key_hash_rcu`), and those of containers by another one. The link has no other purpose:
systemd-resolved keeps the servers of a domain by link, and takes only links that have a carrier and an address. An
intermediate functional block always has a carrier, and former releases know it.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface

from netplug.drivers.codec import Json
from netplug.drivers.naming import mac_of_id
from netplug.drivers.plan import Plan
from netplug.drivers.steps import Address, Ifb, Resolver
from netplug.kernel.host.api import Authority, Way
from netplug.store.api import Store

HOST_NAMES = "meta/host_names"
"""Key of the record: `way` and `domain`."""
HOST_ALONE = ""
"""Stands for the network whose names a listener serves: those of all."""
LINK = "npi-names"
LOCAL = IPv4Address("127.0.25.53")
"""Where the host asks. Container engines hand no address of loopback to their containers."""
DUMMY = IPv4Address("192.0.0.8")
"""The address of the link (RFC 7600 §4.8: IPv4 dummy address). resolvconf cuts the list of servers after a loopback
address, so with it the host asks here."""
ADDRESSES = frozenset({LOCAL, DUMMY})
PORT, UNUSUAL_PORT = 53, 25353
"""resolv.conf(5) has no ports. Where there is a choice, another resolver may have port 53."""


def authority(way: Way, domain: str) -> Authority:
    """Return who answers."""
    port = PORT if way in {Way.FILE, Way.RESOLVCONF} else UNUSUAL_PORT
    return Authority(domain, DUMMY if way is Way.RESOLVCONF else LOCAL, port, LINK)


def plan(way: Way | None) -> Plan:
    """Return the steps; none if the host does not ask."""
    if way is None:
        return Plan()
    who = authority(way, "")
    listener = Resolver(HOST_ALONE, LINK if who.address == DUMMY else "lo", who.address, who.port)
    if way in {Way.FILE, Way.OTHER}:
        return Plan((listener,))
    return Plan((Ifb(LINK, mac_of_id(LINK)), Address(LINK, IPv4Interface((DUMMY, 32))), listener))


async def stored(store: Store) -> tuple[Way, str] | None:
    """Return way and domain of the record; None if the host does not ask."""
    record = await store.get(HOST_NAMES)
    return _read(record.value) if record else None


def _read(value: Mapping[str, Json]) -> tuple[Way, str] | None:
    try:
        return Way(str(value.get("way"))), str(value.get("domain", ""))
    except ValueError:  # of another version
        return None
