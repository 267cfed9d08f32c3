"""Converts frozen dataclasses to JSON and back, by their annotations.

Plans and records are stored, so that a later version can remove what an earlier one built. The codec supports only the
types that they use: strings, numbers, booleans, enums, `ipaddress` objects, tuples, mappings of strings and nested
dataclasses. A class may have its own `to_json` and `from_json`, as `Plan`. An unknown key is an error; a missing one
gets its default.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, lru_cache, partial
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
from typing import (
    Annotated,
    Any,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
JsonObject: TypeAlias = dict[str, Json]

_T = TypeVar("_T")

OMIT_DEFAULT = {"omit_default": True}
"""Metadata of a field that is not stored if it has its default. So earlier versions can read records without it."""
APART = {"apart": True}
"""Metadata of a field that is not stored with the others, but read from elsewhere: earlier versions do not know it."""

_IP = (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network)
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can write: it has no form in UTF-8."""
_PLAIN: Mapping[type, Any] = {str: str, int: int, bool: bool, float: float | int}
_IN_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}
_PARSERS: Mapping[type, Any] = {
    IPv4Interface: ip_interface,
    IPv6Interface: ip_interface,
    IPv4Network: ip_network,
    IPv6Network: ip_network,
    IPv4Address: ip_address,
    IPv6Address: ip_address,
}


def encode(value: object) -> Json:
    """Return the JSON form of a dataclass instance or of one of its field values."""
    if isinstance(value, Enum):
        return cast("Json", value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, _IP):
        return str(value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if to_json := getattr(value, "to_json", None):  # getattr(), since isinstance() of a Protocol is slow
        return cast("Json", to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        omitted = _omitted_defaults(type(value))
        found = {name: getattr(value, name) for name in _stored(type(value))}
        return {name: encode(item) for name, item in found.items() if name not in omitted or item != omitted[name]}
    raise TypeError(f"cannot store a value of type {type(value).__name__}")


def decode(cls: type[_T], data: Json) -> _T:
    """Return the instance of dataclass `cls` from the `data` that `encode` returned.

    Raises:
        ValueError: `data` does not match `cls`.
    """
    return cast("_T", _decoder(cast("Any", cls))(data))


def decode_known(cls: type[_T], data: Json) -> _T | None:
    """Return what `decode` does, but ignore unknown fields; None if a required field is missing or invalid."""
    if not isinstance(data, dict):
        return None
    hints = _hints(cast("Any", cls))
    try:
        return decode(cls, {name: item for name, item in data.items() if name in hints})
    except ValueError:
        return None


@cache
def _decoder(cls: type[Any]) -> Callable[[Any], Any]:
    """Return the decoder of a class. It is built once, since a plan may have thousands of steps."""
    readers, needed = _readers(cast("Any", cls)), _needed(cast("Any", cls))

    def read(data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError(f"{str(data)[:80]!r} is not an object, as {cls.__name__} is")
        if unknown := data.keys() - readers.keys():
            raise ValueError(f"{cls.__name__} has no field {min(unknown)!r}")
        if not needed <= data.keys():
            raise ValueError(f"{cls.__name__} lacks field {min(needed - data.keys())!r}")
        try:
            return cls(**{name: readers[name](item) for name, item in data.items()})
        except (TypeError, KeyError, AttributeError) as exc:
            raise ValueError(f"{cls.__name__} has a value of the wrong type") from exc

    return read


@cache
def _needed(cls: type[Any]) -> frozenset[str]:
    none = dataclasses.MISSING
    return frozenset(it.name for it in dataclasses.fields(cls) if it.default is none and it.default_factory is none)


@cache
def _omitted_defaults(cls: type[Any]) -> dict[str, Any]:
    omitted = (field for field in dataclasses.fields(cls) if field.metadata.get("omit_default"))
    none = dataclasses.MISSING
    return {it.name: it.default if it.default_factory is none else it.default_factory() for it in omitted}


@cache
def _stored(cls: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if not field.metadata.get("apart"))


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _readers(cls: type[Any]) -> dict[str, Callable[[Any], Any]]:
    return {name: _reader(kind) for name, kind in _hints(cast("Any", cls)).items()}


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return the decoder of a type. It is built once, since records have many values."""
    origin = get_origin(kind)
    if origin in {Union, types.UnionType}:
        kinds = get_args(kind)
        inner = _reader(next(arg for arg in kinds if arg is not types.NoneType))
        if types.NoneType not in kinds:  # an address, of either IP version
            return inner
        return lambda data: None if data is None else inner(data)
    if origin is Annotated:
        return _checked_reader(*get_args(kind))
    if origin is tuple:
        return _tuple_reader(get_args(kind))
    if origin is not None:  # Mapping[str, …]
        item = _reader(get_args(kind)[1])
        return lambda data: {key: item(value) for key, value in cast("JsonObject", data).items()}
    if kind in _PARSERS:
        return partial(_address, lru_cache(maxsize=1024)(_PARSERS[kind]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lru_cache(maxsize=64)(kind)
    if hasattr(kind, "from_json"):
        return cast("Callable[[Any], Any]", kind.from_json)
    if dataclasses.is_dataclass(kind):
        return partial(decode, cast("type", kind))  # resolves its fields at the first use
    return _plain_reader(kind)


def _address(parse: Callable[[str], Any], data: Json) -> Any:
    # The parsers take numbers too. A zone (RFC 4007 §11) is a link of one host, and may be any text.
    if not isinstance(data, str) or "%" in data:
        raise ValueError(f"{str(data)[:80]!r} is not an address")
    return parse(data)


def _plain_reader(kind: Any) -> Callable[[Any], Any]:
    if kind not in {str, int, bool}:
        return partial(_plain, kind)

    def read(data: Any) -> Any:
        # Most values of a start are such: a thousand endpoints have 75 000.
        if type(data) is kind and (kind is not str or data.isascii()):
            return data
        return _plain(kind, data)

    return read


def _plain(kind: Any, data: Json) -> Any:
    if kind in _PLAIN and not isinstance(data, _PLAIN[kind]):
        raise ValueError(f"{str(data)[:80]!r} is not {_IN_WORDS[kind]}")
    if isinstance(data, str) and not data.isascii() and _HALF.search(data):
        raise ValueError(f"{data[:80]!r} is not text")
    return data


def _checked_reader(kind: Any, check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the decoder of a type whose values a function checks (`checked_texts`)."""
    read, checked = _reader(kind), lru_cache(maxsize=1024)(check)
    return lambda data: checked(read(data))


def _tuple_reader(kinds: tuple[Any, ...]) -> Callable[[Any], Any]:
    readers = [_reader(kind) for kind in kinds if kind is not Ellipsis]

    def read(data: Json) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise ValueError(f"{str(data)[:80]!r} is not a list")
        if Ellipsis in kinds:
            return tuple(map(readers[0], data))
        return tuple(reader(item) for reader, item in zip(readers, data, strict=True))

    return read
