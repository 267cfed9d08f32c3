"""A simulated host, or the switch: namespaces that live as long as their first process, and commands inside.

All that is kept of it is the number of that process and when it started, so that a later command finds it again and
never takes another process for it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from netplug.errors import NetplugError

START_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 120.0
POLL_S = 0.02
_OWN = ("DOCKER_", "NETPLUG_", "CONTAINER", "CNI_")


def started(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5)); 0: there is none, or it is a zombie."""
    fields = _stat(Path(f"/proc/{pid}"))
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def frozen(process: Path) -> bool:
    """Whether all threads of a process are stopped; SIGSTOP takes a moment to reach those that run.

    `process`: its folder in /proc.
    """
    states = {fields[0] for thread in process.glob("task/*") if (fields := _stat(thread))}
    return states == {"T"}


def state(process: Path) -> str:
    """Return the state of a process (proc(5)); nothing when it is gone.

    Its first thread may have ended before the others, which hold its files and sockets until they have too.

    `process`: its folder in /proc.
    """
    fields = _stat(process)
    if fields and fields[0] in {"Z", "X"} and sum(1 for _ in process.glob("task/*")) < 2:
        return ""
    return fields[0] if fields else ""


def _stat(process: Path) -> list[str]:
    """Return what a process or thread has behind its name, the state first (proc(5)); nothing when it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def until(predicate: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until something is true; return whether it became so in time."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


@dataclass(frozen=True, slots=True)
class Node:
    """`folder`: its files, at the same path inside and outside. `pid`, `since`: of its first process; see `started`."""

    name: str
    folder: Path
    pid: int
    since: int

    @classmethod
    def start(cls, name: str, hostname: str, folder: Path) -> "Node":
        """Start it, with nothing inside but a loopback link.

        Raises:
            NetplugError: the kernel refused the namespaces.
        """
        folder.mkdir(parents=True)
        script = Path(__file__).with_name("holder.py")
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "slave"]
        argv = [*unshare, sys.executable, "-I", "-S", str(script), hostname, str(folder), "--stay"]
        with (folder / "holder.log").open("ab") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert process.stdout  # noqa: S101 - asked for above
        with process.stdout:
            ready = process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not ready:
            process.wait()
            raise NetplugError("unavailable", f"place {name!r} did not start", hint=_last_line(folder / "holder.log"))
        pid = int(children.read_text())
        return cls(name, folder, pid, started(pid))

    @property
    def alive(self) -> bool:
        return bool(self.since) and started(self.pid) == self.since

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    def path(self, inside: str | Path) -> Path:
        """Return where a file of the place is found from outside."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs another one inside.

        Raises:
            NetplugError: "unavailable": the place has ended, and its number may be another process's by now.
        """
        if not self.alive:
            raise NetplugError("unavailable", f"host {self.name!r} has ended", hint="netplug lab down")
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", "--uts", "--root", "--wd=/", "--", *argv]

    def try_run(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside and return how it ended."""
        return subprocess.run(
            self.inside(argv),
            check=False,
            capture_output=True,
            input=stdin,
            timeout=COMMAND_TIMEOUT_S,
            env=environment() | dict(env or {}),
        )

    def run(self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """Run a command inside and return what it printed.

        Raises:
            NetplugError: it failed; with its last words.
        """
        done = self.try_run(*argv, stdin=stdin, env=env)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            words = f"{self.name}: '{shlex.join(argv)[:200]}' failed with {done.returncode}"
            raise NetplugError("unavailable", f"{words}: {said[-1] if said else 'without a word'}")
        return done.stdout.decode(errors="replace").strip()

    def script(self, *lines: str) -> None:
        """Run shell commands inside, up to the first that fails."""
        self.run("sh", "-ec", "\n".join(lines))

    def call(self, argv: Sequence[str]) -> int:
        """Run a command inside with the caller's input and output, and return its exit code."""
        return subprocess.call(self.inside(argv), env=environment())

    def spawn(self, argv: Sequence[str], log: str) -> int:
        """Start a process that stays and return its number inside. Its output goes to file `log` of the folder."""
        line = f"{shlex.join(argv)} </dev/null >>{shlex.quote(str(self.folder / log))} 2>&1 & echo $!"
        return int(self.run("setsid", "sh", "-c", line))

    def state(self, pid: int) -> str:
        """Return the state of a process inside (proc(5)): "" when it is gone, "T" when it is frozen."""
        return state(self.path(f"/proc/{pid}")) if self.alive else ""

    def frozen(self, pid: int) -> bool:
        """Whether all threads of a process inside are stopped; see `frozen`."""
        return frozen(self.path(f"/proc/{pid}"))

    def lives(self, pid: int) -> bool:
        """Whether a process inside still lives."""
        return bool(self.state(pid))

    def signal(self, pid: int, name: str) -> None:
        """Send a signal to a process inside; nothing happens when it is gone."""
        self.try_run("kill", f"-{name}", str(pid))

    def last_words(self, log: str) -> str:
        """Return the last line of a log."""
        return _last_line(self.folder / log)

    def stop(self) -> None:
        """End everything inside."""
        if self.alive:
            _end(self.pid)

    def remove(self) -> None:
        """Remove its folder and control groups; to be called once it has stopped."""
        for pattern in (f"*/{self.group}", self.group):
            for folder in Path("/sys/fs/cgroup").glob(pattern):
                _remove_cgroup(folder)
        if self.folder.exists():
            rmtree(self.folder)

    @property
    def group(self) -> str:
        """The control group of its containers."""
        return f"netplug-lab-{self.folder.parent.name}-{self.name}"


def end_all(folder: Path) -> None:
    """End all places whose files are in a folder, also those that nobody remembers."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"--stay" in words and any(os.fsencode(folder) + b"/" in word for word in words):
                _end(int(path.parent.name))


def _end(pid: int) -> None:
    since = started(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: started(pid) != since or not since, START_TIMEOUT_S)


def environment() -> dict[str, str]:
    """Return the environment less what leads to daemons of the machine."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(_OWN)}
    path = ":".join((str(Path(sys.executable).parent), own.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin"))
    return own | {"PATH": path, "LC_ALL": "C.UTF-8"}


def _remove_cgroup(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        # Emptied of its last processes some moments after they ended.
        until(lambda parent=parent: _removed(Path(parent)), START_TIMEOUT_S)  # type: ignore[misc]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"{log}: {lines[-1]}" if lines else ""
