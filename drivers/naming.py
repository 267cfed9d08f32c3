"""Names and MACs derived from ids. They are deterministic, for comparing plans and for crash recovery."""

from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address
from string import hexdigits

from .steps import IPInterface

MARK = "netplug-"
"""Prefix of the altname of all our links, and of the names of our chains (in capitals) and sets."""


BRIDGES = "np-"
"""Name prefix of our links with routes to sandboxes: bridges, and host sides of point-to-point links.

Firewall rules match it, so no other link may have it.
"""
OPEN_GROUP, OTHER_GROUP = 25350, 25351
"""Groups of links (ip-link(8)) that the firewall knows our bridges by, since numbers are compared faster than names.

The first: bridges of networks with external access and anti-spoofing on all ports. The second: our other bridges.
"""
PORTS = "nph"
"""Name prefix of host sides that are ports of a bridge."""
TUNNEL_ENDS = "npv"
"""Name prefix of VXLAN links, which are ports of a bridge too."""
SANDBOX_SIDES = "nps"
"""Name prefix of sandbox sides, until a runtime renames them."""

OURS = (BRIDGES, PORTS, TUNNEL_ENDS, SANDBOX_SIDES, "npi", "npm")
"""Beginnings of the names of all our links."""


@lru_cache(maxsize=4096)
def short(ident: str) -> str:
    """Return 12 hexadecimal digits for an id: its first ones, or those of its hash.

    >>> short("3A5D5FD21A47b2c3")
    '3a5d5fd21a47'
    >>> short("podman-7/eth0")
    'be2749acf364'
    """
    if len(ident) >= 12 and all(character in hexdigits for character in ident):
        return ident[:12].lower()
    return sha256(ident.encode()).hexdigest()[:12]


def bridge_name(network_id: str) -> str:
    """Return the name of a network's bridge: 15 bytes, the kernel's limit (IFNAMSIZ).

    >>> bridge_name("3a5d5fd21a47b2c3")
    'np-3a5d5fd21a47'
    """
    return BRIDGES + short(network_id)


def host_side(endpoint_id: str) -> str:
    """Return the name of the host side of an endpoint's veth.

    >>> host_side("3a5d5fd21a47b2c3")
    'nph3a5d5fd21a47'
    """
    return PORTS + short(endpoint_id)


def sandbox_side(endpoint_id: str) -> str:
    """Return the name of the sandbox side, until a runtime renames it.

    >>> sandbox_side("3a5d5fd21a47b2c3")
    'nps3a5d5fd21a47'
    """
    return SANDBOX_SIDES + short(endpoint_id)


def point_to_point(endpoint_id: str) -> str:
    """Return the name of the host side of an endpoint's link that is not a bridge port.

    >>> point_to_point("3a5d5fd21a47b2c3")
    'np-3a5d5fd21a47'
    """
    return BRIDGES + short(endpoint_id)


def shaping_side(endpoint_id: str) -> str:
    """Return the name of the link that shapes the traffic from an endpoint's sandbox (IFB).

    >>> shaping_side("3a5d5fd21a47b2c3")
    'npi3a5d5fd21a47'
    """
    return f"npi{short(endpoint_id)}"


def host_macvlan(network_id: str) -> str:
    """Return the name of the host's own link in a macvlan network.

    >>> host_macvlan("3a5d5fd21a47b2c3")
    'npm3a5d5fd21a47'
    """
    return f"npm{short(network_id)}"


def vxlan_name(network_id: str) -> str:
    """Return the name of a network's VXLAN link.

    >>> vxlan_name("3a5d5fd21a47b2c3")
    'npv3a5d5fd21a47'
    """
    return TUNNEL_ENDS + short(network_id)


def mark(link: str) -> str:
    """Return the altname that marks a link as ours. It survives renames and moves between namespaces.

    >>> mark("np-3a5d5fd21a47")
    'netplug-np-3a5d5fd21a47'
    """
    return MARK + link


def mac_of_address(address: IPInterface) -> str:
    """Return the MAC of an endpoint with this address. It is locally administered, and depends on the address only.

    So neighbour entries for the address stay correct when a new endpoint gets it.

    >>> from ipaddress import ip_interface
    >>> mac_of_address(ip_interface("10.208.0.2/24"))
    '02:6e:0a:d0:00:02'
    """
    if address.version == 4:
        return _mac(b"\x02\x6e", address.ip.packed)
    return _mac(b"\x02\x6e", sha256(address.ip.packed).digest()[:4])


def mac_of_host_side(endpoint_id: str) -> str:
    """Return the MAC of the host side of a veth, which is higher than usual MACs.

    A user's bridge whose MAC was never set takes the lowest MAC of its ports. It must not change when we add or remove
    a port, or its neighbours would use a MAC that no longer exists.

    >>> mac_of_host_side("3a5d5fd21a47b2c3")[:5]
    'fe:6e'
    """
    return _mac(b"\xfe\x6e", sha256(endpoint_id.encode()).digest()[:4])


def mac_of_id(ident: str) -> str:
    """Return a MAC derived from an id, for bridges and endpoints without an address.

    >>> mac_of_id("3a5d5fd21a47b2c3") == mac_of_id("3a5d5fd21a47b2c3")
    True
    """
    return _mac(b"\x06\x6e", sha256(ident.encode()).digest()[:4])


def eui64(mac: str) -> IPv6Address:
    """Return the link-local address that is derived from a MAC (RFC 4291, appendix A; RFC 4862 5.3).

    >>> eui64("02:6e:0a:d0:00:02")
    IPv6Address('fe80::6e:aff:fed0:2')
    """
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return IPv6Address(b"\xfe\x80" + bytes(6) + octets[:3] + b"\xff\xfe" + octets[3:])


def _mac(head: bytes, tail: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in head + tail)
