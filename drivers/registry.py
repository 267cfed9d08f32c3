"""All drivers by mode, and what their declarations say: whose an option is, and which mode can do what.

Nobody else asks for a mode by its name. What a network of a mode has follows from the attributes of its driver.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from re import ASCII, fullmatch
from typing import cast

from . import shared
from .api import Driver, Meshed, Network, Scope
from .errors import DriverError, Kind
from .options import AnyOption, EndpointOptions, NetworkOptions, Option, OwnOptions, Value

_FIELDS = {field.name for field in fields(NetworkOptions)}
_SHARED = {key: option for option in shared.SHARED for key in (option.key, *option.aliases)}
_ATTRIBUTES: Mapping[str, type | tuple[type, ...]] = {
    "scope": Scope,
    "gateway": bool,
    "linked": bool,
    "addressed": bool,
    "default": bool,
    "options": tuple,
}


class Drivers(Mapping[str, Driver]):
    """The drivers of this host by mode.

    `refused`: modes whose driver cannot be used, each with the reason.
    """

    def __init__(self, drivers: Mapping[str, Driver], refused: Mapping[str, str] | None = None) -> None:
        self._drivers = dict(sorted(drivers.items()))
        self.refused = refused or {}

    def __getitem__(self, mode: str) -> Driver:
        return self._drivers[mode]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drivers)

    def __len__(self) -> int:
        return len(self._drivers)

    def of(self, net: Network) -> Driver:
        """Return the driver of a network; records without one are in quarantine."""
        return self._drivers[net.options.mode]

    def named(self, mode: str) -> Driver:
        """Return the driver of a mode.

        Raises:
            DriverError: there is none, with the reason or with the modes that there are.
        """
        if mode in self._drivers:
            return self._drivers[mode]
        if mode in self.refused:
            raise DriverError(Kind.UNAVAILABLE, f"option mode={mode!r}: {self.refused[mode]}")
        modes = ", ".join(mode for mode, driver in self.items() if driver.linked or not driver.addressed)
        raise DriverError(Kind.INVALID, f"option mode={mode!r}: must be one of {modes}")

    def missing(self, mode: str) -> str:
        """Return why there is no driver for a mode; empty if there is one."""
        if mode in self._drivers:
            return ""
        return self.refused.get(mode) or f"there is no driver for mode {mode!r}"

    # What modes can do

    def default(self, scope: Scope = Scope.LOCAL) -> str:
        """Return the mode of networks that name none."""
        return self._first(lambda driver: driver.default and driver.scope is scope, f"scope {scope}")

    def taking(self, option: AnyOption) -> str:
        """Return the mode to which an option belongs; of several the default one, else the first by name."""
        return self._first(lambda driver: option in driver.options, f"option {option.key}")

    def bare(self) -> str:
        """Return the mode of networks that are addresses only: somebody else builds the links."""
        return self._first(lambda driver: driver.addressed and not driver.linked, "addresses only")

    def _first(self, fits: Callable[[Driver], bool], what: str) -> str:
        found = [mode for mode, driver in self.items() if fits(driver)]
        if not found:
            words = f"there is no driver for networks of {what}"
            raise DriverError(Kind.UNAVAILABLE, words, hint="install netplug again: its entry points name its drivers")
        return min(found, key=lambda mode: not self[mode].default)

    # Options

    def options(self, mode: str) -> tuple[AnyOption, ...]:
        """Return the options of networks of a mode, in the order in which users read them."""
        taken: tuple[AnyOption, ...] = (*shared.COMMON, *self.named(mode).options)
        every: tuple[AnyOption, ...] = shared.SHARED
        return (*(it for it in every if it in taken), *(it for it in taken if it not in every))

    def spellings(self) -> dict[str, str]:
        """Return the keys of the options of all modes, by each of their spellings."""
        every: list[AnyOption] = [*shared.SHARED, *(option for driver in self.values() for option in driver.options)]
        return {key: option.key for option in every for key in (option.key, *option.aliases)}

    def parse(self, raw: Mapping[str, str]) -> NetworkOptions:
        """Return the typed form of a network's options.

        Raises:
            DriverError: a key is unknown, malformed, given twice with different values, or belongs to another mode.
        """
        given = raw.get(shared.MODE.key)
        mode = self.default() if given is None else str(_read(shared.MODE, shared.MODE.key, given))
        known = self.options(mode)
        values = self._values(raw, mode, known)
        own = {it.key: it.read(it.default) for it in known if it.key not in _SHARED}
        own |= {key: values.pop(key) for key in own if key in values}
        return NetworkOptions(**{**values, "mode": mode, "own": OwnOptions(own)})  # type: ignore[arg-type]  # read by declaration

    def parse_endpoint(self, raw: Mapping[str, str], mode: str) -> EndpointOptions:
        """Return the typed form of an endpoint's options in a network of this mode.

        Raises:
            DriverError: as `parse`.
        """
        values = self._values(raw, mode, [it for it in self.options(mode) if it.endpoint], endpoint=True)
        own = {key: values.pop(key) for key in list(values) if key not in _SHARED}
        return EndpointOptions(**{**values, "own": OwnOptions(own)})  # type: ignore[arg-type]  # read by declaration

    def declared(self, key: str, mode: str) -> AnyOption:
        """Return the declaration of an option of networks of a mode, by any of its spellings.

        Raises:
            DriverError: there is none of this key.
        """
        known = self.options(mode)
        for option in known:
            if key in {option.key, *option.aliases}:
                return option
        raise self._unknown(key, mode, known, endpoint=False)

    def changed(self, options: NetworkOptions, given: Mapping[str, str]) -> NetworkOptions:
        """Return the options of a network that lives with other values; an empty text means the default.

        Raises:
            DriverError: as `parse`; or an option cannot change, with the reason.
        """
        mode, values, own = options.mode, dict[str, object](), dict(options.own)
        declared = {key: self.declared(key, mode) for key in given}
        texts = {key: text for key, text in given.items() if text and declared[key] is not shared.MODE}
        wanted = self.parse({shared.MODE.key: mode} | texts)
        for key, option in declared.items():
            value = (given[key] or self.default()) if option is shared.MODE else wanted.value(option.key)
            if value == options.value(option.key):
                continue
            if option.fixed:
                words = f"option {key}={given[key][:80]!r} cannot change: {option.fixed}"
                raise DriverError(Kind.INVALID, words, hint=f"create another network; {_shown(option, options)}")
            if option.key in own:
                own[option.key] = cast("Value", value)
            else:
                values[option.key] = value
        return replace(options, **{**values, "own": OwnOptions(own)})  # type: ignore[arg-type]  # read by declaration

    def keys_of(self, raw: Mapping[str, str], mode: str) -> list[str]:
        """Return the keys that a network's options have, in whichever spelling they are given."""
        spelled = {key: it.key for it in self.options(mode) for key in (it.key, *it.aliases)}
        return [spelled[key] for key in raw]

    def _values(
        self, raw: Mapping[str, str], mode: str, known: Sequence[AnyOption], *, endpoint: bool = False
    ) -> dict[str, object]:
        spelled = {key: option for option in known for key in (option.key, *option.aliases)}
        found: dict[str, object] = {}
        for key, text in raw.items():
            option = spelled.get(key)
            if option is None:
                raise self._unknown(key, mode, known, endpoint=endpoint)
            value = _read(option, key, text)
            if found.setdefault(option.key, value) != value:
                raise DriverError(Kind.INVALID, f"option {key!r} contradicts another spelling of {option.key!r}")
        return found

    def _unknown(self, key: str, mode: str, known: Sequence[AnyOption], *, endpoint: bool) -> DriverError:
        """Return that an option is of other modes, of networks only, or of nobody."""
        modes = [it for it in self for one in self[it].options if key in {one.key, *one.aliases}]
        common = any(key in {one.key, *one.aliases} for one in shared.COMMON)
        keys = [option.key for option in known]
        if endpoint and (mode in modes or common):
            words = f"option {key!r} applies to networks, not to endpoints"
        elif modes:
            *others, last = modes
            words = f"{', '.join(others)} and {last}" if others else last
            return DriverError(
                Kind.INVALID, f"option {key!r} exists only in mode {words}, the network has mode {mode!r}"
            )
        else:
            words = f"unknown option {key[:80]!r}"
        close = get_close_matches(key[:80], [name for one in known for name in (one.key, *one.aliases)], 1)
        hint = f"did you mean {close[0]!r}?" if close and not common else f"known options: {', '.join(keys)}"
        return DriverError(Kind.INVALID, words, hint=hint)


