"""Ipam mode: addresses alone. Somebody else builds the links, such as another CNI plugin that we are the IPAM of."""

from .none import NoneDriver


class LeasingDriver(NoneDriver):
    """Networks whose endpoints are addresses and nothing in the kernel."""

    gateway = True
    addressed = True
