"""Whether the sandbox of an endpoint is still there, and whether anybody lives in it.

A path is not enough: ``ip netns del lab; ip netns add lab`` and a reboot put another namespace there. An identity that
is not known (of an older version's record, or while Docker has not made the sandbox yet) is that of whatever is there.
"""

from netplug.engine.records import EndpointRecord
from netplug.errors import NetplugError
from netplug.kernel.api import Kernel


async def is_there(kernel: Kernel, record: EndpointRecord) -> bool:
    """Tell whether the endpoint's sandbox is there: this very one."""
    ident = await identity(kernel, record.sandbox)
    return ident is not None and record.sandbox_id in {"", ident}


async def has_processes(kernel: Kernel, record: EndpointRecord) -> bool:
    """Tell whether a process lives in the endpoint's sandbox."""
    return bool(record.sandbox) and await kernel.has_processes(record.sandbox, record.sandbox_id)


async def identity(kernel: Kernel, path: str) -> str | None:
    """Return the identity of the namespace at a path; None when there is none."""
    if not path:
        return None
    try:
        return (await kernel.sandbox(path))[1]
    except NetplugError:
        return None
