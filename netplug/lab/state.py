"""The record of a lab that is up, in one file: its description, its processes and its addresses."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from netplug.errors import NetplugError
from netplug.lab.file import ETCD, Lab
from netplug.lab.node import Node

DIR = Path("/var/lib/netplug-lab")
SWITCH = "switch"
_FILE = "lab.json"


@dataclass(slots=True)
class Member:
    """A host, the switch, or etcd's node. `processes`: PIDs inside, by name; `addresses`: on the underlay."""

    pid: int
    since: int
    addresses: tuple[str, ...] = ()
    processes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class State:
    """A lab that is up.

    `containers`: addresses by container and network. `servers`: name servers by container and network; empty if the
    network serves no names. `faults`: the faults that were injected, in words.
    """

    lab: Lab
    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    containers: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    servers: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def node(self, name: str) -> Node:
        """Return the node of a host, the switch or etcd.

        Raises:
            NetplugError: "not_found"; the hint has the existing names.
        """
        if name not in self.members:
            raise NetplugError(
                "not_found", f"lab {self.lab.name!r} has no host {name!r}", hint=f"it has {self._hosts()}"
            )
        member = self.members[name]
        return Node(name, self.folder / name, member.pid, member.since)

    def refuse_unknown(self, name: str) -> None:
        """Refuse a name that is neither a host nor a container.

        Raises:
            NetplugError: "not_found"; the hint has the existing names.
        """
        if name in self.members or name in self.lab.containers:
            return
        words = f"lab {self.lab.name!r} has no host or container {name!r}"
        containers = ", ".join(self.lab.containers) or "none"
        raise NetplugError("not_found", words, hint=f"hosts: {self._hosts()}; containers: {containers}")

    def _hosts(self) -> str:
        return ", ".join(it for it in self.members if it != SWITCH)

    def hosts(self) -> list[Node]:
        """Return the hosts."""
        return [self.node(name) for name in self.lab.hosts]

    def etcd(self) -> str:
        """Return the URL of the store, for `--store`."""
        return f"etcd://{self.members[ETCD].addresses[0]}:2379"

    def save(self) -> None:
        """Replace the file atomically."""
        data = {
            "lab": self.lab.model_dump(mode="json"),
            "members": {name: asdict(member) for name, member in self.members.items()},
            "containers": self.containers,
            "servers": self.servers,
            "faults": self.faults,
        }
        new = self.folder / f"{_FILE}.new"
        new.write_text(json.dumps(data, indent=1))
        new.replace(self.folder / _FILE)


def find(name: str, base: Path) -> State:
    """Return a lab that is up. `name` empty: the only one.

    Raises:
        NetplugError: "not_found"; the message has the labs that are up.
    """
    there = names(base)
    if not name:
        if len(there) != 1:
            words = "no lab is up" if not there else f"{len(there)} labs are up: {', '.join(there)}"
            raise NetplugError("not_found", words, hint="name one with --lab" if there else "netplug lab up FILE")
        (name,) = there
    if name not in there:
        raise NetplugError(
            "not_found", f"no lab {name!r} is up", hint=f"labs that are up: {', '.join(there) or 'none'}"
        )
    folder = base / name
    data = json.loads((folder / _FILE).read_text())
    members = {key: Member(**value) for key, value in data["members"].items()}
    for member in members.values():
        member.addresses = tuple(member.addresses)
    # A lab of an older version has no servers in its file, and `lab down` must still remove it.
    containers, servers = _by_network(data["containers"]), _by_network(data.get("servers", {}))
    return State(Lab.model_validate(data["lab"]), folder, members, containers, servers, data["faults"])


def _by_network(data: dict[str, dict[str, list[str]]]) -> dict[str, dict[str, tuple[str, ...]]]:
    return {key: {net: tuple(addresses) for net, addresses in nets.items()} for key, nets in data.items()}


def names(base: Path) -> list[str]:
    """Return the names of the labs that are up."""
    return sorted(path.parent.name for path in base.glob(f"*/{_FILE}"))
