"""A simulated machine with systemd as its process 1, in namespaces of its own, which leaves no trace.

Its files are a root folder under a layer in memory: the folder stays as it is, and what is written survives a reboot.
Each boot has a new network, an empty `/run` and an empty `/tmp`, as a machine's has. Its control groups are below one
of the machine's, in cgroup v2. `boot.sh` does the mounts.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import netplug

from .dockerd import Dockerd
from .host import CommandError, Host, Process
from .netplugd import COMMAND, Netplug
from .wait import wait_until

BOOT_TIMEOUT_S = 60
"""Half a second as a rule; units that a test enables may take longer."""
POWEROFF_TIMEOUT_S = 60
_SCRIPT = str(Path(__file__).with_name("boot.sh"))
_SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path(netplug.__file__).with_name("host_files") / "systemd"
MASKED = (
    # What they change is the machine's, not the namespace's.
    *("systemd-sysctl.service", "systemd-modules-load.service", "modprobe@.service", "kmod-static-nodes.service"),
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount"),
    *("systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket"),
    *("systemd-udev-trigger.service", "systemd-udev-settle.service", "systemd-random-seed.service"),
    *("systemd-timesyncd.service", "systemd-rfkill.service", "systemd-rfkill.socket", "systemd-journald-audit.socket"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "dev-hugepages.mount", "systemd-remount-fs.service"),
    # What nobody here needs.
    *("getty.target", "systemd-logind.service", "cron.service", "e2scrub_reap.service", "e2scrub_all.timer"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "man-db.timer"),
)


@cache
def unbootable() -> str:
    """Return why this machine cannot boot one; empty if it can."""
    if os.geteuid():
        return "needs root"
    if not _SYSTEMD.exists():
        return "needs systemd (make setup)"
    known = Path("/proc/filesystems").read_text().split()
    if missing := [name for name in ("overlay", "cgroup2", "tmpfs") if name not in known]:
        return f"the kernel lacks {', '.join(missing)}"
    attempt = "set -e; mount -t proc p /proc; mount -t sysfs s /sys; mount -t cgroup2 c /sys/fs/cgroup"
    flags = ["--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private"]
    done = subprocess.run(["unshare", *flags, "sh", "-c", attempt], check=False, capture_output=True, text=True)
    return f"namespaces of their own are refused: {done.stderr.strip()}" if done.returncode else ""


class Booted(Host):
    """As a `Host`. It is off after the construction, so that a test can write its files, until `boot()`.

    `root`: folder of its operating system; `/` is a copy of this machine without its services. `masked`: units that are
    not to start, besides those that would change this machine.
    """

    described = "with systemd"

    def __init__(self, name: str = "booted", *, root: Path = Path("/"), masked: Sequence[str] = ()) -> None:
        self._root = root
        self._masked = (*MASKED, *masked)
        self._power: Process | None = None
        self._holder = 0
        self._follower: subprocess.Popen[bytes] | None = None
        super().__init__(name)

    def _start(self) -> None:
        super()._start()
        self._holder = self.pid
        self.run(["sh", _SCRIPT, "prepare", str(self._root), str(self.dir), self.name])

    @property
    def changes(self) -> Path:
        """Where the files are found that were written or removed on its disk, from outside."""
        return Path(f"/proc/{self._holder}/root{self.dir}/machine/upper")

    @property
    def on(self) -> bool:
        return self._power is not None and self._power.alive

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` inside; in the holder of its files while it is off."""
        if not self.on:
            return super().inside(argv)
        flags = ("--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root")
        return ["nsenter", "-t", str(self.pid), *flags, "--", *argv]

    def path(self, inside: str | Path) -> Path:
        """Return where a file is found from outside, also while it is off (but for what a boot mounts)."""
        if self.on:
            return super().path(inside)
        return super().path(f"{self.dir}/machine/root/{str(inside).lstrip('/')}")

    @property
    def layer(self) -> Path:
        """Where the files are found from outside that differ from the root folder's."""
        return Path(f"/proc/{self._holder}/root{self.dir}/machine/upper")

    @property
    def root(self) -> Path:
        """The folder of its operating system."""
        return self._root

    def write(self, inside: str | Path, text: str, mode: int = 0o644) -> None:
        """Write a file, and the folders that it needs."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def enable(self, *units: str, target: str = "multi-user.target") -> None:
        """Have units start at the next boot, whatever their [Install] section says; a machine that is off can do it."""
        for unit in units:
            found = [folder for folder in ("/etc", "/lib", "/usr/lib") if self._unit(folder, unit).exists()]
            assert found, f"there is no unit {unit}"
            wants = self.path(f"/etc/systemd/system/{target}.wants")
            wants.mkdir(parents=True, exist_ok=True)
            (wants / unit).symlink_to(f"{found[0]}/systemd/system/{unit}")

    def _unit(self, folder: str, unit: str) -> Path:
        return self.path(f"{folder}/systemd/system/{unit}")

    def boot(self) -> str:
        """Start it, and wait until its units have started. Return systemd's word: `running`, or `degraded`.

        Raises:
            AssertionError: it does not come up; holds what it printed.
        """
        assert not self.on, f"{self.name} runs"
        power = self.popen(["sh", _SCRIPT, "power", str(self.dir), self.name, *self._masked], log="boot.log")
        self.pid = wait_until(lambda: self._init(power), BOOT_TIMEOUT_S, f"process 1 of {self.name}")
        self._power = power
        journal = self.path("/run/log/journal")
        wait_until(lambda: list(journal.glob("*/system.journal")), BOOT_TIMEOUT_S, f"the journal of {self.name}")
        self._follow(journal)
        wait_until(self.path("/run/systemd/private").exists, BOOT_TIMEOUT_S, f"systemd of {self.name}")
        return self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()

    def _follow(self, journal: Path) -> None:
        """Write its journal to a log for failed tests; from outside, since a poweroff waits for what is inside."""
        log = self.dir / "journal.log"
        if log not in self.logs:
            self.logs.append(log)
        with log.open("ab") as out:
            self._follower = subprocess.Popen(
                ["journalctl", f"--directory={journal}", "--follow", "--lines=all", "--output=short-monotonic"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
            )

    def _init(self, power: Process) -> int:
        """Return the process that has become systemd: the child of the unshare."""
        if not power.alive:
            raise RuntimeError(f"{self.name} did not boot: {(self.dir / 'boot.log').read_text()[-2000:]}")
        try:
            children = Path(f"/proc/{power.pid}/task/{power.pid}/children").read_text().split()
            return next((int(it) for it in children if Path(f"/proc/{it}/comm").read_text() == "systemd\n"), 0)
        except OSError:
            return 0

    def poweroff(self) -> None:
        """Stop it in an orderly way.

        Raises:
            AssertionError: it still runs after a minute; holds the jobs that hang.
        """
        assert self._power
        self.run(["systemctl", "--no-block", "poweroff"], check=False)
        try:
            wait_until(self._ended, POWEROFF_TIMEOUT_S)
        except AssertionError as exc:
            jobs = self.run(["systemctl", "list-jobs"], check=False).stdout
            raise AssertionError(f"{self.name} does not power off:\n{jobs}") from exc
        self._off()

    def _ended(self) -> bool:
        for process in self._started:
            process.thaw()  # systemd stops all processes before it kills them, and their nsenter does as they do
        return not self.on

    def _off(self) -> None:
        self.pid = self._holder
        if self._follower:
            self._follower.kill()
            self._follower.wait()
            self._follower = None

    def cut(self) -> None:
        """Take its power away: every process ends at once."""
        assert self._power
        os.kill(self.pid, signal.SIGKILL)
        self._power.wait(POWEROFF_TIMEOUT_S)
        self._off()

    def close(self) -> None:
        self._off()
        super().close()

    def reboot(self) -> str:
        """Stop it in an orderly way, and start it again; see `boot`."""
        self.poweroff()
        return self.boot()

    def systemctl(self, *args: str, timeout_s: float = 120) -> str:
        """Run systemctl inside, and return what it printed.

        Raises:
            CommandError: it failed; holds the journal's last lines too.
        """
        done = self.run(["systemctl", *args], check=False, timeout_s=timeout_s)
        if done.returncode:
            raise CommandError(["systemctl", *args], done.returncode, done.stdout, done.stderr + self.journal()[-3000:])
        return done.stdout.strip()

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, as systemd tells them."""
        said = self.systemctl("show", unit, f"--property={','.join(properties)}")
        return {key: value for key, _, value in (line.partition("=") for line in said.splitlines())}

    def journal(self, unit: str = "") -> str:
        """Return the log of this boot, of one unit or of all."""
        of_unit = ["--unit", unit] if unit else []
        return self.run(
            ["journalctl", "--no-pager", "--boot", "--output=short-monotonic", *of_unit], check=False
        ).stdout


