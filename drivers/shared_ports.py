"""Published ports that the runtime binds itself, as podman does. We only add the DNAT to the container."""

from dataclasses import replace
from ipaddress import ip_address

from .api import PortMapping
from .errors import DriverError, Kind
from .plan import Plan
from .steps import HostPort, Relay

_LOOPBACK6 = ip_address("::1")


def check(mapping: PortMapping) -> None:
    """Refuse a mapping on ::1, which needs a relay on a port that the runtime has bound."""
    if mapping.host_address == _LOOPBACK6:
        words = f"port {mapping} cannot be published: a container of this runtime is not reachable by ::1"
        raise DriverError(Kind.INVALID, words, hint="use 127.0.0.1")


def shared(exposed: Plan) -> Plan:
    """Return the plan of published ports with all host ports shared with the runtime, and without relays.

    A relay would need the port that the runtime has bound.
    """
    relays = [step for step in exposed if isinstance(step, Relay)]
    relayed_only = {HostPort(it.proto, it.host, it.port, count=it.count).key for it in relays if it.crosses_versions}
    own = (step for step in exposed if not isinstance(step, Relay) and step.key not in relayed_only)
    return Plan(tuple(replace(step, shared=True) if isinstance(step, HostPort) else step for step in own))
