"""Which router advertisements and redirects a link accepts (ip-sysctl.rst, ``conf/*``).

A container must not become the host's router, neither by an advertisement (CVE-2020-13401) nor by a redirect. IPv4
settings are attributes of a link message. IPv6 settings can only be written to files, which belong to the network
namespace of the calling thread.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType

from netplug.drivers.steps import Sysctl
from netplug.kernel.host import sysctl
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import IPV6_CONF, Netlink, nest, u32

NO_ROUTERS = {
    "ipv6": {"accept_ra": "0", "accept_redirects": "0", "accept_dad": "0"},
    "ipv4": {"accept_redirects": "0"},
}
"""For links by which containers send packets to the host.

Without duplicate address detection: until it has found the link-local address of a new link, or of one that was down,
to be unique, which takes two seconds, the kernel asks for no neighbour, and so forwards nothing to containers
(net/ipv6/ndisc.c, ndisc_send_ns). Our MACs are unique, so these addresses are.
"""
FORWARDING = {**NO_ROUTERS, "ipv4": {**NO_ROUTERS["ipv4"], "forwarding": "1"}}
"""The same on a host that forwards: in IPv4, each link has a switch of its own (net/ipv4/route.c, IN_DEV_FORWARD)."""
AS_PORT = {
    "ipv6": {"disable_ipv6": "1"},
    # Not by IFF_NOARP: it would also disable the bridge's ARP suppression for peers behind a tunnel.
    "ipv4": {"arp_ignore": "8"},
}
"""For bridge ports: the bridge itself does ARP and IPv6. Cheap while the link has no address."""

IN_SANDBOX = {"ipv6": {"accept_ra": "0", "autoconf": "0"}}
"""For links in sandboxes, which get their addresses and routes from us only."""

Settings = Mapping[str, Mapping[str, str]]


def towards_host(present: Mapping[str, str] = MappingProxyType({})) -> Settings:
    """Return the settings of a link by which containers send packets to the host. `present`: those that it has."""
    if present.get("ipv4/forwarding", "0") != "0":
        return NO_ROUTERS
    try:
        forwards = sysctl.read("net/ipv4/ip_forward") == "1"
    except OSError:
        forwards = False
    return FORWARDING if forwards else NO_ROUTERS


def written(link: str) -> Iterator[Sysctl]:
    """Yield the settings of such a link, of which the kernel does not tell when others write them."""
    for family, values in FORWARDING.items():
        yield from (Sysctl(f"net/{family}/conf/{link}/{name}", value) for name, value in values.items())


def write_in_sandbox(nl: Netlink, link: str) -> None:
    """Disable router advertisements on a link in a sandbox. `nl`: its socket."""
    if (conf := nl.ipv6_conf()) is not None:
        for name, value in IN_SANDBOX["ipv6"].items():
            _write(conf, link, name, value)


def ipv4_attributes(settings: Settings) -> bytes:
    """Return the link attribute that sets the IPv4 part of settings (IFLA_AF_SPEC)."""
    values = (u32(rtnl.IPV4_CONF[name] + 1, int(value)) for name, value in settings.get("ipv4", {}).items())
    conf = nest(rtnl.IFLA_INET_CONF, *values)
    return nest(rtnl.IFLA_AF_SPEC, nest(rtnl.AF_INET, conf))


def write_ipv6(nl: Netlink, link: str, settings: Settings) -> None:
    """Write the IPv6 part of settings of a link. Settings that the kernel does not have are skipped."""
    if (conf := nl.ipv6_conf()) is not None:
        for name, value in settings.get("ipv6", {}).items():
            with suppress(FileNotFoundError):
                _write(conf, link, name, value)


def _write(conf: int, link: str, name: str, value: str) -> None:
    # os.open() instead of `Path`: every attach comes here.
    try:
        fd = os.open(f"{link}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=conf)
    except OSError as error:
        error.filename = f"/proc/{IPV6_CONF}/{link}/{name}"
        raise
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