def _shown(option: AnyOption, options: NetworkOptions) -> str:
    """Return what a network has, to follow a semicolon."""
    value = options.value(option.key)
    if value in ("", 0, None) and not isinstance(value, bool):
        return f"this one was created without {option.key}"
    return f"this one has {option.key}={str(value).lower() if isinstance(value, bool) else value}"


def _read(option: AnyOption, key: str, text: str) -> object:
    try:
        value = option.read(text)
        return value if option.key in _FIELDS else OwnOptions({key: value})[key]
    except ValueError as exc:
        raise DriverError(Kind.INVALID, f"option {key}={text[:80]!r}: {exc}") from None


def fault_of(driver: object) -> str:
    """Return why something cannot be used as a driver; empty if it can."""
    lacks = [name for name in (*_ATTRIBUTES, *_methods(Driver)) if getattr(driver, name, None) is None]
    lacks += [name for name in _methods(Driver) if name not in lacks and not callable(getattr(driver, name))]
    if not lacks and getattr(driver, "scope", None) is Scope.CLUSTER:
        lacks = [name for name in _methods(Meshed) if not callable(getattr(driver, name, None))]
    if lacks:
        return f"lacks {', '.join(lacks)} of the driver protocol"
    for name, kind in _ATTRIBUTES.items():
        if not isinstance(getattr(driver, name), kind):
            return f"has {name}={getattr(driver, name)!r}, which is of another type than the driver protocol has"
    options: tuple[object, ...] = driver.options  # type: ignore[attr-defined]  # was found
    return next(filter(None, map(_fault_of_option, options)), "") or _twice(options)


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]


def _twice(options: Sequence[object]) -> str:
    keys = [key for it in options if isinstance(it, Option) for key in (it.key, *it.aliases)]
    found = next((key for number, key in enumerate(keys) if key in keys[:number]), "")
    return found and f"declares option {found!r} twice"


def _fault_of_option(option: object) -> str:
    if not isinstance(option, Option):
        return f"declares {option!r}, which is not an option"
    keys = (option.key, *option.aliases)
    if option in shared.SHARED:
        return ""
    if not fullmatch(r"[a-z][a-z0-9_]{0,39}", option.key, ASCII):
        return f"declares option {option.key!r}, and a key is of 1 to 40 letters, digits and '_'"
    if taken := [key for key in keys if key in _SHARED or key in _FIELDS]:
        return f"declares option {taken[0]!r}, which netplug has: take it from netplug.drivers.shared"
    try:
        OwnOptions({option.key: option.read(option.default)})
    except Exception as exc:  # noqa: BLE001 - a third-party parser may raise any exception
        return f"declares option {option.key!r}, whose default {option.default!r} cannot be read: {exc}"
    return ""
