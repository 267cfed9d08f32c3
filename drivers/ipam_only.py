"""Ipam mode: addresses alone. Somebody else builds the links, such as another CNI plugin that we are the IPAM of."""

from collections.abc import Sequence

from .api import HostFacts, Network
from .none import NoneDriver
from .subnets import check_range


class LeasingDriver(NoneDriver):
    """Networks whose endpoints are addresses and nothing in the kernel."""

    gateway = True
    addressed = True

    def check(self, net: Network, others: Sequence[Network], host: HostFacts) -> None:
        """Refuse subnets with addresses that nobody can have."""
        super().check(net, others, host)
        for subnet in net.subnets:
            check_range(subnet.pool, routed=False)
