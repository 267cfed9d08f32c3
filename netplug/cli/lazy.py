"""Commands that are imported when they are asked for: one command needs few of the modules that all of them need.

Help of a group imports its commands, since it shows their first sentences.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_group_from_info
from typer.models import TyperInfo


class Commands(MutableMapping[str, Any]):
    """Commands by name, each from `module:object`: a function, or a `typer.Typer` for a group."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places: dict[str, str | None] = dict(places)
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _made(name, self._places[name] or "")
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._places.setdefault(name, None)
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]
        self._made.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class LazyGroup(TyperGroup):
    """A group with the commands of `places`, then those that its `typer.Typer` has."""

    places: ClassVar[Mapping[str, str]] = {}

    def __init__(self, *, commands: Any = None, **attributes: Any) -> None:
        super().__init__(commands=Commands(self.places), **attributes)  # type: ignore[arg-type]
        self.commands.update(commands or {})


def _made(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        alone.command(name)(found)
        return typer.main.get_command(alone)
    info = TyperInfo(found, name=name)
    return get_group_from_info(info, pretty_exceptions_short=True, suggest_commands=True, rich_markup_mode=None)
