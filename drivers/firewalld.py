"""firewalld's zone of our links: firewalld rejects packets from a link without a zone, whatever other tables accept.

A zone with the target ACCEPT decides nothing, so our own rules do. That is also how Docker registers its bridges. A
user's bridge that has ports of others, such as the host's uplink, stays in the zone that it is in: to accept all that
comes by it would open the host to all stations there.

The step comes first in a plan. It may need a reload of firewalld, which removes all rules of iptables.
"""

from .api import HostFacts
from .naming import BRIDGES, PORTS, TUNNEL_ENDS
from .plan import Plan
from .zones import Zone


def base(host: HostFacts) -> Plan:
    """Return the step for all links of ours."""
    return Plan((Zone(f"{BRIDGES}+"),)) if host.firewalld else Plan()


def network(bridge: str, host: HostFacts) -> Plan:
    """Return the step for a network's bridge, if `base` does not cover it."""
    return Plan() if bridge.startswith(BRIDGES) or is_shared(bridge, host) else Plan((Zone(bridge),))


def is_shared(bridge: str, host: HostFacts) -> bool:
    """Return whether a bridge has ports that are not ours."""
    return any(link.master == bridge and not link.name.startswith((PORTS, TUNNEL_ENDS)) for link in host.links)


def command(*links: str, zone: str = "trusted") -> str:
    """Return the command by which an administrator puts links into a zone."""
    changes = (f"firewall-cmd --permanent --zone={zone} --add-interface={link}" for link in links)
    return " && ".join([*changes, "firewall-cmd --reload"])
