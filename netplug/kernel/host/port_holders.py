"""Finds the processes that use a port of the host, by the kernel's list of sockets (sock_diag(7))."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from netplug.drivers.steps import HostPort, IPAddress, Proto
from netplug.kernel.netlink import sock_diag

PROC = Path("/proc")
PROTOCOLS = {Proto.TCP: socket.IPPROTO_TCP, Proto.UDP: socket.IPPROTO_UDP, Proto.SCTP: socket.IPPROTO_SCTP}
_MOST_NAMED = 3
_CONTAINER = re.compile(r"(docker|libpod|nerdctl|cri-containerd|crio)[-/]([0-9a-f]{12})[0-9a-f]{52}\b")
_CONTAINER_IP = "-container-ip"
"""The option of docker-proxy, Docker's userland proxy, before its target address."""
_V6_BYTES = 16


@dataclass(frozen=True, slots=True)
class Bound:
    """A socket that is bound to a port. `both`: an IPv6 socket that accepts IPv4 too (not IPV6_V6ONLY)."""

    proto: Proto
    address: str
    port: int
    both: bool = False

    def covers(self, step: HostPort) -> bool:
        """Return whether this socket occupies all of the step's address and port."""
        address = self._address()
        if (self.proto, self.port) != (step.proto, step.port) or step.address.version not in self._versions(address):
            return False
        return address.is_unspecified or address == step.address

    def excludes(self, step: HostPort) -> bool:
        """Return whether the step's port cannot be bound while this socket exists."""
        if not step.address.is_unspecified:
            return self.covers(step)
        return (self.proto, self.port) == (step.proto, step.port) and step.address.version in self._versions(
            self._address()
        )

    def _address(self) -> IPAddress:
        address = ip_address(self.address.partition("%")[0])
        return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address

    def _versions(self, address: IPAddress) -> frozenset[int]:
        return frozenset({address.version, 4} if self.both and address.is_unspecified else {address.version})


def holders(step: HostPort) -> str:
    """Return the processes that use a port, as text for messages; empty if none is found.

    Searches all processes, which takes some milliseconds for each hundred.
    """
    inodes = {inode for inode, bound in _sockets(step) if bound.excludes(step)}
    names = []
    for pid in sorted(processes()) if inodes else ():
        with suppress(OSError):
            if any(inode in inodes for _, inode in sockets_of(pid)):
                names.append(_name(pid))
    return ", ".join(names[:_MOST_NAMED])


def of_port(proto: Proto, port: int) -> list[tuple[str, str]]:
    """Return the addresses that are bound at a port, each with the process; an empty one if none is found.

    Searches all processes, as `holders`.
    """
    bound = dict(_sockets(HostPort(proto, IPv4Address(0), port)))
    names: dict[int, str] = {}
    for pid in sorted(processes()) if bound else ():
        with suppress(OSError):
            for inode in {inode for _, inode in sockets_of(pid)} & bound.keys():
                names.setdefault(inode, _name(pid))
    return sorted((it.address, names.get(inode, "")) for inode, it in bound.items())


def _name(pid: int) -> str:
    """Return the name of a process for messages, with the container it runs in or publishes a port for.

    Raises:
        OSError: it has ended.
    """
    directory = PROC / str(pid)
    process = f"process {pid} ({(directory / 'comm').read_text().strip()})"
    if container := container_of((directory / "cgroup").read_text()):
        return f"{process} of {container}"
    args = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if _CONTAINER_IP in args[:-1]:
        return f"{process} for the container at {args[args.index(_CONTAINER_IP) + 1]}"
    return process


def container_of(cgroups: str) -> str:
    """Return the runtime and the id of the container that control groups belong to; empty if it is none.

    >>> container_of("0::/system.slice/docker-" + "0a1b2c3d4e5f" * 5 + "6789.scope")
    'docker container 0a1b2c3d4e5f'
    >>> container_of("0::/system.slice/cron.service")
    ''
    """
    found = _CONTAINER.search(cgroups)
    if found is None:
        return ""
    runtime = {"libpod": "podman", "cri-containerd": "containerd", "crio": "CRI-O"}.get(found[1], found[1])
    return f"{runtime} container {found[2]}"


def processes() -> Iterator[int]:
    """Yield the ids of all processes."""
    return (int(name) for name in os.listdir(PROC) if name.isdigit())  # noqa: PTH208 - a Path for each is slow


def sockets_of(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the sockets of a process: descriptor and inode.

    Raises:
        OSError: it has ended, or access is denied.
    """
    folder = f"{PROC}/{pid}/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - a Path for each is slow
        with suppress(OSError):
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115
            if target.startswith("socket:["):
                yield int(name), int(target[8:-1])


def _sockets(step: HostPort) -> Iterator[tuple[int, Bound]]:
    """Yield inode and binding of the sockets at a port in this namespace; none if the kernel lacks sock_diag."""
    states = sock_diag.UNCONNECTED if step.proto is Proto.UDP else sock_diag.LISTENING | sock_diag.BOUND
    for it in sock_diag.sockets(PROTOCOLS[step.proto], states, step.port):
        v6 = len(it.address) == _V6_BYTES
        address = socket.inet_ntop(socket.AF_INET6 if v6 else socket.AF_INET, it.address)
        yield it.inode, Bound(step.proto, address, it.port, v6 and not it.v6only)
