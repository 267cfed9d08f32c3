"""Types of steps that other packages bring, with their handlers: the entry-point group ``netplug.steps``.

The object of an entry point is a mapping of types to what makes their handlers (`handlers.Factory`), or a function that
returns one. A package that is broken, or brings a name that exists, is refused with the reason. Its plans cannot be
read then, so that its networks go to quarantine; everything else goes on.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint

import structlog

from netplug.daemon.installed import both_bring, package_of
from netplug.drivers.errors import DriverError
from netplug.drivers.step_types import STEP_TYPES, StepTypes
from netplug.drivers.steps import Step
from netplug.kernel.handlers import Factory

log = structlog.get_logger(__name__)

GROUP = "netplug.steps"


def load_steps(points: Iterable[EntryPoint], types: StepTypes = STEP_TYPES) -> dict[type[Step], Factory]:
    """Add the types of these entry points to `types`, and return what makes their handlers."""
    brought: dict[str, Mapping[type[Step], Factory]] = {}
    for point in points:
        package = package_of(point)
        try:
            found = point.load()
            brought[package] = {**brought.get(package, {}), **(found() if callable(found) else found)}
        except Exception as exc:
            # A third-party package may raise any exception.
            log.exception("steps.refused", package=package, source=point.value, error=str(exc))
    return _added(brought, types)


def _added(brought: Mapping[str, Mapping[type[Step], Factory]], types: StepTypes) -> dict[type[Step], Factory]:
    named: defaultdict[str, list[str]] = defaultdict(list)
    for package, found in brought.items():
        for cls in found:
            named[getattr(cls, "__name__", str(cls))].append(package)
    factories: dict[type[Step], Factory] = {}
    for package, found in sorted(brought.items()):
        for cls, factory in found.items():
            packages = named[getattr(cls, "__name__", str(cls))]
            try:
                if len(packages) > 1:
                    log.error(
                        "steps.refused", package=package, reason=both_bring(packages, f"step type {cls.__name__!r}")
                    )
                    continue
                types.add(cls, package)
            except DriverError as exc:
                log.error("steps.refused", package=package, reason=str(exc))  # noqa: TRY400 - the packager's mistake
            else:
                factories[cls] = factory
    return factories
