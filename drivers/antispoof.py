"""Anti-spoofing: what a container may send as, on its port of a bridge (``tables/antispoof.nft``)."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from .naming import eui64
from .plan import Plan
from .steps import Element, IPAddress, Step
from .tables import ANTISPOOF


def bridge(mac: str) -> Plan:
    """Return the element for the link-local address of a bridge, which is nobody else's."""
    return Plan((Element(ANTISPOOF, "bridges", str(eui64(mac))),))


def own(port: str, mac: str, addresses: Iterable[IPAddress]) -> Plan:
    """Return the elements for a port: its MAC, and its addresses with that derived from the MAC (RFC 4291).

    They stand before the port does. Nothing passes by a port without them.
    """
    mac = mac.lower()
    steps = [Element(ANTISPOOF, "macs", f"{port} . {mac}")]
    steps += [Element(ANTISPOOF, f"own{it.version}", f"{port} . {mac} . {it}") for it in (*addresses, eui64(mac))]
    return Plan(tuple(steps))


def exempt(port: str) -> Plan:
    """Return the element for a port that is not guarded."""
    return Plan((Element(ANTISPOOF, "exempt", port, "accept"),))


def at_any_mac(plan: Plan) -> Plan:
    """Return an endpoint's plan whose port accepts any MAC, but none but its addresses.

    Frames with the MAC that it has at first still meet the fewest rules.
    """
    own6 = {it.item for it in plan if isinstance(it, Element) and it.table == ANTISPOOF and it.set == "own6"}
    with_ipv6 = any(not _is_local(item) for item in own6)
    return Plan(tuple(it for step in plan for it in _at_any_mac(step, with_ipv6=with_ipv6)))


def _at_any_mac(step: Step, *, with_ipv6: bool) -> Iterator[Step]:
    match step:
        case Element(table, "macs", item) if table == ANTISPOOF:
            if with_ipv6:  # neighbour discovery is compared with it
                yield step
            yield Element(ANTISPOOF, "exempt", item.partition(" . ")[0], "goto any_mac")
        case Element(table, "own4" | "own6", item) if table == ANTISPOOF:
            port, _, address = item.split(" . ")
            if not _is_local(item):
                yield step
                yield Element(ANTISPOOF, step.set.replace("own", "any"), f"{port} . {address}")
        case _:
            yield step


def _is_local(item: str) -> bool:
    """Return whether an element's address is derived from its MAC."""
    _, mac, address = item.split(" . ")
    return ip_address(address) == eui64(mac)
