"""GC: reads which attachments stay, has `engine.garbage_collection` free the rest, and joins the errors."""

import json
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
"""Keys of the attachments that stay; the second was the specification's until 2024."""


class Garbage:
    """One GC request. It goes on after failures, and reports them at the end.

    Raises:
        CniError: the request does not list attachments. To read that as an empty list would delete all.
    """

    def __init__(self, request: Request) -> None:
        self._runtime = request.caller.runtime
        self._valid = valid_attachments(request)
        self._kept: frozenset[tuple[str, str]] = frozenset()
        self._errors: list[CniError] = []

    async def collect(self, engine: Engine, record: NetworkRecord) -> None:
        """Free the garbage of a network, and the network if it is empty then."""
        found = await engine.garbage_collection.collect(record, self._valid, self._runtime)
        self._kept = found.kept
        self._errors += map(as_cni, found.failures)

    def left(self) -> Mapping[str, Any]:
        """Return the attachments that stay, with those of other runtimes, for the IPAM plugin's own GC."""
        listed = [{"containerID": container, "ifname": ifname} for container, ifname in self._valid | self._kept]
        return {_ATTACHMENTS[0]: listed}

    async def gathering(self, work: Awaitable[object]) -> None:
        """Do a part of the work, and note its failure."""
        try:
            await work
        except CniError as exc:
            self._errors.append(exc)
        except NetplugError as exc:
            self._errors.append(as_cni(exc))

    def refuse(self) -> None:
        """Report the failures.

        Raises:
            CniError: there were any.
        """
        if self._errors:
            raise CniError(self._errors[0].code, "; ".join(map(str, self._errors)))


def as_cni(error: NetplugError) -> CniError:
    """Return an error of the engine with the specification's code."""
    return CniError(CODES.get(error.kind, Code.INTERNAL), str(error))


def valid_attachments(request: Request) -> frozenset[tuple[str, str]]:
    """Return (container, interface) of the attachments that stay. null is an empty list, as Go writes it.

    Raises:
        CniError: they are missing, or one of them is not named. To read that as an empty list would delete all.
    """
    given = {key.lower(): value for key, value in request.raw.items()}
    key = next((key for key in _ATTACHMENTS if key in given), "")
    if not key:
        words = f"{_ATTACHMENTS[0]} is missing: GC has to be told what is still attached"
        raise CniError(Code.CONFIG, words, "an empty list where nothing is")
    found: Any = [] if given[key] is None else given[key]
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise CniError(Code.CONFIG, f"{key} is not a list of objects")
    return frozenset((_named(key, item, "containerID"), _named(key, item, "ifname")) for item in found)


def _named(key: str, item: Mapping[str, Any], what: str) -> str:
    """Return a part of an attachment. Keys come in any case, as Go's decoder takes them."""
    value = next((value for name, value in item.items() if name.lower() == what.lower()), None)
    if not isinstance(value, str) or not value:
        words = f"{key}: {what} is missing in {json.dumps(item, default=str)[:200]}"
        raise CniError(Code.CONFIG, words, "nothing was freed: it may be one of the attachments that stay")
    return value
