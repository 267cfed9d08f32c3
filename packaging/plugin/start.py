"""The first process of the managed plugin: brings the host's files in, then becomes the daemon.

dockerd gives a plugin a root file system of its own. netplug needs some of the host's files: above all those of network
namespaces, which come and go. A bind mount shows new ones only where the host's mounts are shared
(mount_namespaces(7)), and a bind mount of one file shows its old content after the file is replaced. So these files are
links into the root of the host's process 1, which the plugin sees because it shares the host's PID namespace
(proc_pid_root(5)).

A plugin's /proc/sys is read-only. Only /proc/sys/net becomes writable, and only in here: netplug writes no other
sysctl.
"""

import ctypes
import os
import sys
from pathlib import Path

from netplug.cli import main

HOST = Path("/proc/1/root")
OWN = Path("/run/netplug")
"""Folder of the sockets for the commands on the host."""
LINKS = (
    "/run/netns",
    "/run/docker/netns",  # Docker's sandboxes
    "/run/docker.sock",
    "/run/netplug",
    "/run/dbus",  # firewalld, NetworkManager
    "/run/firewalld",
    "/run/xtables.lock",  # iptables-legacy takes turns with the host's
    "/run/systemd",  # resolv.conf may lead there
)
ETC = ("hosts", "localtime", "netplug", "resolv.conf")
SYSCTLS = b"/proc/sys/net"
MS_REMOUNT, MS_BIND = 32, 4096


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    """Mount a file system, or change the flags of a mount.

    Raises:
        OSError: it failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, target, kind, flags, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target.decode())


def link_to_host() -> None:
    """Make the links. The root file system keeps those outside /etc for the next start."""
    (HOST / OWN.relative_to("/")).mkdir(mode=0o755, exist_ok=True)
    for path in map(Path, LINKS):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(HOST / path.relative_to("/"))
    # dockerd has bound its copies of hosts and resolv.conf here, and wants files to bind to at the next start.
    mount(b"etc", b"/etc", b"tmpfs", 0)
    for name in ETC:
        Path("/etc", name).symlink_to(HOST / "etc" / name)


if __name__ == "__main__":
    os.dup2(1, 2)  # dockerd takes each line on stderr for an error
    link_to_host()
    mount(SYSCTLS, SYSCTLS, None, MS_BIND)
    mount(b"none", SYSCTLS, None, MS_REMOUNT | MS_BIND)
    sys.exit(main(["serve"]))
