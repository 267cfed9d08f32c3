"""Published ports that the runtime binds too, as podman does: it keeps them, and we lead them to the container."""

from dataclasses import replace
from ipaddress import ip_address

from .api import PortMapping
from .errors import DriverError, Kind
from .plan import Plan
from .steps import HostPort, Relay

_LOOPBACK6 = ip_address("::1")


def check(mapping: PortMapping) -> None:
    """Refuse a mapping that leads nowhere where a runtime keeps the ports itself."""
    if mapping.host_address == _LOOPBACK6:
        words = f"port {mapping} cannot be published: what is for ::1 is not led to a container of this runtime"
        raise DriverError(Kind.INVALID, words, hint="use 127.0.0.1")


def shared(exposed: Plan) -> Plan:
    """Return what publishing takes with all ports of the host shared with the runtime.

    Nothing is relayed: a relay would be bound to the port that the runtime binds.
    """
    relays = [step for step in exposed if isinstance(step, Relay)]
    alone = {HostPort(it.proto, it.host, it.port, count=it.count).key for it in relays if it.crosses_versions}
    own = (step for step in exposed if not isinstance(step, Relay) and step.key not in alone)
    return Plan(tuple(replace(step, shared=True) if isinstance(step, HostPort) else step for step in own))
