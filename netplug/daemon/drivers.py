"""The drivers of this host: all of them, ours too, come from the entry points of installed packages.

A package that is broken, or whose mode another package has as well, costs its own networks alone: they go to quarantine
with the reason, and everything else goes on.
"""

from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import EntryPoint

import structlog

from netplug.daemon.installed import both_bring, installed, package_of
from netplug.drivers.api import Driver
from netplug.drivers.registry import Drivers, fault_of

log = structlog.get_logger(__name__)

DRIVERS = "netplug.drivers"
"""Entry points whose name is a mode, and whose object makes the driver when it is called."""
_OURS = "netplug"


def load_drivers(points: Iterable[EntryPoint] | None = None) -> Drivers:
    """Return the drivers of these entry points, by default those of all installed packages."""
    found: defaultdict[str, dict[str, EntryPoint]] = defaultdict(dict)
    for point in installed(DRIVERS) if points is None else points:
        found[point.name][package_of(point)] = point
    drivers: dict[str, Driver] = {}
    refused: dict[str, str] = {}
    for mode, rivals in sorted(found.items()):
        chosen = {_OURS: rivals[_OURS]} if _OURS in rivals else rivals
        for package in rivals.keys() - chosen.keys():
            log.error("driver.refused", mode=mode, package=package, reason="netplug has this mode")
        if len(chosen) > 1:
            reason = both_bring(chosen, "it")
            refused[mode] = f"{reason}: uninstall one"
            log.error("driver.refused", mode=mode, reason=reason)
            continue
        ((package, point),) = chosen.items()
        try:
            drivers[mode] = _load(point, package)
        except Exception as exc:
            # A third-party package may raise any exception; networks of other modes must still work.
            log.exception("driver.refused", mode=mode, package=package, source=point.value)
            refused[mode] = f"the driver of package {package} cannot be used: {type(exc).__name__}: {exc}"
    return Drivers(drivers, refused)


def _load(point: EntryPoint, package: str) -> Driver:
    driver: Driver = point.load()()
    if why := fault_of(driver):
        raise TypeError(f"it {why}")
    if driver.default and package != _OURS:
        raise TypeError("it claims to be the default, which is a mode of netplug's own")
    return driver
