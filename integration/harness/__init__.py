"""Simulated hosts that run the real engines: each in namespaces of its own, leaving no trace."""

from .cni import BIN_DIR, FOREIGN_DIR, VERSIONS, Attached, PluginError, Runtime, cni_attached, cni_list, execute
from .dockerd import Container, Dockerd
from .host import CommandError, Host, Process
from .image import busybox_rootfs_tar
from .machine import Machine, engine_runs
from .netplugd import Netplug
from .scoped import Namespace, attached, cli_network, container, docker_network, namespace
from .snapshot import Snapshot, assert_same, snapshot
from .traffic import SeenServer, http_get, tcp_ask, udp_ask
from .wait import wait_until
from .wire import Wire, connect

__all__ = [
    "BIN_DIR",
    "FOREIGN_DIR",
    "VERSIONS",
    "Attached",
    "CommandError",
    "Container",
    "Dockerd",
    "Host",
    "Machine",
    "Namespace",
    "Netplug",
    "PluginError",
    "Process",
    "Runtime",
    "SeenServer",
    "Snapshot",
    "Wire",
    "assert_same",
    "attached",
    "busybox_rootfs_tar",
    "cli_network",
    "cni_attached",
    "cni_list",
    "connect",
    "container",
    "docker_network",
    "engine_runs",
    "execute",
    "http_get",
    "namespace",
    "snapshot",
    "tcp_ask",
    "udp_ask",
    "wait_until",
]
