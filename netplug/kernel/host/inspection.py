"""What the kernel tells of this host, for whoever looks for faults; see `api.Inspection`."""

import os
import resource
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from netplug.drivers.steps import Proto
from netplug.kernel.host import capabilities, network_manager, offloads, port_holders, sysctl
from netplug.kernel.host.api import Descriptors, Holder, Offloads, Program, RefusingRoute
from netplug.kernel.netlink import rtnl
from netplug.kernel.netlink.connection import Netlink

_PROC = Path("/proc")


class HostInspection:
    """The network namespace of the calling thread."""

    def release(self) -> str:
        """Return the kernel's release."""
        return os.uname().release

    def lacks(self) -> tuple[str, ...]:
        """Return what this kernel lacks."""
        return capabilities.lacks()

    def sysctl(self, name: str) -> str:
        """Return a sysctl; empty if there is none."""
        try:
            return sysctl.read(name)
        except OSError:
            return ""

    def holders(self, proto: Proto, port: int) -> tuple[Holder, ...]:
        """Return the sockets that are bound to a port of this host."""
        return tuple(Holder(proto, address, port, process) for address, process in port_holders.of_port(proto, port))

    def programs(self, names: Collection[str]) -> tuple[Program, ...]:
        """Return the processes with these names in this network namespace."""
        return tuple(_programs(frozenset(names)))

    def descriptors(self) -> Descriptors:
        """Return those of this process."""
        opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - see `descriptors`
        return Descriptors(opened, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def counters(self) -> Mapping[str, int]:
        """Return the counters of IP, TCP and UDP."""
        lines = [line.split() for line in (_PROC / "self/net/snmp").read_text().splitlines()]
        return {
            f"{names[0].rstrip(':')}.{name}": int(value)
            for names, values in zip(lines[::2], lines[1::2], strict=True)
            for name, value in zip(names[1:], values[1:], strict=True)
        }

    async def managed(self, links: Collection[str]) -> Mapping[str, bool] | None:
        """Return which links NetworkManager manages itself."""
        return await network_manager.manages(links)

    def offloads(self, link: str) -> Offloads:
        """Return what a link leaves to its device."""
        return offloads.offloads(link)

    def refusing_routes(self) -> tuple[RefusingRoute, ...]:
        """Return the routes of the main table that drop what they match."""
        with Netlink.open() as netlink:
            return tuple(rtnl.refusals(netlink))


def _programs(names: frozenset[str]) -> Iterator[Program]:
    here = os.readlink("/proc/self/ns/net")  # noqa: PTH115 - a name, not a path
    for pid in sorted(port_holders.processes()):
        folder = _PROC / str(pid)
        with suppress(OSError):
            name = (folder / "comm").read_text().strip()
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            program = Path(arguments[0]).name
            script = Path(arguments[1]).name if len(arguments) > 1 else ""
            found = next((it for it in (name, program, script) if it in names), "")
            if found and os.readlink(folder / "ns/net") == here and not _is_own(folder, pid):  # noqa: PTH115
                yield Program(pid, found, tuple(arguments))


def _is_own(folder: Path, pid: int) -> bool:
    """Return whether a process is the caller, or its child: until exec(2) that looks like another daemon."""
    parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    return os.getpid() in {pid, int(parent)}
