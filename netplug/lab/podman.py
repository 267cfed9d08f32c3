"""podman on a host: its settings and its image, so that a plain `podman` there runs containers on our networks.

By CNI, which podman 4 speaks; a driver of netavark needs podman 4.5 (docs/cni.md). Its settings take the place of
/etc/containers in the host's mount namespace. /var/lib/cni and /var/lib/containers are fixed: libcni keeps results in
one, and podman what it knows of layers in the other, whatever the settings say.
"""

import json
import shutil
from pathlib import Path

from .file import Lab
from .image import IMAGE, busybox_rootfs_tar
from .place import Place, environment

CNI_BIN = "/run/cni-bin"
_ETC = "/etc/containers"
_CONFIG_DIR = "/run/cni-net.d"
_STORAGE = """[storage]
driver = "vfs"
graphroot = "{root}"
runroot = "/run/podman"
"""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = (_ETC, "/var/lib/cni", "/var/lib/containers")


def prepare(lab: Lab, place: Place) -> None:
    """Have podman ready on a host, with the networks of its containers there."""
    place.script(*(f"mkdir -p {path}; mount -t tmpfs -o mode=755 podman {path}" for path in _OWN))
    place.run("netplug", "cni", "install", f"--bin-dir={CNI_BIN}")
    networks = lab.of_podman(place.name)
    files = {
        f"{_ETC}/containers.conf": _settings(networks[0]),
        f"{_ETC}/storage.conf": _STORAGE.format(root=place.folder / "podman"),
        f"{_ETC}/policy.json": json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
    }
    files |= {f"{_CONFIG_DIR}/{name}.conflist": place.run("netplug", "cni", "config", name) for name in networks}
    for path, text in files.items():
        target = place.path(path)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    archive = place.folder / "image.tar"
    archive.write_bytes(busybox_rootfs_tar())
    place.run("podman", "import", "--quiet", str(archive), IMAGE)
    archive.unlink()


def oci_runtime(cgroups: Path = _CGROUPS) -> str:
    """Return the OCI runtime that podman has to be told of, empty where its own choice will do.

    podman prefers crun, which refuses controllers of cgroup v1 beside some of v2 (systemd's hybrid hierarchy).
    """
    unified = cgroups / "unified" / "cgroup.controllers"
    hybrid = unified.exists() and unified.read_text().strip()
    return "runc" if hybrid and shutil.which("runc", path=environment()["PATH"]) else ""


def _settings(network: str) -> str:
    """Return containers.conf(5). The limits are low since not every machine grants those that podman asks for.

    Locks are files, since shared memory is the machine's. `network`: the one of containers that name none.
    """
    runtime = oci_runtime()
    return f"""[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
{f'runtime = "{runtime}"' if runtime else ""}
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{CNI_BIN}"]
network_config_dir = "{_CONFIG_DIR}"
default_network = "{network}"
"""
