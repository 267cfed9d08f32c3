"""What netplug needs of a kernel, tried in a network namespace made for it.

A kernel's configuration says what it was built with, not whether the modules are there. So each kind of link is made
once, and each table loaded. The namespace ends with its thread.
"""

import errno
from collections.abc import Iterator

from netplug.drivers import tables
from netplug.kernel import libc
from netplug.kernel.firewall import compiler
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import NEW, RTM_NEWLINK, Netlink, NetlinkError, nest, text
from netplug.kernel.threads import in_new_thread

_CLONE_NEWNET = 0x40000000
_KINDS = {
    "bridge": "the modes bridge and overlay",
    "veth": "the modes bridge and overlay",
    "vxlan": "the mode overlay",
    "macvlan": "the mode macvlan",
    "ifb": "the option rate",
}
"""Kinds of links, with what needs them."""
_TABLES = {"networks": "inet", "antispoof": "bridge", "resolver": "ip", "host_mode": "inet"}


def lacks() -> tuple[str, ...]:
    """Return what is missing, in words. Blocks for some 10 ms; the tables are tried once a process."""
    return (*in_new_thread("netplug-capabilities", lambda: tuple(_links())), *_firewall())


def _links() -> Iterator[str]:
    libc.call("unshare", _CLONE_NEWNET)
    with Netlink.open() as netlink:
        for kind, user in _KINDS.items():
            info = nest(rtnl.IFLA_LINKINFO, text(rtnl.IFLA_INFO_KIND, kind))
            try:
                netlink.request(
                    RTM_NEWLINK, rtnl.IFINFO.pack(0, 0, 0, 0, 0) + text(rtnl.IFLA_IFNAME, f"try-{kind}") + info, NEW
                )
            except NetlinkError as error:
                if error.errno == errno.EOPNOTSUPP:  # others are about attributes that were not given
                    yield f"links of kind {kind}, which {user} needs (CONFIG_{kind.upper()})"


def _firewall() -> Iterator[str]:
    for name, family in _TABLES.items():
        try:
            compiler.compiled(family, tables.text(name))
        except compiler.CompileError as error:
            yield f"nf_tables of family {family} as netplug's rules need it ({error})"
