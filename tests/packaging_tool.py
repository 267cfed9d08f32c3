"""The programs of `packaging/` as modules. The name `packaging` itself is that of a package of PyPI."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent.parent / "packaging"


def tool(name: str) -> ModuleType:
    """Import `packaging/NAME.py`."""
    spec = spec_from_file_location(f"netplug_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
