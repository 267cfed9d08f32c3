"""Messages by the schemas of pyroute2, sent and received by sockets of ours.

The rule: pyroute2, unless it takes more than 10 % of what users wait for; ``bench/netlink.py`` measures that, and each
module that packs by hand says its reason. The library's own sockets wait in an event loop, ours in the thread that the
kernel holds up anyway (see `worker`). Its package imports all that it can do, which takes 12 MB and a tenth of a
second; the schemas alone take 1 to 2 MB and 15 to 30 ms, when first needed.
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
"""struct nlmsghdr, which is the socket's affair."""


def load(module: str) -> Any:
    """Return a module of pyroute2, which is loaded without the rest of it."""
    if _PACKAGE not in sys.modules:
        _put_off()
    return import_module(module)


def encode(schema: Any, **fields: Any) -> bytes:
    """Return a message without its header; `fields`: of its struct, and ``attrs``."""
    message = schema()
    message.update(fields)
    message.encode()
    _let_go(message)
    return bytes(message.data[_HEADER.size :])


@contextmanager
def decoded(schema: Any, data: bytes) -> Iterator[Any]:
    """Give what a message without its header says, for the time of a block; attributes are decoded when asked for."""
    message = schema(_HEADER.pack(_HEADER.size + len(data), 0, 0, 0, 0) + data)
    message.decode()
    yield message
    _let_go(message)


def _let_go(message: Any) -> None:
    """Have a message and its attributes freed: each refers to itself, and a daemon that starts collects no garbage."""
    message.chain = None
    for slot in message.get("attrs") or ():
        _let_go(slot.cell[1])


def _put_off() -> None:
    """Have the package's own module run when somebody asks for one of its names; its parts can be imported before."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        return  # who loads a part of it is told
    package, loader = module_from_spec(spec), spec.loader

    def rest(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        with suppress(ModuleNotFoundError):
            return import_module(f"{_PACKAGE}.{name}")
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = rest  # type: ignore[method-assign]
    sys.modules[_PACKAGE] = package
