"""The libraries and the dependencies of the Debian package, without building it."""

import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "packaging/debian"))

import metadata  # noqa: E402
import wheels  # noqa: E402


def _pins() -> dict[str, str]:
    lines = wheels.LOCK.read_text().splitlines()
    return dict(line.removesuffix(" \\").split("==") for line in lines if "==" in line)


def test_lock_has_all_libraries_of_the_project_in_versions_that_it_takes() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = _pins()
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement}: run make deb-lock"


def _needed(names: list[str]) -> set[str]:
    """Return these libraries and all that they need, in the oldest Python."""
    oldest = {"python_version": wheels.PYTHONS[0], "python_full_version": f"{wheels.PYTHONS[0]}.0", "extra": ""}
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            names += [canonicalize_name(it.name) for it in needs if not it.marker or it.marker.evaluate(oldest)]
    return found


def test_lock_has_what_libraries_need_and_nothing_else() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = _needed([canonicalize_name(Requirement(it).name) for it in wanted])
    assert set(_pins()) == needed, "run make deb-lock"


def test_lock_has_a_hash_for_each_library() -> None:
    blocks = wheels.LOCK.read_text().split("==")[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_package_depends_on_a_python_that_it_has_libraries_for() -> None:
    assert metadata.depends().startswith(
        "python3 (>= 3.11~), python3 (<< 3.14~), python3 (<< 3.12~) | python3 (>= 3.13~), "
    )
