"""Places in which the documents' commands run: hosts as a reader has them, with an uplink and without a registry.

Each host may change all of /etc, /usr, /opt and /var/lib for itself, and ends with all that was started there. Engines
have the image `busybox`, which is made here. `netplug` is in the PATH.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from netplug.lab.image import IMAGE, busybox_rootfs_tar
from netplug.lab.podman import oci_runtime

from .dockerd import Dockerd, docker_command
from .firewalld import Firewalld
from .host import CGROUPS, Host
from .names import Upstream
from .netplugd import COMMAND, RUN_DIR, Netplug
from .pasted import ROOT, Command
from .terminal import Terminal
from .ufw import Ufw
from .unpacked import lay_over
from .wait import wait_until
from .wire import connect

FOLDER = "/run/reader"
"""Where the reader's shell is."""
_OWN = ("opt", "var/lib")
_EMPTY = ("/var/lib/netplug", "/etc/netplug", "/etc/cni", "/opt/cni", "/usr/local/lib/netavark")
"""What an earlier netplug of the machine may have left is not the reader's."""
_PODMAN = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
{runtime}
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


@dataclass
class Place:
    """A scene that is set up: its hosts by the letter of their prompts (without one: the only host's), and shells."""

    hosts: dict[str, Host] = field(default_factory=dict)
    netplugs: dict[str, Netplug] = field(default_factory=dict)
    folder: str = FOLDER
    _terminals: dict[str, Terminal] = field(default_factory=dict)

    def type(self, command: Command) -> tuple[str, int]:
        """Type a command where it belongs, and return what it printed, and its exit code."""
        name = command.host if command.host in self.hosts else next(iter(self.hosts))
        if name not in self._terminals:
            self._terminals[name] = Terminal(self.hosts[name], folder=self.folder)
        return self._terminals[name].type(command)

    def close(self) -> None:
        for terminal in self._terminals.values():
            terminal.close()


def _host(stack: ExitStack, name: str = "host-a", *, netplug: bool = True) -> Host:
    """A host with an uplink, and a name server there, without any service."""
    host, outside = stack.enter_context(Host(name)), stack.enter_context(Host("outside"))
    _furnish(host, name, netplug=netplug)
    wire = connect(host, outside)
    stack.enter_context(Upstream(outside, wire.right, says="198.51.100.7"))
    host.path("/etc/resolv.conf").write_text(f"nameserver {wire.right}\n")
    return host


def _furnish(host: Host, name: str, *, netplug: bool = True) -> None:
    lay_over(host, names=("etc", "usr", *_OWN))
    host.run(["rm", "-rf", *_EMPTY])
    host.path(FOLDER).mkdir()
    host.run(["hostname", name])
    tools = host.dir / "bin"
    tools.mkdir()
    (tools / "ping").symlink_to(which("ping") or which("busybox") or "")
    (tools / "docker").symlink_to(docker_command())
    if netplug:
        (tools / "netplug").symlink_to(COMMAND)
    host.env |= {"HOME": FOLDER}
    del host.env["DOCKER_CONFIG"]
    host.env["PATH"] = f"{tools}:{host.env['PATH']}"


def _engine(host: Host, *args: str) -> Dockerd:
    dockerd = Dockerd(host, *args)
    dockerd.docker("tag", IMAGE, "busybox")
    dockerd.docker("image", "rm", IMAGE)
    return dockerd


def _bare(stack: ExitStack) -> Place:
    """A host without any service."""
    return Place({"": _host(stack)})


def _clone(stack: ExitStack) -> Place:
    """A host with Docker's daemon; the reader is in a clone of the project, after `make setup`."""
    host = _host(stack, netplug=False)
    _engine(host)
    return Place({"": host}, folder=str(ROOT))


def _lab(stack: ExitStack) -> Place:
    """A host without any service; the reader is in a clone of the project."""
    return Place({"": _host(stack)}, folder=str(ROOT))


