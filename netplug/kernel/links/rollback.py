"""What is done to a link once it was made: either all of it, or the link goes again."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from netplug.drivers.steps import Bridge, Ifb, Macvlan, Veth
from netplug.drivers.tunnel import Vxlan
from netplug.kernel.api import StepError
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import RTM_DELLINK, Netlink, NetlinkError, text


@contextmanager
def deleted_on_failure(nl: Netlink, step: Bridge | Veth | Macvlan | Ifb | Vxlan, name: str = "") -> Iterator[None]:
    """Take a link that was just made away again if what is done to it fails.

    Args:
        nl: of the namespace that the link is in.
        step: that the link was made for.
        name: of the link there; empty, the step's.

    Raises:
        StepError: it failed; with the reason.
    """
    name = name or step.name
    try:
        yield
    except BaseException as error:
        rest = _undo(nl, name)
        if isinstance(error, TimeoutError):
            raise StepError("unavailable", step, f"the kernel does not answer for link {name!r}{rest}") from error
        if isinstance(error, NetlinkError):
            raise StepError("internal", step, f"kernel refused link {name!r}: {error.strerror}{rest}") from error
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            words = f"link {name!r} cannot be set up: {where}{error.strerror or error}{rest}"
            hint = "mount /proc/sys/net such that netplug can write there" if error.errno == errno.EROFS else ""
            raise StepError("internal", step, words, hint=hint) from error
        raise


def _undo(nl: Netlink, name: str) -> str:
    """Take a link away; say so if that failed too."""
    try:
        nl.request(RTM_DELLINK, rtnl.IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, name))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        return f"; it could not be removed: {error.strerror or error}"
    return ""
