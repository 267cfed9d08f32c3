"""GC as the specification has it: what stays is read here, `engine.garbage_collection` decides, failures are joined."""

from collections.abc import Awaitable, Mapping
from typing import Any

from netplug.engine import Engine
from netplug.engine.records import NetworkRecord
from netplug.errors import NetplugError
from netplug.frontends.cni.wire import CniError, Code, Request

CODES = {
    "invalid": Code.CONFIG,
    "not_found": Code.NOT_FOUND,
    "exists": Code.EXISTS,
    "forbidden": Code.FORBIDDEN,
    "unavailable": Code.TRY_AGAIN,
    "unreachable": Code.TRY_AGAIN,
}
_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""What GC must leave; the second is what the specification said until 2024."""


class Garbage:
    """One GC. It goes on over failures, and tells of them at the end.

    Raises:
        CniError: the request does not say what is attached: to take that for "nothing" would cut off all.
    """

    def __init__(self, request: Request) -> None:
        self._runtime = request.caller.runtime
        self._valid = valid_attachments(request)
        self._kept: frozenset[tuple[str, str]] = frozenset()
        self._errors: list[CniError] = []

    async def collect(self, engine: Engine, record: NetworkRecord) -> None:
        """Free what is garbage in a network, and the network if nothing is left in it."""
        found = await engine.garbage_collection.collect(record, self._valid, self._runtime)
        self._kept = found.kept
        self._errors += map(as_cni, found.failures)

    def left(self) -> Mapping[str, Any]:
        """Return what is still attached as a plugin for which we do GC has to be told: others' endpoints too."""
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in self._valid | self._kept]
        return {_ATTACHMENTS[0]: listed}

    async def gathering(self, work: Awaitable[object]) -> None:
        """Do something, and note its failure."""
        try:
            await work
        except CniError as exc:
            self._errors.append(exc)
        except NetplugError as exc:
            self._errors.append(as_cni(exc))

    def refuse(self) -> None:
        """Tell of the failures.

        Raises:
            CniError: there were any.
        """
        if self._errors:
            raise CniError(self._errors[0].code, "; ".join(map(str, self._errors)))


def as_cni(error: NetplugError) -> CniError:
    """Return an error of the engine's as the specification has it."""
    return CniError(CODES.get(error.kind, Code.INTERNAL), str(error))


def valid_attachments(request: Request) -> frozenset[tuple[str, str]]:
    """Return (container, interface) of the attachments that GC must leave; null is none, as Go writes an empty list.

    Raises:
        CniError: they are not said: to take that for "none" would cut off all.
    """
    given = {key.lower(): value for key, value in request.raw.items()}
    key = next((key for key in _ATTACHMENTS if key in given), "")
    if not key:
        words = f"{_ATTACHMENTS[0]} is missing: GC has to be told what is still attached"
        raise CniError(Code.CONFIG, words, "an empty list where nothing is")
    found: Any = given[key] or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise CniError(Code.CONFIG, f"{key} is not a list of objects")
    return frozenset((str(item.get("containerID", "")), str(item.get("ifname", ""))) for item in found)
