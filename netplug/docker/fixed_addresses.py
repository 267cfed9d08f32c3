"""Addresses that Docker's containers were created with (``--ip``, ``--ip6``): kept for them while they exist.

Docker gives a container's address back when it stops, and takes none before the first start. It then asks for just the
one that the container was created with, and the start fails if anybody has got that meanwhile.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any, TypeAlias

from netplug.drivers.steps import IPAddress
from netplug.engine import Engine
from netplug.engine.records import FrontEnd

Place: TypeAlias = tuple[str, IPAddress]
"""A network's id, and an address in it."""


class FixedAddresses:
    """Promises them in the engine. `names`, in all methods: what Docker calls its networks, by id."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._of: dict[str, dict[Place, str]] = {}

    def of(self, container_id: str) -> Iterable[Place]:
        """Return what is known that a container was created with."""
        return self._of.get(container_id, {}).keys()

    def read(self, containers: Iterable[Any], names: Mapping[str, str]) -> None:
        """Learn of all containers that Docker has, running or not, from its list."""
        self._of = {}
        for item in containers:
            if fixed := dict.fromkeys(self._places(item, names), (item["Names"] or [""])[0].lstrip("/")):
                self._of[item["Id"]] = fixed
        self._tell(it.network.id for it in self._engine.registry.networks() if it.front_end is FrontEnd.DOCKER)

    def learn(self, data: Any, names: Mapping[str, str]) -> None:
        """Learn of one container, from an inspect."""
        self._set(data["Id"], dict.fromkeys(self._places(data, names), data["Name"].lstrip("/")))

    def forget(self, container_id: str) -> None:
        """Learn that a container is no more."""
        self._set(container_id, {})

    def _set(self, container_id: str, fixed: dict[Place, str]) -> None:
        before = self._of.pop(container_id, {})
        if fixed:
            self._of[container_id] = fixed
        if before != fixed:
            self._tell({network for network, _ in (*before, *fixed)})

    def _tell(self, networks: Iterable[str]) -> None:
        for ident in networks:
            # Docker may have several that were created with the same address, as long as one of them runs at a time.
            names = {it: name for fixed in self._of.values() for (net, it), name in fixed.items() if net == ident}
            self._engine.networks.reserve(ident, names)

    def _places(self, container: Any, names: Mapping[str, str]) -> Iterator[Place]:
        for key, settings in (container["NetworkSettings"].get("Networks") or {}).items():
            config = settings.get("IPAMConfig") or {}
            for text in filter(None, (config.get("IPv4Address"), config.get("IPv6Address"))):
                yield self._network(key, settings.get("NetworkID") or "", names), ip_address(text)

    def _network(self, key: str, ident: str, names: Mapping[str, str]) -> str:
        """Return a network's id; before a container's first start Docker may only tell what the user called it."""
        known = (it for it, name in names.items() if key in (it, name) or (key and it.startswith(key)))
        return ident or next((it for it in known if self._engine.registry.find_network(it)), "")
