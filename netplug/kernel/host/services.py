"""The service managers of this host, by their commands: systemd, and those that have to read new files."""

import os
import shutil
import subprocess
from pathlib import Path

from netplug.errors import NetplugError

_ROOT = Path("/")
_RUNNING = "run/systemd/system"
"""Exists where systemd is process 1 (sd_booted(3))."""
_DEADLINE_S = 120
"""A start of the service may take so long: it compares the records with the kernel."""
_READERS = (
    ("run/NetworkManager", ("nmcli", "general", "reload", "conf")),
    ("run/systemd/netif", ("networkctl", "reload")),
)
"""What exists where a program runs, and what makes it read its files again."""


class Services:
    """The service managers. `root`: where the files of the host are."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root

    @property
    def systemd_runs(self) -> bool:
        """Whether systemd manages the services."""
        return (self._root / _RUNNING).is_dir()

    @property
    def has_systemd(self) -> bool:
        """Whether systemd is installed; it may not run, as in an image that is being built."""
        return self.systemd_runs or shutil.which("systemctl") is not None

    def systemctl(self, *arguments: str) -> None:
        """Have systemd do something (systemctl(1)).

        Raises:
            NetplugError: "unavailable", it failed; holds its words.
        """
        command = f"systemctl {' '.join(arguments)}"
        code, said = _call("systemctl", *arguments)
        if code:
            raise NetplugError("unavailable", f"{command!r} failed: {said}", hint="journalctl -u netplug says why")

    def active(self, unit: str) -> bool:
        """Return whether a unit is active, or about to be."""
        return self.systemd_runs and _call("systemctl", "is-active", unit)[1] in {"active", "activating", "reloading"}

    def main_pid(self, unit: str) -> int:
        """Return the process of a service; 0 if it has none."""
        said = _call("systemctl", "show", unit, "--property=MainPID", "--value")[1] if self.systemd_runs else ""
        return int(said) if said.isdigit() else 0

    def readers(self) -> list[tuple[str, ...]]:
        """Return the commands that make running network managers read their files again."""
        return [line for there, line in _READERS if (self._root / there).is_dir() and shutil.which(line[0])]

    def call(self, *command: str) -> str:
        """Call a program, and return why it failed; empty if it did not."""
        code, said = _call(*command)
        return said or f"exit code {code}" if code else ""


def end(pid: int) -> None:
    """Ask a process to end (SIGTERM)."""
    os.kill(pid, 15)


def _call(*command: str) -> tuple[int, str]:
    """Return the exit code, and in one line what the program said."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_DEADLINE_S, stdin=subprocess.DEVNULL
        )
    except OSError as exc:
        return 127, str(exc.strerror or exc).lower()
    except subprocess.TimeoutExpired:
        return 124, f"it did not end in {_DEADLINE_S} s"
    return done.returncode, " ".join((done.stdout + done.stderr).split())
