"""Hosts, networks and containers, and how they hang together."""

from pydantic import BaseModel


class Host(BaseModel):
    """`address`: to which other hosts send tunnels; empty if unknown. `notes`: its faults, in words."""

    name: str
    me: bool
    alive: bool = True
    address: str = ""
    notes: list[str] = []


class Subnet(BaseModel):
    """`size`: addresses that can be given out; `used`: of them and static ones. Both as far as this host knows."""

    subnet: str
    gateway: str
    size: int
    used: int


class Network(BaseModel):
    """`hosts`: that have endpoints of it, and this one. `shared`: with other hosts of the cluster."""

    id: str
    name: str
    mode: str
    internal: bool
    shared: bool
    mtu: int
    subnets: list[Subnet]
    hosts: list[str]


class Endpoint(BaseModel):
    """A container in a network. `container`: the key of one in `Graph.containers`; `ports`: that are published."""

    id: str
    network: str
    container: str
    addresses: list[str]
    mac: str
    ports: list[str]
    healthy: bool


class Container(BaseModel):
    """`key`: unique in a graph. `id`: of the runtime, if it has told.

    A namespace on another host that no runtime made has no id, so there each of its endpoints counts as a container.
    """

    key: str
    name: str
    id: str
    host: str
    front_end: str


class Graph(BaseModel):
    """`note`: why something is missing."""

    hosts: list[Host]
    networks: list[Network]
    containers: list[Container]
    endpoints: list[Endpoint]
    note: str = ""
