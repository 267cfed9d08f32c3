"""The programs of `packaging/` as modules. The name `packaging` itself is that of a package of PyPI."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = str(Path(__file__).parent.parent / "packaging")


def tool(name: str) -> ModuleType:
    """Import `packaging/NAME.py`; the programs import each other by their names, as if they were run."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    return import_module(name)
