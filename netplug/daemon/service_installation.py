"""`netplug install-service`: what a package of a distribution does, for a netplug that pip or pipx installed.

It can be repeated: what is there as it shall be stays, and a daemon of another version is restarted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netplug.daemon.host_files import PACKAGED, HostFile, Note, digest, replace
from netplug.errors import NetplugError
from netplug.kernel.host.services import Services

SERVICE, SOCKET = "netplug.service", "netplug.socket"
_ROOT = Path("/")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServiceInstallation:
    """One run. `files`: what is wanted; `note`: path of the note; `say`: is told each thing that is done.

    `dry_run`: all is told, nothing is done.
    """

    files: tuple[HostFile, ...]
    note: Path
    services: Services
    say: Say
    root: Path = _ROOT
    dry_run: bool = False

    def refuse(self, daemon: int) -> None:
        """Refuse a host that has the service otherwise. `daemon`: the process that answers; 0 if none does.

        Raises:
            NetplugError: "exists".
        """
        for folder in PACKAGED:
            unit = self.root / folder / SERVICE
            if unit.exists():
                words = f"a package of this system brings the service already ({unit})"
                hint = "systemctl enable --now netplug.socket netplug; or remove the package first"
                raise NetplugError("exists", words, hint=hint)
        written = Note.read(self.note)
        for file in self.files:
            if not self._may_write(file, written):
                known = str(file.path) in written.files
                words = "was changed since netplug wrote it" if known else "exists, and netplug did not write it"
                hint = "move it away; systemctl edit keeps changes of a unit apart"
                raise NetplugError("exists", f"{file.path} {words}", hint=hint)
        if daemon and daemon != self.services.main_pid(SERVICE):
            words = f"a daemon runs that is no service (process {daemon})"
            raise NetplugError("exists", words, hint=f"stop it first: kill {daemon}; containers stay connected")

    def _may_write(self, file: HostFile, written: Note) -> bool:
        if file.kept or file.replaced or not file.path.exists():
            return True
        return file.path.read_bytes() == file.content or written.is_ours(file.path)

    def write(self) -> bool:
        """Write the files, and return whether any has changed.

        Raises:
            NetplugError: one cannot be written. What was written is noted.
        """
        written = Note.read(self.note)
        changed = False
        for file in self.files:
            try:
                changed |= self._write(file, written)
            except OSError as exc:
                words = f"{file.path} cannot be written: {(exc.strerror or str(exc)).lower()}"
                raise NetplugError("unavailable", words) from exc
        return changed

    def _write(self, file: HostFile, written: Note) -> bool:
        if file.path.exists() and (file.kept or file.path.read_bytes() == file.content):
            self.say(f"keep {file.path}" if file.kept else f"unchanged {file.path}")
            if not file.kept and str(file.path) not in written.files and not self.dry_run:
                self._note(file, written)
            return False
        self.say(f"write {file.path}")
        if not self.dry_run:
            for folder in [it for it in reversed(file.path.parents) if not it.exists()]:
                folder.mkdir(mode=0o755)
                written.folders.append(str(folder))
            self._note(file, written)
            replace(file)
        return True

    def _note(self, file: HostFile, written: Note) -> None:
        """Note a file before it is written, so that none is left that nobody knows."""
        written.files[str(file.path)] = digest(file.content)
        written.write(self.note)

    def start(self, *, changed: bool, outdated: bool) -> None:
        """Have the service started, now and at each boot.

        Args:
            changed: Files have changed.
            outdated: The running daemon is of another version.

        Raises:
            NetplugError: systemd refuses, or the service does not start.
        """
        services = self.services
        if services.systemd_runs and changed:
            self._systemctl("daemon-reload")
        if services.has_systemd:
            self._systemctl("enable", SOCKET, SERVICE)
        if services.systemd_runs:
            runs = services.active(SERVICE)
            self._systemctl("start", SOCKET, SERVICE)
            if runs and (changed or outdated):
                self._systemctl("restart", SERVICE)
        for command in services.readers() if changed else ():
            self.say(f"run {' '.join(command)}")
            if not self.dry_run and (failed := services.call(*command)):
                self.say(f"failed: {failed}")

    def _systemctl(self, *arguments: str) -> None:
        self.say(f"run systemctl {' '.join(arguments)}")
        if not self.dry_run:
            self.services.systemctl(*arguments)
