"""uvicorn without its command line and process supervisors, which take 1.5 MB and are not used here."""

import sys
from types import ModuleType
from typing import Any

_MAIN = "uvicorn.main"


def _instead(name: str) -> Any:
    """Return the names that `uvicorn` exports from its command line: only the server is used."""
    if name == "Server":
        from uvicorn.server import Server  # noqa: PLC0415 - its package is being loaded

        return Server
    return None


if "uvicorn" in sys.modules:
    import uvicorn
else:
    _module = sys.modules[_MAIN] = ModuleType(_MAIN)
    _module.__getattr__ = _instead  # type: ignore[method-assign]
    try:
        import uvicorn
    finally:
        del sys.modules[_MAIN]  # who wants it after all gets it

__all__ = ["uvicorn"]
