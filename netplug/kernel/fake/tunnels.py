"""VXLAN links and their forwarding entries in the fake kernel. It refuses what the real kernel refuses."""

from netplug.drivers.tunnel import Fdb, Neighbour, Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.fake.world import World


def ensure_neighbour(world: World, step: Neighbour) -> Outcome:
    """Add a neighbour."""
    world.wants_link(step, step.link, None)
    return world.plain(step)


def ensure_vxlan(world: World, step: Vxlan) -> Outcome:
    """Make a VXLAN link."""
    if step.master not in world.names():
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    if step.name in world.foreign.links:
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    words = f"VNI {step.vni} on UDP port {step.port} is in use by link"
    for name, used in world.foreign.tunnels.items():
        if used == (step.vni, step.port):
            raise StepError("exists", step, f"{words} {name!r}, which is not ours")
    for link in world.links():
        if isinstance(link, Vxlan) and link.key != step.key and (link.vni, link.port) == (step.vni, step.port):
            raise StepError("exists", step, f"{words} {link.name!r}")
    before = world.state.get(step.key)
    if isinstance(before, Vxlan) and (before.vni, before.port) != (step.vni, step.port):
        raise StepError("exists", step, f"link {step.name!r} VNI is {before.vni}, not {step.vni}")
    if isinstance(before, Vxlan) and before.local.version != step.local.version:
        world.cascade(world.state.pop(step.key))  # the real kernel needs a new link
    return world.plain(step)


def ensure_fdb(world: World, step: Fdb) -> Outcome:
    """Add an FDB entry."""
    world.wants_link(step, step.link, None)
    link = world.state.get(f"link/{step.link}")
    if not isinstance(link, Vxlan):
        raise StepError("invalid", step, f"link {step.link!r} is not a vxlan link in a bridge")
    if link.local.version != step.vtep.version:
        words = f"VTEP {step.vtep} is an IPv{step.vtep.version} address, link {step.link!r} has the other IP version"
        raise StepError("invalid", step, words)
    return world.plain(step)
