"""A machine on which a package of Debian is installed and removed, and what of the machine that changes.

Its files are a layer over a root folder: what was changed is in the layer.
"""

import hashlib
import re
import shutil
import stat
from pathlib import Path

from netplug.lab.image import IMAGE

from .booted import Booted, ServiceDockerd
from .snapshot import Snapshot, snapshot

APT_TIMEOUT_S = 300
_APT = ("apt-get", "-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0")
_PASSING = re.compile(
    r"^/(dev|proc|sys|run|tmp|root|var/(log|tmp|lib/(docker|containerd|containers)))(/|$)"
    r"|^/var/lib/dpkg/([a-z]*-old|lock.*|triggers/Lock|available)$"
    r"|^/var/cache/(apt|ldconfig|debconf|man)/"
    r"|^/var/lib/(apt|systemd|private|PackageKit)(/|$)"
)
"""Logs, caches, locks and the data of engines; and what is there only until the machine stops."""


class Debian:
    """A machine with systemd and Docker, which has an uplink and not yet the package."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        machine.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)  # services start as on a real machine
        machine.path("/var/lib/man-db/auto-update").unlink(missing_ok=True)  # takes as long as all the rest
        machine.enable("docker.service")
        assert machine.boot() == "running"
        self.docker = ServiceDockerd(machine)
        self.docker.docker("tag", IMAGE, "busybox")
        # What Docker makes once and keeps.
        self.docker.docker("run", "--rm", "-p", "1", IMAGE, "true")

    def install(self, package: Path) -> None:
        """Install a package or upgrade to it, without any network."""
        shutil.copy(package, self.machine.dir)
        self.apt("install", "--allow-downgrades", str(self.machine.dir / package.name))

    def apt(self, *args: str) -> str:
        """Run apt-get and return what it printed."""
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        done = self.machine.run([*_APT, *args], timeout_s=APT_TIMEOUT_S, env=env)
        return done.stdout + done.stderr

    def state(self) -> Snapshot:
        """Return what the host consists of: its network, its files that differ from the root folder's, its units."""
        run = self.machine.output
        units = run("systemctl", "list-unit-files", "--no-legend", "--no-pager")
        loaded = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "netplug*")
        in_run = run("sh", "-c", "ls -d /run/*netplug* /run/docker/plugins/* 2>/dev/null || true")
        return snapshot(self.machine) | {
            "files": tuple(files(self.machine)),
            "unit files": tuple(sorted(units.splitlines())),
            "units": tuple(loaded.splitlines()),
            "run": tuple(in_run.split()),
        }


def files(machine: Booted) -> list[str]:
    """Return the layer's files, one a line: path, mode, owner, and content."""
    found = []
    for path in sorted(machine.layer.rglob("*")):
        inside = f"/{path.relative_to(machine.layer)}"
        if not _PASSING.search(inside) and (said := _described(path, machine.root / inside[1:])):
            found.append(f"{inside} {said}")
    return found


def _described(path: Path, below: Path) -> str:
    """Return kind, mode, owner and content of a file. A folder counts if the root folder has none there."""
    about = path.lstat()
    owner = f"{stat.filemode(about.st_mode)} {about.st_uid}:{about.st_gid}"
    if stat.S_ISDIR(about.st_mode):
        return "" if below.is_dir() else owner
    if stat.S_ISLNK(about.st_mode):
        return f"{owner} -> {path.readlink()}"
    if not stat.S_ISREG(about.st_mode):
        return "removed" if stat.S_ISCHR(about.st_mode) and below.exists() else ""
    content = path.read_bytes()
    if below.is_file() and not below.is_symlink() and below.read_bytes() == content:
        return ""  # written, but as it was
    return f"{owner} {hashlib.sha256(content).hexdigest()[:16]}"
