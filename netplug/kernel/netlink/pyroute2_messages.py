"""Encodes and decodes netlink messages by the schemas of pyroute2; our sockets send and receive them.

Rule: use pyroute2, unless it takes more than 10 % of an operation that users wait for. ``bench/netlink.py`` measures
it, and each module that packs by hand states its reason. The library's sockets need an event loop; ours block a thread,
which the kernel blocks anyway (see `worker`). Importing all of the package takes 12 MB and 0.1 s. The schemas alone
take 1 to 2 MB and 15 to 30 ms, at their first use.
"""

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

_PACKAGE = "pyroute2"
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr, which `connection` adds and removes."""


def load(module: str) -> Any:
    """Import a module of pyroute2 without the rest of the package."""
    if _PACKAGE not in sys.modules:
        _import_lazily()
    return import_module(module)


def encode(schema: Any, **fields: Any) -> bytes:
    """Return an encoded message without its header. `fields`: those of its struct, and ``attrs``."""
    message = schema()
    message.update(fields)
    message.encode()
    _break_cycles(message)
    return bytes(message.data[_HEADER.size :])


@contextmanager
def decoded(schema: Any, data: bytes) -> Iterator[Any]:
    """Decode a message without its header, for use in the block. Attributes are decoded at first access."""
    message = schema(_HEADER.pack(_HEADER.size + len(data), 0, 0, 0, 0) + data)
    message.decode()
    yield message
    _break_cycles(message)


def _break_cycles(message: Any) -> None:
    """Break the reference cycles of a message, so that it is freed. A starting daemon collects no garbage."""
    message.chain = None
    for slot in message.get("attrs") or ():
        _break_cycles(slot.cell[1])


def _import_lazily() -> None:
    """Register the package without running it. It runs when one of its names is used. Its modules can be imported."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        return  # importing a module of it raises an error
    package, loader = module_from_spec(spec), spec.loader

    def resolve(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with suppress(ModuleNotFoundError):
            return import_module(f"{_PACKAGE}.{name}")
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = resolve  # type: ignore[method-assign]
    sys.modules[_PACKAGE] = package
