"""The host's firewall on the wire: ``GET /v1/firewall``."""

from pydantic import BaseModel, ConfigDict


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class BaseChainOut(_Out):
    """A base chain of nf_tables, iptables-nft's too. `rules`: how many it has. `ours`: whether netplug made it."""

    family: str
    table: str
    name: str
    hook: str
    priority: int
    policy: str
    rules: int
    ours: bool


class FilterTableOut(_Out):
    """The filter table of one flavour of iptables, "nft" or "legacy".

    `rules`: how many foreign ones FORWARD and INPUT have. `gate`: whether netplug's chains are there. `unread`: why the
    table could not be read.
    """

    family: int
    flavour: str
    policies: dict[str, str]
    rules: dict[str, int]
    gate: bool
    unread: str


class ForwardingOut(_Out):
    """Whether the host forwards packets. `by`: "netplug", "others" or nobody. `strangers`: not between these links."""

    family: int
    by: str
    strangers: list[str]


class FirewallOut(_Out):
    """The host's firewall; see `engine.host_firewall.HostFirewall`."""

    libnftables: str
    chains: list[BaseChainOut]
    iptables: list[FilterTableOut]
    forwarding: list[ForwardingOut]
    firewalld: bool
    bridge_netfilter: bool
