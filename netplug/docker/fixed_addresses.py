"""Fixed addresses of Docker's containers (``--ip``, ``--ip6``), reserved while the containers exist.

Docker releases a container's address when it stops, and requests none before the first start. At a start it requests
the fixed address; without a reservation the start would fail if another container had got the address.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, TypeAlias

from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import FrontEnd

FixedAddress: TypeAlias = tuple[str, IPAddress]
"""A network's id, and an address in it."""


class FixedAddresses:
    """Reserves them in the engine. Parameter `names` of the methods: Docker's names of its networks, by id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._of: dict[str, dict[FixedAddress, str]] = {}

    def of(self, container_id: str) -> Iterable[FixedAddress]:
        """Return the fixed addresses of a container."""
        return self._of.get(container_id, {}).keys()

    def read(self, containers: Iterable[Any], names: Mapping[str, str]) -> None:
        """Replace the reservations by those of a list of all containers, running or not."""
        self._of = {}
        for item in containers:
            if fixed := dict.fromkeys(self._fixed(item, names), (item["Names"] or [""])[0].lstrip("/")):
                self._of[item["Id"]] = fixed
        self._reserve(it.network.id for it in self._engine.registry.networks() if it.front_end is FrontEnd.DOCKER)

    def learn(self, data: Any, names: Mapping[str, str]) -> None:
        """Update the reservations of one container from its inspect data."""
        self._set(data["Id"], dict.fromkeys(self._fixed(data, names), data["Name"].lstrip("/")))

    def forget(self, container_id: str) -> None:
        """Remove the reservations of a deleted container."""
        self._set(container_id, {})

    def _set(self, container_id: str, fixed: dict[FixedAddress, str]) -> None:
        before = self._of.pop(container_id, {})
        if fixed:
            self._of[container_id] = fixed
        if before != fixed:
            self._reserve({network for network, _ in (*before, *fixed)})

    def _reserve(self, networks: Iterable[str]) -> None:
        for ident in networks:
            # Several containers may have the same fixed address, as long as only one of them runs.
            names = {it: name for fixed in self._of.values() for (net, it), name in fixed.items() if net == ident}
            self._engine.networks.reserve(ident, names)

    def _fixed(self, container: Any, names: Mapping[str, str]) -> Iterator[FixedAddress]:
        for key, settings in (container["NetworkSettings"].get("Networks") or {}).items():
            config = settings.get("IPAMConfig") or {}
            for text in filter(None, (config.get("IPv4Address"), config.get("IPv6Address"))):
                yield self._network(key, settings.get("NetworkID") or "", names), ip_address(text)

    def _network(self, key: str, ident: str, names: Mapping[str, str]) -> str:
        """Return a network's id; before a container's first start, Docker may only have the user's reference to it."""
        known = (it for it, name in names.items() if key in (it, name) or (key and it.startswith(key)))
        return ident or next((it for it in known if self._engine.registry.find_network(it)), "")
