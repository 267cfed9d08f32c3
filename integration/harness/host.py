"""A simulated host: network, mount, PID and UTS namespaces of its own, and a folder for its state.

Inside, `/run` is private, so every daemon uses its usual paths (`/run/docker.sock`, `/run/docker/plugins`,
`/run/netplug`, `/run/netns`) and hosts do not see each other. Nothing has a name outside: no entry in `ip
netns`, no mount, no pid file. From outside, `Host.path` leads to its files and `Host.netns` to its network.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import netplug.lab
from netplug.lab.node import frozen

from .wait import wait_until

START_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 60
NAME_PREFIX = "npit"
"""Hosts, their folders and control groups are called `npit<pid of the test run>-<name>`."""

CGROUPS = Path("/sys/fs/cgroup")


class CommandError(AssertionError):
    """A command that had to succeed did not."""

    def __init__(self, argv: Sequence[str], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit {code}\n{stdout}{stderr}".rstrip())
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


class Process:
    """A process inside a host. `pid` is its own, seen from outside, not that of its `nsenter`."""

    def __init__(self, starter: subprocess.Popen[bytes], argv: Sequence[str]) -> None:
        self._starter = starter
        self.argv = tuple(argv)
        self.pid: int = wait_until(self._find, START_TIMEOUT_S, f"start of {argv[0]}")

    def _find(self) -> int:
        starter = self._starter.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{starter}/task/{starter}/children").read_text().split()
            if children:
                return int(children[0])
        # It may already have come and gone.
        return starter if self._starter.poll() is not None else 0

    @property
    def alive(self) -> bool:
        return self._starter.poll() is None

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        if number is signal.SIGCONT:
            self.thaw()

    def freeze(self) -> None:
        """Stop it as SIGSTOP does, and return when all its threads have stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: frozen(Path(f"/proc/{self.pid}")), START_TIMEOUT_S, f"{self.argv[0]} stops")

    def thaw(self) -> None:
        """Let its nsenter go on, which stops when what it started does, and stays so even after its end."""
        self._starter.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code (negative: the signal).

        Raises:
            AssertionError: it still runs.
        """
        try:
            return self._starter.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.argv[0]} (pid {self.pid}) still runs after {timeout_s:g} s") from None

    def stop(self, timeout_s: float = 15) -> int:
        """Send SIGTERM and wait."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def interrupt(self, timeout_s: float = 15) -> int:
        """Send SIGINT and wait."""
        self.signal(signal.SIGINT)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.signal(signal.SIGKILL)
        self.wait(START_TIMEOUT_S)


class Host:
    """One simulated host, from construction to `close()`; also a context manager."""

    _numbers = count(1)
    described = "in namespaces of their own"
    live: "list[Host]" = []  # noqa: RUF012 - the registry of this run, for the leak check and the failure reports

    def __init__(self, name: str = "host") -> None:
        self.name = f"{NAME_PREFIX}{os.getpid()}-{name}{next(self._numbers)}"
        self.dir = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.logs: list[Path] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "NETPLUG_"))}
        self.env |= {"DOCKER_CONFIG": str(self.dir / "docker-config"), "LC_ALL": "C.UTF-8"}
        self._links = count()
        self._started: list[Process] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        Host.live.append(self)

    def _start(self) -> None:
        unshare = (
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--uts",
            "--fork",
            "--kill-child",
            "--propagation",
            "slave",
        )
        script = str(Path(netplug.lab.__file__).with_name("holder.py"))
        self._unshare = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", script, self.name, str(self.dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._unshare.stdout
        if self._unshare.stdout.readline() != b"ready\n":
            raise AssertionError(f"host {self.name} did not start: unshare ended with {self._unshare.wait()}")
        unshare_pid = self._unshare.pid
        self.pid = int(Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text())
        """Process 1 of the host, seen from outside."""

    @property
    def netns(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    def path(self, inside: str | Path) -> Path:
        """Return where a file of the host is found from outside."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` inside, for `subprocess`; `run` and `popen` do that."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid", "--uts", "--root", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = COMMAND_TIMEOUT_S,
        stdin: str = "",
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and wait for it.

        Raises:
            CommandError: it failed and `check` is true.
        """
        done = subprocess.run(
            self.inside(argv),
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout_s,
            env=self.env | (env or {}),
        )
        if check and done.returncode:
            raise CommandError(argv, done.returncode, done.stdout, done.stderr)
        return done

    def output(self, *argv: str) -> str:
        """Run a command inside and return what it printed, without blanks around."""
        return self.run(argv).stdout.strip()

    def popen(
        self,
        argv: Sequence[str],
        *,
        log: str,
        env: dict[str, str] | None = None,
        stdin: IO[bytes] | None = None,
    ) -> Process:
        """Start a process inside. Its output goes to `<host's folder>/<log>`, shown when a test fails."""
        path = self.dir / log
        if path not in self.logs:
            self.logs.append(path)
        with path.open("ab") as out:
            starter = subprocess.Popen(
                self.inside(argv),
                stdin=stdin or subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.env | (env or {}),
                start_new_session=True,
            )
        process = Process(starter, argv)
        self._started.append(process)
        return process

    def next_link(self) -> str:
        return f"eth{next(self._links)}"

    def close(self) -> None:
        """End everything inside, and remove the folder and the control groups."""
        with contextlib.suppress(ValueError):
            Host.live.remove(self)
        for process in self._started:
            process.signal(signal.SIGKILL)
            process.thaw()  # the host does not end before it is waited for
        starter = getattr(self, "_unshare", None)
        if starter is not None:
            starter.stdin.close()
            try:
                starter.wait(START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                starter.kill()
                starter.wait(START_TIMEOUT_S)
            starter.stdout.close()
        for process in self._started:
            process.wait(START_TIMEOUT_S)
        remove_cgroups(self.name)
        shutil.rmtree(self.dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def cgroup_folders(name: str) -> list[Path]:
    """Return the control groups of a host, in cgroup v1 (one a controller) or v2."""
    return [path for pattern in (name, f"*/{name}") for path in CGROUPS.glob(pattern) if path.is_dir()]


def remove_cgroups(name: str) -> None:
    """Remove the control groups that engines of a host made (`--cgroup-parent`), once they are empty."""

    def removed() -> bool:
        for top in cgroup_folders(name):
            for folder in sorted((top, *(p for p in top.rglob("*") if p.is_dir())), reverse=True):
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()
        return not cgroup_folders(name)

    wait_until(removed, START_TIMEOUT_S, f"removal of the control groups of {name}", ignoring=(OSError,))
