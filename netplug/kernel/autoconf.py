"""What a link of the host takes from those who call themselves routers (ip-sysctl.rst, ``conf/*``).

A container must not become the host's router: neither by an advertisement (CVE-2020-13401) nor by a redirect. Settings
are of the namespace of the calling thread.
"""

import os
from collections.abc import Mapping

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

Settings = Mapping[str, Mapping[str, str]]


def write(link: str, settings: Settings) -> None:
    """Write settings of a link; those that the kernel does not have are needless."""
    for family, values in settings.items():
        for name, value in values.items():
            # Not by a `Path`: it is on the way of every attachment.
            try:
                fd = os.open(f"/proc/sys/net/{family}/conf/{link}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
