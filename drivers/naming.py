"""Names and MACs out of ids: deterministic, so that plans compare and crash recovery knows what to look for."""

from hashlib import sha256
from ipaddress import IPv6Address
from string import hexdigits

from .steps import IPInterface

MARK = "netplug-"
"""Every link that we make has an altname that begins so, every chain and set a name that does (chains in capitals)."""


BRIDGES = "np-"
"""How the names begin of our links by which packets are routed to sandboxes, and of no other: rules tell them by it.

They are bridges, and the host sides of point-to-point links.
"""
PORTS = "nph"
"""How the names of host sides begin that are ports of a bridge."""
TUNNEL_ENDS = "npv"
"""How the names of VXLAN links begin, which are ports of a bridge as well."""
SANDBOX_SIDES = "nps"
"""How the names of sandbox sides begin until a runtime renames them."""


def short(ident: str) -> str:
    """Return 12 hexadecimal digits that stand for an id: its first ones, or those of its hash.

    >>> short("3A5D5FD21A47b2c3")
    '3a5d5fd21a47'
    >>> short("podman-7/eth0")
    'be2749acf364'
    """
    if len(ident) >= 12 and all(sign in hexdigits for sign in ident):
        return ident[:12].lower()
    return sha256(ident.encode()).hexdigest()[:12]


def bridge_name(network_id: str) -> str:
    """Return the name of a network's bridge; 15 bytes, the kernel's limit (IFNAMSIZ).

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
    """Return the name that the sandbox side has until a runtime renames it.

    >>> sandbox_side("3a5d5fd21a47b2c3")
    'nps3a5d5fd21a47'
    """
    return SANDBOX_SIDES + short(endpoint_id)


def point_to_point(endpoint_id: str) -> str:
    """Return the name of the host side of an endpoint's link when it leads to no bridge.

    >>> point_to_point("3a5d5fd21a47b2c3")
    'np-3a5d5fd21a47'
    """
    return BRIDGES + short(endpoint_id)


def shaping_side(endpoint_id: str) -> str:
    """Return the name of the link on which what an endpoint's sandbox sends waits for its turn.

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
    """Return the name of the link by which a network's frames go to other hosts.

    >>> vxlan_name("3a5d5fd21a47b2c3")
    'npv3a5d5fd21a47'
    """
    return TUNNEL_ENDS + short(network_id)


def mark(link: str) -> str:
    """Return the altname that marks a link of ours; it survives renames and moves between namespaces.

    >>> mark("np-3a5d5fd21a47")
    'netplug-np-3a5d5fd21a47'
    """
    return MARK + link


def mac_of_address(address: IPInterface) -> str:
    """Return the MAC of an endpoint with this address: locally administered, the same whenever the address is.

    So a neighbour's ARP or ND entry stays right when the address goes to a new endpoint.

    >>> from ipaddress import ip_interface
    >>> mac_of_address(ip_interface("10.208.0.2/24"))
    '02:6e:0a:d0:00:02'
    """
    if address.version == 4:
        return _mac(b"\x02\x6e", address.ip.packed)
    return _mac(b"\x02\x6e", sha256(address.ip.packed).digest()[:4])


def mac_of_host_side(endpoint_id: str) -> str:
    """Return the MAC of the host side of a veth, higher than any other.

    A bridge that the user lends us, and whose MAC was never set, takes the lowest of its ports; it must not change when
    we plug in or out, or its neighbours would speak to a MAC that is gone.

    >>> mac_of_host_side("3a5d5fd21a47b2c3")[:5]
    'fe:6e'
    """
    return _mac(b"\xfe\x6e", sha256(endpoint_id.encode()).digest()[:4])


def mac_of_id(ident: str) -> str:
    """Return a MAC made from an id, for bridges and endpoints without an address.

    >>> mac_of_id("3a5d5fd21a47b2c3") == mac_of_id("3a5d5fd21a47b2c3")
    True
    """
    return _mac(b"\x06\x6e", sha256(ident.encode()).digest()[:4])


def eui64(mac: str) -> IPv6Address:
    """Return the link-local address that a host makes of a MAC (RFC 4291, appendix A; RFC 4862 5.3).

    >>> eui64("02:6e:0a:d0:00:02")
    IPv6Address('fe80::6e:aff:fed0:2')
    """
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return IPv6Address(b"\xfe\x80" + bytes(6) + octets[:3] + b"\xff\xfe" + octets[3:])


def _mac(head: bytes, tail: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in head + tail)
