"""Which hosts have networks as they are defined, and why others have not.

Each host writes, in one record, which version of each definition it has followed, or why not. Who updates a network
waits a moment for the other hosts; `netplug host ls` shows those that are behind.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from netplug.cluster.records import FOLLOWED, Definition, HostRecord, parse
from netplug.cluster.view import View, name_of
from netplug.drivers.codec import encode
from netplug.store.api import Delete, Put, Record, Store, StoreError

log = structlog.get_logger(__name__)

PATIENCE_S = 2.0
"""A host follows in some hundredths of a second, and a network with 1000 containers within a second."""
_POLL_S = 0.02
_NAMED = 3
OLDER = "its netplug is older, and follows no updates"
WAITING = "its daemon has not answered yet"


@dataclass(frozen=True, slots=True)
class Followed:
    """A network on a host.

    `version`: of its definition that it has. `why`: it could not follow version `tried`; empty if it could.
    """

    version: int
    why: str = ""
    tried: int = 0


@dataclass(frozen=True, slots=True)
class HostFollowed:
    """The networks of a host, by id: those that were updated, and those that are not as defined."""

    networks: Mapping[str, Followed] = field(default_factory=dict)


def why_behind(definition: Definition, host: HostRecord, followed: Followed | None, *, alive: bool) -> str:
    """Return why a host has not followed a definition; empty if it has."""
    if followed and followed.why and followed.tried >= definition.version:
        return followed.why
    if definition.deleting or definition.version <= (followed.version if followed else 0):
        return ""
    if not host.follows:
        return OLDER
    return WAITING if alive else "its daemon does not run"


def read(record: Record | None) -> Mapping[str, Followed]:
    """Return the networks in the record of a host; none if it cannot be read."""
    if record is None:
        return {}
    try:
        return parse(HostFollowed, record).networks
    except StoreError as exc:
        log.warning("record.poisoned", key=record.key, error=str(exc))
        return {}


def all_behind(
    definitions: Mapping[str, Definition], host: HostRecord, record: Record | None, *, alive: bool
) -> dict[str, str]:
    """Return the networks, by name, that a host has not as they are defined, and why. `record`: what it has written."""
    followed = read(record)
    found = {it.name: why_behind(it, host, followed.get(ident), alive=alive) for ident, it in definitions.items()}
    return {name: why for name, why in sorted(found.items()) if why}


def in_words(behind: Mapping[str, str]) -> Iterator[str]:
    """Yield for each reason the networks that are behind.

    >>> list(in_words({"blue": "its daemon does not run", "red": "its daemon does not run"}))
    ['networks blue, red are not as defined: its daemon does not run']
    """
    for why in dict.fromkeys(behind.values()):
        names = [name for name, it in behind.items() if it == why]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        noun = f"networks {', '.join(names[:_NAMED])}{more} are" if names[1:] else f"network {names[0]} is"
        yield f"{noun} not as defined: {why}"


class Following:
    """Writes what this host has followed, and waits for other hosts. `me`: the id of this host."""

    def __init__(self, store: Store, view: View, me: str) -> None:
        self._store = store
        self._view = view
        self._me = me
        self._written = True
        """Whether the store may have a record of this host; at the start, one of an earlier process."""

    async def tell(self, networks: Mapping[str, Followed]) -> None:
        """Write what this host has followed.

        Raises:
            StoreError: the store does not answer.
        """
        if not networks and not self._written:
            return
        key = FOLLOWED + self._me
        stored = await self._store.get(key)
        value = encode(HostFollowed(networks))
        assert isinstance(value, dict)  # noqa: S101 - a dataclass encodes to an object
        if networks and (stored is None or stored.value != value):
            await self._store.txn([], [Put(key, value)])
        elif not networks and stored is not None:
            await self._store.txn([], [Delete(key)])
        self._written = bool(networks)

    async def behind(self, ident: str, definition: Definition) -> dict[str, str]:
        """Wait until the other hosts have followed a definition, and return those that have not, and why.

        A host whose daemon does not run, or that cannot follow, is not waited for. The wait takes `PATIENCE_S` at most.
        """
        late = {host: WAITING for host in self._view.hosts() if host != self._me}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while late := await self._late(late, ident, definition):
                    if not any(self._may_follow(host, why) for host, why in late.items()):
                        break
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            pass
        except StoreError as exc:
            late = dict.fromkeys(late, f"the store does not answer ({exc})")
        return {name_of(self._view, host): why for host, why in sorted(late.items())}

    async def _late(self, hosts: Mapping[str, str], ident: str, definition: Definition) -> dict[str, str]:
        found = {}
        for host, record in zip(
            hosts, await asyncio.gather(*(self._store.get(FOLLOWED + it) for it in hosts)), strict=True
        ):
            known, followed = self._view.hosts().get(host), read(record).get(ident)
            if known and (why := why_behind(definition, known, followed, alive=self._view.alive(host))):
                found[host] = why
        return found

    def _may_follow(self, host: str, why: str) -> bool:
        return self._view.alive(host) and why == WAITING
