"""What a kernel says to be ours, by kind."""

from netplug.drivers.steps import Bridge, Element, Hook, Table
from netplug.drivers.tunnel import Fdb, Neighbour
from netplug.kernel.api import Owned

ENTRIES = (Element, Hook)
FORWARDING = (Fdb, Neighbour)


def links(owned: Owned) -> set[str]:
    return {link.name for link in owned.of(Bridge)}


def tables(owned: Owned) -> set[str]:
    return {f"{it.family} {it.name}" for it in owned.of(Table)}
