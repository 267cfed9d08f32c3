"""podman inside a host, with its state in the host's folder and its networks by CNI."""

import json
from typing import Any

from .cni import BIN_DIR
from .host import Host
from .image import busybox_rootfs_tar
from .netplugd import RUN_DIR

CONFIG_DIR = "/run/cni-net.d"
CONFIG = "/run/containers.conf"
IMAGE = "localhost/bb:1"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""Else it asks for limits that a test machine does not grant."""


class Podman:
    """`podman` with the image `IMAGE`; `network` is its default one, whose conflist is given."""

    def __init__(self, host: Host, network: str, conflist: str) -> None:
        self.host = host
        # libcni keeps results there, whatever the roots are.
        host.run(["sh", "-ec", f"mkdir -p /var/lib/cni {CONFIG_DIR}; mount -t tmpfs cni /var/lib/cni"])
        self.configure(network, conflist)
        host.path(CONFIG).write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "cni"\ncni_plugin_dirs = ["{BIN_DIR}"]\n'
            f'network_config_dir = "{CONFIG_DIR}"\ndefault_network = "{network}"\n'
        )
        logins = host.dir / "docker-config"
        logins.mkdir()
        (logins / "config.json").write_text("{}")
        image = host.dir / "image.tar"
        image.write_bytes(busybox_rootfs_tar())
        self("import", "--quiet", str(image), IMAGE)

    def configure(self, network: str, conflist: str) -> None:
        """Give it a network."""
        self.host.path(f"{CONFIG_DIR}/{network}.conflist").write_text(conflist)

    def __call__(self, *args: str) -> str:
        """Run a command and return what it printed; raises CommandError."""
        roots = ("--root", str(self.host.dir / "podman"), "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp")
        command = ["podman", "--runtime", "/usr/sbin/runc", "--storage-driver", "vfs", *roots, *args]
        return self.host.run(command, env={"CONTAINERS_CONF": CONFIG, "NETPLUG_RUN_DIR": RUN_DIR}).stdout.strip()

    def run(self, name: str, *options: str) -> None:
        """Start a container that sleeps, and ends at once when told to."""
        self(
            "run",
            "-d",
            "--name",
            name,
            "--cgroup-parent",
            self.host.name,
            "--stop-signal",
            "KILL",
            *LIMITS,
            *options,
            IMAGE,
            "sleep",
            "3600",
        )

    def networks(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what it shows of a container's networks."""
        found: dict[str, dict[str, Any]] = json.loads(self("inspect", name))[0]["NetworkSettings"]["Networks"]
        return found

    def netns(self, name: str) -> str:
        return str(json.loads(self("inspect", name))[0]["NetworkSettings"]["SandboxKey"])
