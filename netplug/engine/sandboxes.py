"""Tells whether the sandbox of an endpoint still exists, and whether it has processes.

A path is not enough: ``ip netns del lab; ip netns add lab``, or a reboot, puts another namespace there. If the identity
is not known (a record of an older version, or Docker has not made the sandbox yet), any namespace at the path matches.
"""

from netplug.engine.records import EndpointRecord
from netplug.errors import NetplugError
from netplug.kernel.sandbox.api import Sandboxes


def name_of(path: str) -> str:
    """Return the name of a namespace, which a folder of named ones has; empty for that of a process.

    >>> name_of("/run/netns/lab"), name_of("/proc/4711/ns/net")
    ('lab', '')
    """
    folder, _, name = path.rpartition("/")
    return name if folder.endswith("/netns") else ""


async def is_there(sandboxes: Sandboxes, record: EndpointRecord) -> bool:
    """Tell whether the endpoint's sandbox exists, with the same identity."""
    ident = await identity(sandboxes, record.sandbox)
    return ident is not None and record.sandbox_id in {"", ident}


async def has_processes(sandboxes: Sandboxes, record: EndpointRecord) -> bool:
    """Tell whether the endpoint's sandbox has a process."""
    return bool(record.sandbox) and await sandboxes.has_processes(record.sandbox, record.sandbox_id)


async def identity(sandboxes: Sandboxes, path: str) -> str | None:
    """Return the identity of the namespace at a path; None if there is none."""
    if not path:
        return None
    try:
        return (await sandboxes.find(path))[1]
    except NetplugError:
        return None
