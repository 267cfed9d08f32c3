"""None mode: loopback only. All its plans are empty, so that callers need no special case."""

from collections.abc import Sequence
from dataclasses import replace

from . import shared
from .api import Attachment, Endpoint, HostFacts, Network, Scope
from .options import AnyOption, NetworkOptions
from .plan import Plan


class NoneDriver:
    """Networks without any link."""

    scope = Scope.LOCAL
    options: tuple[AnyOption, ...] = (shared.MTU, shared.IFNAME)
    default = False
    gateway = False
    linked = False
    addressed = False

    def complete(self, options: NetworkOptions, host: HostFacts) -> NetworkOptions:
        return replace(options, mtu=options.mtu or host.mtu)

    def segment(self, net: Network) -> str:
        return ""

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        return

    def admit(self, net: Network, present: int) -> None:
        return

    def create_network(self, net: Network, host: HostFacts) -> Plan:
        return Plan()

    def create_endpoint(self, net: Network, ep: Endpoint, host: HostFacts) -> Plan:
        return Plan()

    def join(self, net: Network, ep: Endpoint) -> Attachment:
        return Attachment(isolated=True)

    def expose(self, net: Network, ep: Endpoint) -> Plan:
        return Plan()

    def base(self, families: Sequence[int], host: HostFacts) -> Plan:
        return Plan()
