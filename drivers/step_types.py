"""The types of steps by name: a plan is stored with their names, and is read back by them.

Types of other packages are added while a process starts (entry-point group ``netplug.steps``). Each name has one type.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from . import steps, tunnel, zones
from .errors import DriverError, Kind
from .steps import Step


def _is_step_type(cls: Any) -> bool:
    return isinstance(cls, type) and dataclasses.is_dataclass(cls) and hasattr(cls, "key")


BUILT_IN: tuple[type[Step], ...] = tuple(
    cls
    for module in (steps, tunnel, zones)
    for cls in vars(module).values()
    if _is_step_type(cls) and cls.__module__ == module.__name__
)
"""The types of netplug's own vocabulary."""


class StepTypes:
    """Types by name. `add` is for a process that starts: plans are read and written afterwards."""

    def __init__(self, built_in: Iterable[type[Step]]) -> None:
        self._types = {cls.__name__: cls for cls in built_in}
        self._packages = dict.fromkeys(self._types, "netplug")

    def add(self, cls: type[Step], package: str) -> None:
        """Add the type of a package; the same type again is no error.

        Raises:
            DriverError: "exists", another type has this name; "invalid", it is not a dataclass with a `key`.
        """
        name = getattr(cls, "__name__", str(cls))
        if not _is_step_type(cls):
            raise DriverError(Kind.INVALID, f"step type {name!r} of package {package!r} is not a dataclass with a key")
        if cls is self._types.get(name):
            return
        if other := self._packages.get(name):
            raise DriverError(Kind.EXISTS, f"step type {name!r} of package {package!r} exists in package {other!r}")
        self._types[name] = cls
        self._packages[name] = package

    def discard(self, cls: type[Step]) -> None:
        """Take a type of a package back; built-in ones stay."""
        name = cls.__name__
        if self._types.get(name) is cls and self._packages[name] != "netplug":
            del self._types[name], self._packages[name]

    def get(self, name: str) -> type[Step] | None:
        """Return the type of a name, None if no package here has it."""
        return self._types.get(name)

    def name(self, step: Step) -> str:
        """Return the name of a step's type.

        Raises:
            DriverError: "invalid", no package registered this type, so its plan could not be read again.
        """
        cls = type(step)
        if self._types.get(cls.__name__) is not cls:
            words = f"step type {cls.__name__!r} of {cls.__module__} is not registered"
            raise DriverError(
                Kind.INVALID, words, hint="its package must name it in the entry-point group netplug.steps"
            )
        return cls.__name__

    def all(self) -> tuple[type[Step], ...]:
        """Return all types."""
        return tuple(self._types.values())


STEP_TYPES = StepTypes(BUILT_IN)
"""Those of this process."""
