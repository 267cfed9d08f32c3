"""Our own drivers, by mode, without the entry points of installed packages."""

from netplug.drivers.bridge import BridgeDriver
from netplug.drivers.host import HostDriver
from netplug.drivers.ipam_only import LeasingDriver
from netplug.drivers.macvlan import MacvlanDriver
from netplug.drivers.none import NoneDriver
from netplug.drivers.overlay import OverlayDriver
from netplug.drivers.registry import Drivers

DRIVERS = Drivers(
    {
        "bridge": BridgeDriver(),
        "host": HostDriver(),
        "ipam": LeasingDriver(),
        "macvlan": MacvlanDriver(),
        "none": NoneDriver(),
        "overlay": OverlayDriver(),
    }
)
parse = DRIVERS.parse
parse_endpoint = DRIVERS.parse_endpoint
