"""Tables of overlays: who may send VXLAN frames (`vxlan_acl.nft`), and the fast path (`fastpath.nft`)."""

from collections.abc import Iterable

from . import firewall
from .naming import MARK
from .plan import Plan
from .steps import Element, Hook, IPAddress, Step, Table

_FILTER = "inet netplug-vxlan"
_FAST_PATH = f"netdev {MARK}"


def filter_table() -> Table:
    """Return the table that filters VXLAN frames, for all overlays of this host."""
    return firewall.table(_FILTER, "vxlan_acl")


def filtered(port: int, vni: int) -> Element:
    """Drop VXLAN frames of `vni` to UDP port `port`, unless their sender is `accepted`."""
    return Element(_FILTER, "vnis", f"{port} . {vni}")


def accepted(vtep: IPAddress, port: int, vni: int) -> Element:
    """Accept VXLAN frames of `vni` from the host with VTEP `vtep`."""
    return member(f"{vtep} . {port} . {vni}")


def member(item: str) -> Element:
    """Accept VXLAN frames from "VTEP . UDP port . VNI"."""
    return Element(_FILTER, f"vteps{6 if ':' in item else 4}", item)


def fast_path(vxlan: str) -> Plan:
    """Return the fast path of VXLAN link `vxlan`, which is there already, to the ports with a `shortcut`."""
    table = _FAST_PATH + vxlan
    return Plan((firewall.table(table, "fastpath"), Hook(table, vxlan, "from_tunnel")))


def shortcut(link: str, vxlan: str, mac: str, addresses: Iterable[IPAddress]) -> Plan:
    """Forward frames between bridge port `link` and VXLAN link `vxlan`, which are there already, past the bridge.

    From the tunnel to `mac`, and from `mac` and one of `addresses` to a `remote` MAC.
    """
    table = _FAST_PATH + vxlan
    own = (Element(table, f"own{it.version}", f"{link} . {mac} . {it}", vxlan) for it in addresses)
    return Plan((Element(table, "near", mac, link), *own, Hook(table, link, "from_port")))


def remote(vxlan: str, mac: str) -> Element:
    """Have the fast path forward frames to `mac`, which is on another host."""
    return Element(_FAST_PATH + vxlan, "remote", mac)


def of_fast_path(step: Step) -> bool:
    """Return whether a step is of the fast path."""
    return isinstance(step, Element | Hook) and step.table.startswith(_FAST_PATH)


def of_peers(step: Step) -> bool:
    """Return whether a step is for endpoints of other hosts: `accepted` or `remote`."""
    match step:
        case Element(table=table, set="remote"):
            return table.startswith(_FAST_PATH)
        case Element(table=table, set="vteps4" | "vteps6"):
            return table == _FILTER
    return False