def _netplug(stack: ExitStack) -> Place:
    """A host with netplug's daemon, and no runtime."""
    host = _host(stack)
    return Place({"": host}, {"": _daemon(host, "--docker-host", "none")})


def _docker(stack: ExitStack) -> Place:
    """A host with the daemons of Docker and netplug."""
    host = _host(stack)
    _engine(host)
    return Place({"": host}, {"": _daemon(host)})


def _daemon(host: Host, *args: str) -> Netplug:
    host.env["NETPLUG_RUN_DIR"] = RUN_DIR
    return Netplug(host, *args)


def _ufw(stack: ExitStack) -> Place:
    """A host that ufw guards, with netplug's daemon."""
    place = _bare(stack)
    Ufw(place.hosts[""])
    place.netplugs[""] = _daemon(place.hosts[""], "--docker-host", "none")
    return place


def _firewalld(stack: ExitStack) -> Place:
    """A host that firewalld guards, with netplug's daemon."""
    place = _bare(stack)
    Firewalld(place.hosts[""])
    place.netplugs[""] = _daemon(place.hosts[""], "--docker-host", "none")
    return place


def _podman(stack: ExitStack) -> Place:
    """A host with netplug's daemon and podman, which has an image and settings for a machine of tests."""
    stack.callback(_remove_cgroups, [it for it in _podmans_cgroups() if not it.exists()])
    place = _netplug(stack)
    host = place.hosts[""]
    folder = host.path("/etc/containers")
    files = {
        "storage.conf": f'[storage]\ndriver = "vfs"\ngraphroot = "{host.dir}/podman"\nrunroot = "/run/podman"\n',
        "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
        "containers.conf": _PODMAN.format(runtime=f'runtime = "{oci_runtime()}"' if oci_runtime() else ""),
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    archive = host.dir / "image.tar"
    archive.write_bytes(busybox_rootfs_tar())
    host.run(["podman", "import", "--quiet", str(archive), "busybox"])
    return place


def _podmans_cgroups() -> list[Path]:
    """Return the control groups above those of podman's containers, which podman leaves."""
    folders = (CGROUPS, *(it for it in CGROUPS.iterdir() if it.is_dir()))
    return [it / "libpod_parent" for it in folders]


def _remove_cgroups(folders: list[Path]) -> None:
    for folder in folders:
        wait_until(lambda folder=folder: not folder.exists() or not folder.rmdir(), 10, str(folder), (OSError,))  # type: ignore[misc]


def _cluster(stack: ExitStack) -> Place:
    """Three hosts a, b and c on one switch, 10.0.0.1 to 10.0.0.3; Docker's daemon is on a and b."""
    place = Place()
    switch = stack.enter_context(Host("switch"))
    switch.run(["sh", "-ec", "ip link add lan type bridge; ip addr add 10.0.0.254/24 dev lan; ip link set lan up"])
    for number, name in enumerate("abc", 1):
        host = place.hosts[name] = stack.enter_context(Host(name))
        _furnish(host, name)
        add = f"link add port-{name} type veth peer name eth0 netns {host.pid}".split()
        subprocess.run(["nsenter", f"--net={switch.netns}", "ip", *add], check=True)
        switch.run(["ip", "link", "set", f"port-{name}", "master", "lan", "up"])
        own = (f"addr add 10.0.0.{number}/24 dev eth0", "link set eth0 up", "route add default via 10.0.0.254")
        host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in own)])
        if name != "c":
            _engine(host)
    return place


SCENES: Mapping[str, Callable[[ExitStack], Place]] = {
    "bare": _bare,
    "clone": _clone,
    "lab": _lab,
    "netplug": _netplug,
    "docker": _docker,
    "podman": _podman,
    "cluster": _cluster,
    "ufw": _ufw,
    "firewalld": _firewalld,
}


@contextmanager
def scene(name: str) -> Iterator[Place]:
    """A scene by its name, for the length of the block."""
    with ExitStack() as stack:
        place = SCENES[name](stack)
        stack.callback(place.close)
        yield place
