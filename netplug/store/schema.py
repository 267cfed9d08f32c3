"""Which schema the records of a store have, and how records of an older schema become those of this one.

A schema is the form of all records, by number. A release raises `VERSION` when it writes records in another form. The
releases before it should find what uses nothing new, and quarantine the rest. Only if they could not, or would take
records for what they are not, it raises `OLDEST` too; then those releases refuse the store.

A migration step makes the records of one schema those of the next one. It is a pure function of one record. It leaves a
record as it is that is new already: after a rollback, some records are old again and others are not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netplug import __version__
from netplug.drivers import summary
from netplug.drivers.codec import JsonObject, encode
from netplug.drivers.plan import Plan

VERSION = 2
OLDEST = 1
"""The oldest schema whose releases can use what this release writes."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a store says of its records.

    `version`: no record is older. `oldest`: releases with an older schema cannot use the store. `release`: of netplug,
    the last one that had the store.
    """

    version: int
    oldest: int
    release: str

    @property
    def refusal(self) -> str:
        """Return why this release cannot use the store, and what to do; empty if it can."""
        if self.oldest <= VERSION:
            return ""
        return (
            f"has schema {self.version}, which releases before schema {self.oldest} cannot use; this is netplug"
            f" {__version__} with schema {VERSION}: install netplug {self.release} again, or a later release"
        )

    @property
    def ours(self) -> "Schema":
        """Return what the store says from now on, as this release writes to it."""
        return Schema(VERSION, max(self.oldest, OLDEST), __version__)

    @property
    def newest(self) -> "Schema":
        """Return what a store says that releases of this and of other schemas write to at the same time."""
        if self.version > VERSION or (self.version == VERSION and self.oldest >= OLDEST):
            return self
        return self.ours


FIRST = Schema(1, 1, "0.1.0")
"""Of stores that do not say it."""

Step = Callable[[str, JsonObject], JsonObject]
"""Gets key and value of a record of the schema before, and returns the new value. It does not change the given one."""


def migrated(key: str, value: JsonObject, version: int) -> JsonObject:
    """Return a record of schema `version` as one of this schema. One that no step can read stays as it is."""
    try:
        for number in range(version + 1, VERSION + 1):
            value = STEPS[number](key, value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return value  # it will be quarantined, with the reason
    return value


def _networks_say_what_they_have(key: str, value: JsonObject) -> JsonObject:
    """Complete a network with its bridge and its resolvers, which the first releases read from its plan."""
    if not key.startswith("networks/") or value.keys() & {"bridge", "resolvers"}:
        return value
    plan, used = Plan.known(value.get("plan")), value.get("used")
    keys = tuple(map(str, used)) if isinstance(used, list) else ()
    bridge, resolvers = summary.bridge(plan, keys), summary.resolvers(plan)
    found: JsonObject = {}
    if bridge:
        found["bridge"] = encode(bridge)
    if resolvers:
        found["resolvers"] = encode(resolvers)
    return value | found


STEPS: Mapping[int, Step] = {2: _networks_say_what_they_have}
"""By the schema that they lead to."""
