"""podman on a host: settings and image, so that a plain `podman` there runs containers in netplug's networks.

podman 4 uses CNI; from 5 on there is only netavark (docs/cni.md). Its settings replace /etc/containers in the host's
mount namespace. The paths /var/lib/cni and /var/lib/containers are fixed, whatever the settings say: libcni stores
results in the one, podman stores data of image layers in the other.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from netplug.lab.file import Lab
from netplug.lab.image import IMAGE, busybox_rootfs_tar
from netplug.lab.node import Node, environment

CNI_BIN = "/run/cni-bin"
_ETC = "/etc/containers"
_CONFIG_DIR = "/run/cni-net.d"
_STORAGE = """[storage]
driver = "vfs"
graphroot = "{root}"
runroot = "/run/podman"
"""
_BY_NETAVARK = 5
"""The first version of podman without CNI."""
_VERSION = re.compile(r"\d+")
_NAMESERVER = re.compile(r"^nameserver (\S+)", re.MULTILINE)
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = (_ETC, "/var/lib/cni", "/var/lib/containers")


def prepare(lab: Lab, node: Node) -> None:
    """Set podman up on a host, with the networks of its containers."""
    node.script(*(f"mkdir -p {path}; mount -t tmpfs -o mode=755 podman {path}" for path in _OWN))
    node.run("netplug", "cni", "install", f"--bin-dir={CNI_BIN}")
    networks, netavark = lab.of_podman(node.name), by_netavark(node)
    files = {
        f"{_ETC}/containers.conf": _settings(networks[0], netavark=netavark),
        f"{_ETC}/storage.conf": _STORAGE.format(root=node.folder / "podman"),
        f"{_ETC}/policy.json": json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
    }
    for name in () if netavark else networks:
        files[f"{_CONFIG_DIR}/{name}.conflist"] = node.run("netplug", "cni", "config", name)
    for path, text in files.items():
        target = node.path(path)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    if netavark:
        _create(lab, node, networks)
    archive = node.folder / "image.tar"
    archive.write_bytes(busybox_rootfs_tar())
    node.run("podman", "import", "--quiet", str(archive), IMAGE)
    archive.unlink()


def by_netavark(node: Node) -> bool:
    """Tell whether the podman of a host uses netavark instead of CNI."""
    return speaks_netavark(node.run("podman", "--version"))


def speaks_netavark(version: str) -> bool:
    """Tell whether podman uses netavark, by the output of ``podman --version``.

    >>> speaks_netavark("podman version 4.3.1"), speaks_netavark("podman version 6.0.0-dev")
    (False, True)
    """
    found = _VERSION.search(version)
    return found is not None and int(found[0]) >= _BY_NETAVARK


def told(node: Node, name: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return a container's addresses and name servers by network, with netavark."""
    shown: dict[str, Any] = json.loads(node.run("podman", "inspect", name))[0]
    return has(shown, node.path(shown["ResolvConfPath"]).read_text())


def has(shown: dict[str, Any], resolv_conf: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Do so from ``podman inspect`` and resolv.conf. The name servers are gateways, each of one network."""
    servers = _NAMESERVER.findall(resolv_conf)
    found = {}
    for network, net in shown["NetworkSettings"]["Networks"].items():
        own = {net["Gateway"], net["IPv6Gateway"]}
        addresses = (net["IPAddress"], net["GlobalIPv6Address"])
        found[network] = tuple(it for it in addresses if it), tuple(it for it in servers if it in own)
    return found


def _create(lab: Lab, node: Node, networks: list[str]) -> None:
    """Define existing networks in podman.

    podman refuses the name of its default network, so that setting is absent meanwhile.
    """
    settings = node.path(f"{_ETC}/containers.conf")
    text = settings.read_text()
    settings.write_text(text.replace(_default(networks[0]), ""))
    for name in networks:
        net = lab.networks[name]
        internal = ["--internal"] if net.internal else []
        node.run("podman", "network", "create", "-d", "pynet", "-o", f"mode={net.mode}", *internal, name)
    settings.write_text(text)


def _default(network: str) -> str:
    return f'default_network = "{network}"'


def oci_runtime(cgroups: Path = _CGROUPS) -> str:
    """Return the OCI runtime to configure for podman; empty if its default works.

    podman prefers crun, which refuses cgroup v1 controllers beside v2 controllers (systemd's hybrid hierarchy).
    """
    unified = cgroups / "unified" / "cgroup.controllers"
    hybrid = unified.exists() and unified.read_text().strip()
    return "runc" if hybrid and shutil.which("runc", path=environment()["PATH"]) else ""


def _settings(network: str, *, netavark: bool) -> str:
    """Return containers.conf(5). The limits are low, since some machines refuse podman's default limits.

    Locks are files, since shared memory is the machine's. `network`: the default network.
    """
    runtime = oci_runtime()
    backend, plugins = ("netavark", "netavark_plugin_dirs") if netavark else ("cni", "cni_plugin_dirs")
    return f"""[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
{f'runtime = "{runtime}"' if runtime else ""}
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "{backend}"
{plugins} = ["{CNI_BIN}"]
network_config_dir = "{_CONFIG_DIR}"
{_default(network)}
"""
