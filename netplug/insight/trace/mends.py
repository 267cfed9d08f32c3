"""Commands that mend what a trace finds."""

from netplug.drivers.naming import short
from netplug.drivers.steps import IPAddress
from netplug.engine.records import EndpointRecord, FrontEnd
from netplug.insight.trace.ends import name_of
from netplug.insight.trace.model import Place
from netplug.kernel.probes.api import Rule

_IPTABLES = {"ip": "iptables", "ip6": "ip6tables"}


def connecting(network: str, record: EndpointRecord) -> str:
    """Return the command that puts a container into a network too."""
    name = name_of(record)
    match record.front_end:
        case FrontEnd.DOCKER:
            return f"docker network connect {network} {name}"
        case FrontEnd.CLI:
            return f"netplug attach {network} --netns {record.sandbox} --ifname eth1"
        case FrontEnd.NETAVARK:
            return f"podman network connect {network} {name}"
    return f"add network {network} to the CNI configuration of {name}"


def publishing(name: str, port: int, inside: int, proto: str, address: IPAddress | None = None) -> str:
    """Return the command that publishes a port of a container, at all addresses or at one."""
    at = f"{address}:" if address and address.version == 4 else f"[{address}]:" if address else ""
    return f"netplug publish {name} {at}{port}:{inside}" + ("" if proto == "tcp" else f"/{proto}")


def inside(place: Place, command: str) -> str:
    """Return a command that runs in a namespace."""
    there = f"on host {place.host}: " if place.host else ""
    return there + (f"nsenter --net={place.netns} {command}" if place.netns else command)


def without_rule(rule: Rule, place: Place) -> str:
    """Return the command that takes a rule away."""
    if rule.flavour != "nft":
        program = _IPTABLES.get(rule.family, "iptables")
        program += "-legacy" if rule.flavour == "iptables-legacy" else ""
        table = "" if rule.table == "filter" else f"-t {rule.table} "
        if not rule.text or rule.text.startswith("policy"):
            return inside(place, f"{program} {table}-P {rule.chain} ACCEPT")
        words = rule.text.removeprefix(f"-A {rule.chain} ")
        return inside(place, f"{program} {table}-D {rule.chain} {words}")
    if not rule.handle:
        return inside(place, f"nft 'chain {rule.family} {rule.table} {rule.chain} {{ policy accept ; }}'")
    return inside(place, f"nft delete rule {rule.family} {rule.table} {rule.chain} handle {rule.handle}")


def thawing(record: EndpointRecord | None, pid: int = 0) -> str:
    """Return the command that lets a paused container, or a stopped process, go on."""
    if record and record.front_end is FrontEnd.DOCKER:
        return f"docker unpause {name_of(record)}"
    if record and record.front_end is FrontEnd.NETAVARK:
        return f"podman unpause {name_of(record)}"
    return f"kill -CONT {pid}" if pid else "resume it with its runtime"


def restarting(record: EndpointRecord | None) -> str:
    """Return the command that builds the inside of a sandbox anew."""
    if record is None:
        return ""
    if record.front_end is FrontEnd.DOCKER:
        return f"docker restart {name_of(record)}"
    return f"restart {name_of(record) or short(record.endpoint.id)} with its runtime"
