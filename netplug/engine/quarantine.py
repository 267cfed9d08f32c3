"""Records that this version cannot use: another version wrote them, or their driver is not installed.

Each record stays in the store unchanged until a version or driver that can read it is back. Meanwhile its name, its
addresses and its host ports stay taken, and its kernel objects are not swept as unknown. Everything else works.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netplug.drivers import port_ranges
from netplug.drivers.api import Network
from netplug.drivers.codec import Json, JsonObject, decode_known
from netplug.drivers.naming import short
from netplug.drivers.plan import Plan
from netplug.drivers.steps import HostPort, Relay
from netplug.engine.conditions import QUARANTINE, Conditions, Difference
from netplug.engine.records import ENDPOINTS, NETWORKS
from netplug.engine.sandboxes import name_of
from netplug.errors import NetplugError


@dataclass(frozen=True, slots=True)
class Unusable:
    """A record, as it is stored, and why it cannot be used."""

    key: str
    value: Mapping[str, Json]
    why: str

    @property
    def network(self) -> str:
        """Id of the network, or of the endpoint's network; empty for other records."""
        kind, _, rest = self.key.partition("/")
        return rest.partition("/")[0] if f"{kind}/" in {NETWORKS, ENDPOINTS} else ""

    @property
    def endpoint(self) -> str:
        """Id of the endpoint; empty for other records."""
        return self.key.rpartition("/")[2] if self.key.startswith(ENDPOINTS) else ""

    @property
    def name(self) -> str:
        """Name in the record."""
        holder = self.value.get("network") if self.key.startswith(NETWORKS) else self.value
        name = holder.get("name") if isinstance(holder, Mapping) else ""
        return name if isinstance(name, str) else ""

    def describe(self) -> str:
        """Return the object for a message."""
        called = f" ({self.name})" if self.name else ""
        if self.endpoint:
            return f"endpoint {short(self.endpoint)}{called}"
        return f"network {short(self.network)}{called}" if self.network else "host"

    def refusal(self) -> NetplugError:
        """Return the error of who asks for it."""
        words = f"{self.describe()} cannot be used: {self.why}"
        hint = "start the version of netplug, or install the driver, that made it"
        return NetplugError("unavailable", words, hint=hint)


class Quarantine:
    """All records of this host that cannot be used, by key.

    None of them is changed, and none of what it holds is given to anybody else. Each is shown by `netplug diff`.
    """

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._found: dict[str, Unusable] = {}

    def replace(self, prefix: str, found: Mapping[str, Unusable]) -> None:
        """Take all unusable records of a prefix, in place of the former ones."""
        kept = {key: it for key, it in self._found.items() if not key.startswith(prefix)}
        self._found = {**kept, **found}
        self._conditions.report(
            QUARANTINE,
            (Difference(it.describe(), it.key, f"cannot be used and is left as it is: {it.why}") for it in self.all()),
        )

    def __bool__(self) -> bool:
        return bool(self._found)

    def all(self) -> list[Unusable]:
        """Return all, by key."""
        return [it for _, it in sorted(self._found.items())]

    def networks(self) -> frozenset[str]:
        """Return the ids of the networks."""
        return frozenset(it.network for it in self._found.values() if it.key.startswith(NETWORKS))

    def endpoints(self) -> frozenset[str]:
        """Return the ids of the endpoints."""
        return frozenset(it.endpoint for it in self._found.values() if it.endpoint)

    def endpoints_in(self, network: str) -> list[Unusable]:
        """Return the endpoints of a network, by its id. What they are made of is still there, so the network stays."""
        return [it for it in self._found.values() if it.endpoint and it.network == network]

    def known(self) -> list[Network]:
        """Return the networks as far as this version can read them: their subnets and names are taken."""
        found = (it for it in self._found.values() if it.key.startswith(NETWORKS))
        return [decode_known(Network, it.value.get("network")) or Network(it.network, it.name) for it in found]

    def refuse(self, ref: str) -> None:
        """Refuse a network by its id or name, or a record by its key.

        Raises:
            NetplugError: "unavailable", with the reason.
        """
        for it in self._found.values():
            named = {it.key, it.network, it.name} if it.key.startswith(NETWORKS) else {it.key}
            if ref and ref in named:
                raise it.refusal()

    def refuse_in(self, network: str, netns: str, ifname: str) -> None:
        """Refuse an endpoint by its network's id, its sandbox (path, or name below /run/netns) and its interface.

        Raises:
            NetplugError: "unavailable", with the reason.
        """
        for it in self._found.values():
            sandbox = str(it.value.get("sandbox", ""))
            here = it.endpoint and it.network == network and it.value.get("ifname") == ifname
            if here and netns in {sandbox, name_of(sandbox)}:
                raise it.refusal()

    # Their kernel objects

    def sockets(self) -> Plan:
        """Return the sockets that reserve their ports."""
        return Plan(tuple(step for step in self._plan() if isinstance(step, HostPort | Relay)))

    def keys(self) -> frozenset[str]:
        """Return the keys of their steps, as far as this version can read them."""
        return frozenset(port_ranges.keys(self._plan()))

    def words(self) -> frozenset[str]:
        """Return all strings in them: among these are names of links, sets and chains in unknown steps."""
        return frozenset(text for it in self._found.values() for text in _texts(dict(it.value)))

    def _plan(self) -> Plan:
        plan = Plan()
        for it in self._found.values():
            for part in ("plan", "exposed"):
                plan += Plan.known(it.value.get(part))
        return plan


def unusable(key: str, value: JsonObject, why: object) -> dict[str, Unusable]:
    """Return the entry of a record."""
    return {key: Unusable(key, value, str(why))}


def _texts(value: Json) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for item in value.values():
                yield from _texts(item)
