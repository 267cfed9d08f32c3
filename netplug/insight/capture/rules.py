"""The rule that dropped a packet, in one line; of a rule of ours also what it is for."""

from netplug.kernel.probes.api import Rule

_OURS = "netplug"
_SEPARATE = "networks are separate from each other, but for published ports, and icc=false separates containers"
_UNPUBLISHED = "from outside only published ports are reached"
_INTERNAL = "the network is internal"
PURPOSES = {
    "ingress": "its source is not of the network that it comes from",
    "from_internal": _INTERNAL,
    "to_internal": _INTERNAL,
    "host_internal": _INTERNAL,
    "between_open": _SEPARATE,
    "between_home": _SEPARATE,
    "to_open": _UNPUBLISHED,
    "store": "the store of the hosts is none of the containers' business",
}
"""Of chains of table ``inet netplug`` (`drivers/tables/networks.nft`)."""
_ANTI_SPOOFING = "anti-spoofing: a container sends only with its own MAC and addresses"


def described(rule: Rule) -> str:
    """Return who dropped it, where, and by what."""
    where = "in its sandbox" if rule.netns else "on the host"
    text = rule.text or f"rule {rule.handle}"
    found = f"{rule.flavour} {rule.family} {rule.table} {rule.chain}, {where}: {text}"
    why = "" if rule.netns else purpose(rule)
    return f"{found} ({why})" if why else found


def purpose(rule: Rule) -> str:
    """Return what a rule of ours is for; empty for others."""
    if rule.table != _OURS:
        return ""
    return _ANTI_SPOOFING if rule.family in {"bridge", "netdev"} else PURPOSES.get(rule.chain, "")
