"""What a link of the host takes from those who call themselves routers (ip-sysctl.rst, ``conf/*``).

A container must not become the host's router: neither by an advertisement (CVE-2020-13401) nor by a redirect. Settings
of IPv4 go into a message to the link; those of IPv6 the kernel takes by files alone, in the namespace of the calling
thread.
"""

import os
from collections.abc import Mapping

from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import nest, u32

NO_ROUTERS = {
    "ipv6": {"accept_ra": "0", "accept_redirects": "0"},
    "ipv4": {"accept_redirects": "0"},
}
"""For links by which packets come to the host."""
AS_PORT = {
    "ipv6": {"disable_ipv6": "1"},
    # Not by IFF_NOARP: then the bridge would not answer either for those behind a tunnel.
    "ipv4": {"arp_ignore": "8"},
}
"""For ports of bridges, which speak neither ARP nor IPv6: the bridge does. Cheap where a link has no address yet."""

IN_SANDBOX = {"ipv6": {"accept_ra": "0", "autoconf": "0"}}
"""For links in sandboxes, which have the addresses and routes that they are given and no others."""

Settings = Mapping[str, Mapping[str, str]]


def open_ipv6_conf() -> int | None:
    """Return a descriptor of the IPv6 settings of this thread's namespace, by which other threads reach them too."""
    try:
        return os.open("/proc/sys/net/ipv6/conf", os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def write_in_sandbox(link: str, sandbox: int | None) -> None:
    """Have a link in a sandbox believe no routers. `sandbox`: what `open_settings` returned there."""
    for name, value in IN_SANDBOX["ipv6"].items() if sandbox is not None else ():
        fd = os.open(f"{link}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=sandbox)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def ipv4_attributes(settings: Settings) -> bytes:
    """Return the attribute of a message to a link that makes the IPv4 part of settings."""
    values = (u32(rtnl.IPV4_CONF[name] + 1, int(value)) for name, value in settings.get("ipv4", {}).items())
    conf = nest(rtnl.IFLA_INET_CONF, *values)
    return nest(rtnl.IFLA_AF_SPEC, nest(rtnl.AF_INET, conf))


def write_ipv6(link: str, settings: Settings) -> None:
    """Write the IPv6 part of settings of a link; what the kernel does not have is needless."""
    for name, value in settings.get("ipv6", {}).items():
        # Not by a `Path`: it is on the way of every attachment.
        try:
            fd = os.open(f"/proc/sys/net/ipv6/conf/{link}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