class ServiceDockerd(Dockerd):
    """The dockerd of a booted machine's `docker.service`, with the image `bb:1`."""

    UNIT = "docker.service"

    def __init__(self, host: Booted) -> None:
        self.machine = self.host = host
        self.import_image()

    @property
    def running(self) -> bool:
        return self.machine.on and self.machine.show(self.UNIT, "ActiveState")["ActiveState"] == "active"

    def start(self) -> None:
        """Start it, and with it what its unit wants."""
        self.machine.systemctl("start", self.UNIT)

    def stop(self) -> None:
        """Stop it, and its socket, which would start it again."""
        self.machine.systemctl("stop", self.UNIT, "docker.socket")

    def kill(self) -> None:
        """Kill its process; its unit starts it again."""
        self.machine.systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", self.UNIT)


class ServiceNetplug(Netplug):
    """The daemon of this project's units on a booted machine. The constructor installs the units for the next boot.

    `settings`: lines of `/etc/netplug/netplug.toml`. `drop_in`: lines for `[Service]`, as `systemctl edit` adds them.
    """

    UNIT = "netplug.service"
    SOCKET = "netplug.socket"

    def __init__(self, host: Booted, settings: str = "", drop_in: str = "") -> None:
        self.machine = self.host = host
        self.state_dir = Path("/var/lib/netplug")
        for path in UNITS.glob("netplug.*"):
            text = path.read_text().replace("ExecStart=/usr/bin/netplug ", f"ExecStart={COMMAND} ")
            host.write(f"/etc/systemd/system/{path.name}", text)
        if drop_in:
            host.write(f"/etc/systemd/system/{self.UNIT}.d/test.conf", f"[Service]\n{drop_in}\n")
        host.write("/etc/netplug/netplug.toml", settings)
        host.enable(self.SOCKET, target="sockets.target")
        host.enable(self.UNIT)

    @property
    def running(self) -> bool:
        return self.machine.on and self.machine.show(self.UNIT, "ActiveState")["ActiveState"] == "active"

    @property
    def pid(self) -> int:
        """Its process, as seen inside; 0 if there is none."""
        return int(self.machine.show(self.UNIT, "MainPID")["MainPID"])

    def start(self) -> None:
        self.machine.systemctl("start", self.UNIT)

    def stop(self) -> None:
        self.machine.systemctl("stop", self.UNIT)

    def restart(self) -> None:
        self.machine.systemctl("restart", self.UNIT)

    def kill(self) -> None:
        """Kill its process; its unit starts it again."""
        self.machine.systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", self.UNIT)
