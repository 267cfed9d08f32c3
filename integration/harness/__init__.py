"""Simulated hosts that run the real engines: each in namespaces of its own, leaving no trace."""

from netplug.lab.image import busybox_rootfs_tar

from .booted import Booted, ServiceDockerd, ServiceNetplug, unbootable
from .cni import (
    BIN_DIR,
    FOREIGN_DIR,
    PYNET,
    RANGES4,
    RANGES46,
    VERSIONS,
    Attached,
    PluginError,
    Runtime,
    addresses_of,
    cni_attached,
    cni_list,
    cni_refusal,
    default_gateway,
    execute,
    links_of,
    own_ipam,
)
from .dockerd import Container, Dockerd
from .host import CommandError, Host, Process
from .machine import Machine, engine_runs
from .names import Answer, Upstream, resolve
from .netplugd import Netplug
from .overlay import Mesh, Node, NodeError, Station, Underlay, overlay, pair
from .podman import Podman
from .scoped import Namespace, attached, cli_network, container, docker_network, namespace
from .snapshot import Snapshot, assert_same, links_are_gone, snapshot
from .traffic import Bulk, SeenServer, Stream, Talk, faster, http_get, limited, tcp_ask, udp_ask
from .wait import wait_until
from .wire import Wire, connect

__all__ = [
    "BIN_DIR",
    "FOREIGN_DIR",
    "PYNET",
    "RANGES4",
    "RANGES46",
    "VERSIONS",
    "Answer",
    "Attached",
    "Booted",
    "Bulk",
    "CommandError",
    "Container",
    "Dockerd",
    "Host",
    "Machine",
    "Mesh",
    "Namespace",
    "Netplug",
    "Node",
    "NodeError",
    "PluginError",
    "Podman",
    "Process",
    "Runtime",
    "SeenServer",
    "ServiceDockerd",
    "ServiceNetplug",
    "Snapshot",
    "Station",
    "Stream",
    "Talk",
    "Underlay",
    "Upstream",
    "Wire",
    "addresses_of",
    "assert_same",
    "attached",
    "busybox_rootfs_tar",
    "cli_network",
    "cni_attached",
    "cni_list",
    "cni_refusal",
    "connect",
    "container",
    "default_gateway",
    "docker_network",
    "engine_runs",
    "execute",
    "faster",
    "http_get",
    "limited",
    "links_are_gone",
    "links_of",
    "namespace",
    "overlay",
    "own_ipam",
    "pair",
    "resolve",
    "snapshot",
    "tcp_ask",
    "udp_ask",
    "unbootable",
    "wait_until",
]
