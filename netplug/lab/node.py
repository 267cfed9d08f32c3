"""A node of a lab, a host or the switch: namespaces that exist as long as their first process, and commands inside.

A node is identified by the PID and the start time of that process, so that a later command finds it again and does not
confuse it with another process.
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
    """Return a process's start time in clock ticks since boot (proc(5)); 0 if it does not exist or is a zombie."""
    fields = _stat(Path(f"/proc/{pid}"))
    return 0 if not fields or fields[0] in "ZX" else int(fields[19])


def frozen(process: Path) -> bool:
    """Whether all threads of a process are stopped; SIGSTOP reaches running threads after a moment.

    `process`: its folder in /proc.
    """
    states = {fields[0] for thread in process.glob("task/*") if (fields := _stat(thread))}
    return states == {"T"}


def state(process: Path) -> str:
    """Return the state of a process (proc(5)); empty if it does not exist.

    Its first thread may end before the others. These keep the process's files and sockets open.

    `process`: its folder in /proc.
    """
    fields = _stat(process)
    if fields and fields[0] in {"Z", "X"} and sum(1 for _ in process.glob("task/*")) < 2:
        return ""
    return fields[0] if fields else ""


def _stat(process: Path) -> list[str]:
    """Return the fields after the name in a process's or thread's stat, the state first (proc(5)); empty if gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def until(predicate: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until a condition is true; return whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


@dataclass(frozen=True, slots=True)
class Node:
    """`folder`: its files, at the same path inside and outside. `pid`, `since`: of the first process; see `started`."""

    name: str
    folder: Path
    pid: int
    since: int

    @classmethod
    def start(cls, name: str, hostname: str, folder: Path) -> "Node":
        """Start a node with only a loopback link.

        Raises:
            NetplugError: the namespaces could not be created.
        """
        folder.mkdir(parents=True)
        script = Path(__file__).with_name("holder.py")
        unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "slave"]
        argv = [*unshare, sys.executable, "-I", "-S", str(script), hostname, str(folder), "--stay"]
        with (folder / "holder.log").open("ab") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert process.stdout  # noqa: S101 - PIPE above
        with process.stdout:
            ready = process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not ready:
            process.wait()
            raise NetplugError("unavailable", f"node {name!r} did not start", hint=_last_line(folder / "holder.log"))
        pid = int(children.read_text())
        return cls(name, folder, pid, started(pid))

    @property
    def alive(self) -> bool:
        return bool(self.since) and started(self.pid) == self.since

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    def path(self, inside: str | Path) -> Path:
        """Return the path outside of a file inside."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command inside.

        Raises:
            NetplugError: "unavailable": the node has ended, and its PID may belong to another process by now.
        """
        if not self.alive:
            raise NetplugError("unavailable", f"host {self.name!r} has ended", hint="netplug lab down")
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", "--uts", "--root", "--wd=/", "--", *argv]

    def try_run(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside and return its result."""
        return subprocess.run(
            self.inside(argv),
            check=False,
            capture_output=True,
            input=stdin,
            timeout=COMMAND_TIMEOUT_S,
            env=environment() | dict(env or {}),
        )

    def run(self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """Run a command inside and return its output.

        Raises:
            NetplugError: it failed; the message has its last line of output.
        """
        done = self.try_run(*argv, stdin=stdin, env=env)
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
            words = f"{self.name}: '{shlex.join(argv)[:200]}' failed with exit code {done.returncode}"
            raise NetplugError("unavailable", f"{words}: {said[-1] if said else 'no output'}")
        return done.stdout.decode(errors="replace").strip()

    def script(self, *lines: str) -> None:
        """Run shell commands inside, until the first failure."""
        self.run("sh", "-ec", "\n".join(lines))

    def call(self, argv: Sequence[str]) -> int:
        """Run a command inside with the caller's input and output, and return its exit code."""
        return subprocess.call(self.inside(argv), env=environment())

    def spawn(self, argv: Sequence[str], log: str) -> int:
        """Start a background process and return its PID inside. Its output goes to file `log` in the folder."""
        line = f"{shlex.join(argv)} </dev/null >>{shlex.quote(str(self.folder / log))} 2>&1 & echo $!"
        return int(self.run("setsid", "sh", "-c", line))

    def state(self, pid: int) -> str:
        """Return the state of a process inside (proc(5)): "" if it does not exist, "T" if it is frozen."""
        return state(self.path(f"/proc/{pid}")) if self.alive else ""

    def frozen(self, pid: int) -> bool:
        """Whether all threads of a process inside are stopped; see `frozen`."""
        return frozen(self.path(f"/proc/{pid}"))

    def lives(self, pid: int) -> bool:
        """Whether a process inside is running."""
        return bool(self.state(pid))

    def signal(self, pid: int, name: str) -> None:
        """Send a signal to a process inside; a process that does not exist is no error."""
        self.try_run("kill", f"-{name}", str(pid))

    def last_words(self, log: str) -> str:
        """Return the last line of a log."""
        return _last_line(self.folder / log)

    def stop(self) -> None:
        """End everything inside."""
        if self.alive:
            _end(self.pid)

    def remove(self) -> None:
        """Remove its folder and control groups; call this after `stop`."""
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
    """End all nodes with files in a folder, including those without a record."""
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
    """Return the environment without variables that lead to the machine's own daemons."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(_OWN)}
    path = ":".join((str(Path(sys.executable).parent), own.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin"))
    return own | {"PATH": path, "LC_ALL": "C.UTF-8"}


def _remove_cgroup(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        # The kernel removes ended processes from a group with some delay.
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
