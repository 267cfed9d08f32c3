"""Simulated hosts that run the real engines: each in namespaces of its own, leaving no trace."""

from .dockerd import Container, Dockerd
from .host import CommandError, Host, Process
from .image import busybox_rootfs_tar
from .netplugd import Netplug
from .snapshot import Snapshot, assert_same, snapshot
from .traffic import SeenServer, http_get, tcp_ask, udp_ask
from .wait import wait_until
from .wire import Wire, connect

__all__ = [
    "CommandError",
    "Container",
    "Dockerd",
    "Host",
    "Netplug",
    "Process",
    "SeenServer",
    "Snapshot",
    "Wire",
    "assert_same",
    "busybox_rootfs_tar",
    "connect",
    "http_get",
    "snapshot",
    "tcp_ask",
    "udp_ask",
    "wait_until",
]
