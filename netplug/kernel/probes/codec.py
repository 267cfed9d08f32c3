"""The types of `api` as JSON, and back. Fields that are as by default are left out; unknown ones are ignored."""

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar

_T = TypeVar("_T")

_PARSERS: dict[type, Callable[[Any], Any]] = {
    IPv4Address: ip_address,
    IPv6Address: ip_address,
    IPv4Interface: ip_interface,
    IPv6Interface: ip_interface,
    IPv4Network: ip_network,
    IPv6Network: ip_network,
}


def to_json(value: Any) -> Any:
    """Return a value as what `json.dumps` takes."""
    if dataclasses.is_dataclass(value):
        fields = ((it.name, getattr(value, it.name), it.default) for it in dataclasses.fields(value))
        return {name: to_json(found) for name, found, default in fields if found != default}
    if isinstance(value, tuple):
        return [to_json(it) for it in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def from_json(of: type[_T], value: Any) -> _T:
    """Return an object of a type from its JSON.

    Raises:
        ValueError: it is not the JSON of one.
    """
    try:
        found: _T = _parsed(of, value)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no {of.__name__}: {error}") from error
    return found


def _parsed(of: Any, value: Any) -> Any:
    if isinstance(of, type) and dataclasses.is_dataclass(of):
        hints, make = _hints(of), typing.cast("typing.Callable[..., Any]", of)
        return make(**{name: _parsed(hints[name], it) for name, it in value.items() if name in hints})
    origin, args = typing.get_origin(of), typing.get_args(of)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return tuple(_parsed(args[0], it) for it in value)
        return tuple(_parsed(part, it) for part, it in zip(args, value, strict=True))
    if origin in {typing.Union, types.UnionType}:
        return None if value is None else _parsed(next(it for it in args if it is not types.NoneType), value)
    if of in _PARSERS:
        return _PARSERS[of](value)
    if isinstance(of, type) and issubclass(of, StrEnum):
        return of(value)
    if not isinstance(value, of) and not (of is float and isinstance(value, int)):
        raise ValueError(f"{value!r} is no {of.__name__}")
    return value


@cache
def _hints(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of)
