"""Deletes a new link again if its configuration fails."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from netplug.drivers.naming import mark
from netplug.drivers.steps import Bridge, Ifb, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import StepError
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_DELLINK, Netlink, NetlinkError, text


class LinkRenamedError(Exception):
    """The link of a step is there, but somebody has renamed it. `found`: the link."""

    def __init__(self, found: rtnl.Link) -> None:
        super().__init__(found.name)
        self.found = found


def refuse_renamed(nl: Netlink, name: str) -> None:
    """Raise `LinkRenamedError` if a link of ours, by the name that we gave it, has another name now."""
    found = rtnl.link(nl, mark(name))
    if found and found.name != name and not found.being_deleted:
        raise LinkRenamedError(found)


@contextmanager
def deleted_on_failure(nl: Netlink, step: Bridge | Veth | Macvlan | Ifb | Vxlan, name: str = "") -> Iterator[None]:
    """Delete a link that was just created if the block raises.

    Args:
        nl: socket in the link's namespace.
        step: the step that created the link; named in errors.
        name: current name of the link; empty: that of the step.

    Raises:
        StepError: a kernel request of the block failed.
        LinkRenamedError: the mark is taken, since the link exists already under another name.
    """
    name = name or step.name
    try:
        yield
    except BaseException as error:
        suffix = _delete(nl, name)
        if isinstance(error, TimeoutError):
            raise StepError("unavailable", step, f"the kernel does not answer for link {name!r}{suffix}") from error
        if isinstance(error, NetlinkError):
            if error.errno == errno.EEXIST:
                refuse_renamed(nl, step.name)
            raise StepError("internal", step, f"kernel refused link {name!r}: {error.strerror}{suffix}") from error
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            words = f"link {name!r} cannot be set up: {where}{error.strerror or error}{suffix}"
            hint = "mount /proc/sys/net writable for netplug" if error.errno == errno.EROFS else ""
            raise StepError("internal", step, words, hint=hint) from error
        raise


def _delete(nl: Netlink, name: str) -> str:
    """Delete a link. Return the end of the error message if that fails, else nothing."""
    try:
        nl.request(RTM_DELLINK, rtnl.IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, name))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        return f"; it could not be removed: {error.strerror or error}"
    return ""
