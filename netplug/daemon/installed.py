"""Entry points of installed packages: looked for once in a process, which takes 10 to 20 ms."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points


def installed(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group."""
    return _by_group().get(group, ())


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that declares an entry point; its value if it is in no package."""
    return point.dist.name if point.dist else point.value


def both_bring(packages: Iterable[str], what: str) -> str:
    """Return the words for something that several packages bring."""
    return f"packages {' and '.join(sorted(packages))} both bring {what}, so neither is used"


@cache
def _by_group() -> Mapping[str, tuple[EntryPoint, ...]]:
    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups}
