"""VXLAN links and what they know, in the memory of a fake kernel, refused as the real one refuses them."""

from typing import TypeAlias, get_args

from netplug.drivers.tunnel import Fdb, Neighbour, Remote, Shortcut, Shortcuts, Tunnel, Tunnels, Vtep, Vxlan
from netplug.kernel.api import Outcome, StepError
from netplug.kernel.fake.world import World

TunnelStep: TypeAlias = Vxlan | Fdb | Neighbour | Shortcuts | Shortcut | Remote | Tunnels | Tunnel | Vtep
TUNNEL_STEPS = get_args(TunnelStep)


def ensure(world: World, step: TunnelStep) -> Outcome:
    """Say what is found of a step, or refuse it; the caller remembers it."""
    match step:
        case Vxlan():
            return _ensure_vxlan(world, step)
        case Fdb():
            return _ensure_fdb(world, step)
        case Neighbour():
            world.wants_link(step, step.link, None)
        case Shortcuts():
            world.wants_link(step, step.vxlan, None)
        case Shortcut():
            world.wants_link(step, step.vxlan, None)
            world.wants_link(step, step.link, None)
            _wants_table(world, step)
        case Remote():
            _wants_table(world, step)
        case Tunnel() | Vtep() if f"tunnels/{step.family}" not in world.state:
            raise StepError("not_found", step, f"the table of IPv{step.family} tunnels is missing")
    return world.plain(step)


def _wants_table(world: World, step: Shortcut | Remote) -> None:
    if Shortcuts(step.vxlan).key not in world.state:
        raise StepError("not_found", step, f"the table of shortcuts of link {step.vxlan!r} is missing")


def _ensure_vxlan(world: World, step: Vxlan) -> Outcome:
    if step.master not in world.names():
        raise StepError("not_found", step, f"bridge {step.master!r} of link {step.name!r} is missing")
    if step.name in world.foreign.links:
        raise StepError("exists", step, f"link {step.name!r} exists and is not ours", hint="remove or rename it")
    words = f"VNI {step.vni} on UDP port {step.port} is in use by link"
    for name, held in world.foreign.tunnels.items():
        if held == (step.vni, step.port):
            raise StepError("exists", step, f"{words} {name!r}, which is not ours")
    for link in world.links():
        if isinstance(link, Vxlan) and link.key != step.key and (link.vni, link.port) == (step.vni, step.port):
            raise StepError("exists", step, f"{words} {link.name!r}")
    before = world.state.get(step.key)
    if isinstance(before, Vxlan) and (before.vni, before.port) != (step.vni, step.port):
        raise StepError("exists", step, f"link {step.name!r} VNI is {before.vni}, not {step.vni}")
    if isinstance(before, Vxlan) and before.local.version != step.local.version:
        world.cascade(world.state.pop(step.key))  # made anew
    return world.plain(step)


def _ensure_fdb(world: World, step: Fdb) -> Outcome:
    world.wants_link(step, step.link, None)
    link = world.state.get(f"link/{step.link}")
    if not isinstance(link, Vxlan):
        raise StepError("invalid", step, f"link {step.link!r} is not a vxlan link in a bridge")
    if link.local.version != step.vtep.version:
        words = f"VTEP {step.vtep} is an IPv{step.vtep.version} address, link {step.link!r} has the other IP version"
        raise StepError("invalid", step, words)
    return world.plain(step)
