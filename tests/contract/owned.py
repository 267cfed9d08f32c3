"""What a kernel says to be ours, by kind."""

from netplug.drivers.ingress import Ingress
from netplug.drivers.steps import Bridge, Chain, Forward, Forwards, Guard, Guards, IpSet, Rule
from netplug.drivers.tunnel import Fdb, Neighbour, Remote, Shortcut, Shortcuts, Tunnel, Tunnels, Vtep
from netplug.kernel.api import Owned

TABLES = (Guards, Forwards, Tunnels, Ingress)
ENTRIES = (Guard, Forward, Tunnel, Vtep)
FORWARDING = (Fdb, Neighbour)
FAST_PATH = (Shortcuts, Shortcut, Remote)


def links(owned: Owned) -> set[str]:
    return {link.name for link in owned.of(Bridge)}


def sets(owned: Owned) -> set[str]:
    return {it.name for it in owned.of(IpSet)}


def chains(owned: Owned) -> set[tuple[int, str, str]]:
    return {(it.family, it.table, it.name) for it in owned.of(Chain)}


def rules(owned: Owned) -> set[tuple[int, str, str, str]]:
    return {(it.family, it.table, it.chain, it.rule) for it in owned.of(Rule)}
