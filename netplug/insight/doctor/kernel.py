"""Checks of the kernel: what it was built with, and its settings."""

from collections.abc import Iterable

from netplug.insight.doctor.findings import Finding, failure, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.tasks.apart import apart

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_FULL, _NEARLY = 0.95, 0.8
_COUNT, _MAX = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"
_NEIGHBOURS = ("net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3")
_NO_IPV6 = ("net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6")
_BRIDGED = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


async def features(host: HostSubject) -> Iterable[Finding]:
    """Find what the kernel lacks."""
    inspection = host.kernel.inspection
    missing = await apart(inspection.lacks)
    release = inspection.release()
    if not missing:
        return [ok(f"kernel {release} has all that netplug needs")]
    mend = f"apt-get install linux-modules-extra-{release}, or boot a kernel that has it"
    return [failure(f"kernel {release} lacks {it}", mend) for it in missing]


async def forwarding(host: HostSubject) -> Iterable[Finding]:
    """Find that the host forwards nothing although networks need it."""
    needed: dict[int, list[str]] = {}
    for net in host.networks:
        if net.options.mode in {"bridge", "overlay"} and not net.internal:
            for subnet in net.subnets:
                if subnet.gateway:
                    needed.setdefault(subnet.pool.version, []).append(net.name)
    found = []
    for family, names in sorted(needed.items()):
        name = _FORWARDING[family]
        if (value := host.kernel.inspection.sysctl(name)) != "1":
            words = f"sysctl {_dotted(name)} is {value or 'missing'}"
            why = f"{words}: {_named(names)} cannot reach the outside by IPv{family}"
            found.append(failure(why, f"sysctl -w {_dotted(name)}=1"))
    return found


async def ipv6(host: HostSubject) -> Iterable[Finding]:
    """Find that IPv6 is off although networks have subnets of it."""
    nets = [net.name for net in host.networks if 6 in net.families()]
    off = [name for name in _NO_IPV6 if host.kernel.inspection.sysctl(name) == "1"]
    if not nets or not off:
        return []
    words = f"sysctl {_dotted(off[0])} is 1, and {_named(nets)} has subnets of IPv6"
    return [failure(words, " && ".join(f"sysctl -w {_dotted(name)}=0" for name in off))]


async def connections(host: HostSubject) -> Iterable[Finding]:
    """Find that the table of tracked connections is full."""
    count, most = (host.kernel.inspection.sysctl(name) for name in (_COUNT, _MAX))
    if not (count.isdigit() and most.isdigit() and int(most)):
        return [ok("connections are not tracked yet")]
    part = int(count) / int(most)
    words = f"{count} of {most} connections are tracked"
    mend = f"sysctl -w {_dotted(_MAX)}={int(most) * 2}"
    if part >= _FULL:
        return [failure(f"{words}: the kernel drops new ones", mend)]
    return [warning(f"{words}: at {most}, the kernel drops new ones", mend)] if part >= _NEARLY else [ok(words)]


async def neighbours(host: HostSubject) -> Iterable[Finding]:
    """Find that there are more containers than the kernel has room for neighbours."""
    found = []
    for name in _NEIGHBOURS:
        most = host.kernel.inspection.sysctl(name)
        if most.isdigit() and host.endpoints > int(most) * _NEARLY:
            words = f"sysctl {_dotted(name)} is {most}, and this host has {host.endpoints} endpoints"
            why = f"{words}: where neighbours are more, some become unreachable"
            found.append(warning(why, f"sysctl -w {_dotted(name)}={max(4096, host.endpoints * 4)}"))
    return found


async def bridge_netfilter(host: HostSubject) -> Iterable[Finding]:
    """Tell that frames between neighbours meet the IP firewall, and find that others drop them there."""
    on = [name for name in _BRIDGED if host.kernel.inspection.sysctl(name) == "1"]
    if not on:
        return []
    words = f"{_dotted(on[0])} is 1, as Docker and Kubernetes set it"
    words = f"{words}: frames between containers of one network meet the rules of iptables too"
    return [note(words, " && ".join(f"sysctl -w {_dotted(name)}=0" for name in on))]


def _dotted(name: str) -> str:
    return name.replace("/", ".")


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"network{'s' * (len(names) > 1)} {shown}"
