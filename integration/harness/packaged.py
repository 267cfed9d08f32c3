"""A machine on which a package of Debian is installed and removed, and what of the machine that changes.

Its files are a layer over a root folder: what was changed is in the layer.
"""

import hashlib
import re
import shutil
import stat
import sys
from pathlib import Path

from netplug.lab.image import IMAGE

from .booted import Booted, ServiceDockerd
from .snapshot import Snapshot, assert_same, snapshot

ROOT = Path(__file__).parents[2]
BUILD = (sys.executable, str(ROOT / "packaging/debian/build.py"))
DOCUMENT = ROOT / "docs/installing.md"
UNITS = ("netplug.socket", "netplug.service")
APT_TIMEOUT_S = 300
_APT = ("apt-get", "-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0")
_PASSING = re.compile(
    r"^/(dev|proc|sys|run|tmp|root|var/(log|tmp|lib/(docker|containerd|containers)))(/|$)"
    r"|^/var/lib/dpkg/([a-z]*-old|status|lock.*|triggers/Lock|available)$"
    r"|^/var/cache/(apt|ldconfig|debconf|man)/"
    r"|^/var/lib/(apt|systemd|private|PackageKit)(/|$)"
)
"""Logs, caches, locks and the data of engines; what is there only until the machine stops; and the list of packages."""


FILES = (
    "/etc/netplug/netplug.toml",
    "/usr/bin/netplug",
    "/usr/lib/NetworkManager/conf.d/90-netplug.conf",
    "/usr/lib/cni/pynet",
    "/usr/lib/netavark/pynet",
    "/usr/lib/systemd/network/05-netplug.network",
    *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS),
    "/usr/share/bash-completion/completions/netplug",
    "/usr/share/doc/netplug/CHANGELOG.md.gz",
    "/usr/share/doc/netplug/copyright",
    "/usr/share/fish/vendor_completions.d/netplug.fish",
    "/usr/share/man/man1/netplug-attach.1.gz",
    "/usr/share/man/man1/netplug.1.gz",
    "/usr/share/man/man5/netplug.toml.5.gz",
    "/usr/share/zsh/vendor-completions/_netplug",
)
"""Some that the package has to have."""


class Debian:
    """A machine with systemd and Docker, which has an uplink and not yet the package."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        machine.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)  # services start as on a real machine
        machine.path("/var/lib/man-db/auto-update").unlink(missing_ok=True)  # takes as long as all the rest
        if machine.root == Path("/"):  # else its package has done it
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
        packages = run("dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${Status}\n")
        return snapshot(self.machine) | {
            "packages": tuple(packages.splitlines()),
            "files": tuple(files(self.machine)),
            "unit files": tuple(sorted(units.splitlines())),
            "units": tuple(loaded.splitlines()),
            "run": tuple(in_run.split()),
        }

    def units(self) -> list[tuple[str, str]]:
        """Return whether the units run, and whether they start at a boot."""
        found = (self.machine.show(unit, "ActiveState", "UnitFileState") for unit in UNITS)
        return [(it["ActiveState"], it["UnitFileState"]) for it in found]

    def shell(self, command: str) -> str:
        """Run a command line as a user types it, and return what it printed."""
        return self.machine.output("sh", "-c", command)


def pasted(heading: str) -> list[str]:
    """Return the commands below a heading of the document."""
    part = re.split(r"^##+ ", DOCUMENT.read_text().split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]
    return [line[2:] for block in re.findall(r"```console\n(.*?)```", part, re.DOTALL) for line in block.splitlines()]


def installs_uses_and_purges(debian: Debian, package: Path) -> None:
    """Assert that a machine installs the package, does what the document says, and is as before after the purge."""
    before = debian.state()
    debian.install(package)
    assert debian.units() == [("active", "enabled")] * len(UNITS)
    assert [name for name in FILES if not debian.machine.path(name).exists()] == []
    try_it = pasted("Try it")
    assert len(try_it) == 5
    said = [debian.shell(command) for command in try_it]
    assert "0% packet loss" in said[2]
    assert said[3] == debian.docker.docker("inspect", "-f", "{{.Config.Hostname}}", "web")
    assert "8080->80/tcp" in said[4]
    assert debian.shell("/usr/lib/cni/pynet info").startswith("{")
    assert "no differences" in debian.shell("netplug diff")
    for command in pasted("Clean up"):
        debian.shell(command)
    debian.apt("purge", "netplug")
    assert_same(before, debian.state)


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
