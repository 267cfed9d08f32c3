"""The files that `netplug install-service` writes, and the note of what it wrote, by which `netplug uninstall` goes.

A package of the distribution brings the same files at its own places. Both have them from `netplug/host_files`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import netplug
from netplug.config import API_SOCKET, CNI_SOCKET, Settings
from netplug.errors import NetplugError

SOURCE = Path(netplug.__file__).with_name("host_files")
UNITS = "etc/systemd/system"
PACKAGED = ("usr/lib/systemd/system", "lib/systemd/system")
"""Where a package of the distribution has its units."""
SETTINGS = "etc/netplug/netplug.toml"
NOTE = "service.json"
"""In the state directory."""
_NETWORK_MANAGER, _NETWORKD = "etc/NetworkManager", "etc/systemd/network"
_CNI = ("opt/cni/bin", "usr/lib/cni", "usr/libexec/cni")
"""Folders of CNI plugins: the one that runtimes look into by default, and those of distributions."""
_NETAVARK = "usr/local/lib/netavark"
"""One of podman's folders for plugins of netavark (containers.conf(5), `netavark_plugin_dirs`)."""
_COMMAND = "ExecStart=/usr/bin/netplug "
_PLUGIN_SOCKET, _RUN_DIR = "/run/docker/plugins/pynet.sock", "/run/netplug"
"""As the units have them."""


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file. `kept`: it is the user's once it is there. `replaced`: whatever is there."""

    path: Path
    content: bytes
    mode: int = 0o644
    kept: bool = False
    replaced: bool = False


def wanted(
    root: Path, command: Path, executable: Callable[[], bytes], settings: Settings, *, units: bool
) -> Iterator[HostFile]:
    """Yield the files for a host.

    Args:
        root: where its files are.
        command: the path of `netplug`.
        executable: returns the executable for CNI and netavark.
        settings: of the daemon: its sockets, and the name of the driver.
        units: whether it has systemd.
    """
    if units:
        for path in sorted((SOURCE / "systemd").iterdir()):
            yield HostFile(root / UNITS / path.name, _unit(path.read_text(), command, settings).encode())
        yield from _copies(SOURCE / "networkd", root / _NETWORKD)
    if (root / _NETWORK_MANAGER).is_dir():
        yield from _copies(SOURCE / "networkmanager", root / _NETWORK_MANAGER / "conf.d")
    example = SOURCE / Path(SETTINGS).name
    if example.exists():
        # It may come to have etcd's password.
        yield HostFile(root / SETTINGS, example.read_bytes(), 0o640, kept=True)
    folders = [root / it for it in _CNI if (root / it).is_dir()] or [root / _CNI[0]]
    if shutil.which("podman"):
        folders.append(root / _NETAVARK)
    for folder in folders:
        yield HostFile(folder / settings.driver_name, executable(), 0o755, replaced=True)


def _copies(source: Path, to: Path) -> Iterator[HostFile]:
    for path in sorted(source.iterdir()):
        yield HostFile(to / path.name, path.read_bytes())


def _unit(text: str, command: Path, settings: Settings) -> str:
    """Return a unit with the paths of this installation and of its settings."""
    text = text.replace(_COMMAND, f"ExecStart={_quoted(command)} ")
    sockets = {
        _PLUGIN_SOCKET: settings.plugin_socket,
        f"{_RUN_DIR}/{API_SOCKET}": settings.api_socket,
        f"{_RUN_DIR}/{CNI_SOCKET}": settings.cni_socket,
    }
    for usual, path in sockets.items():
        text = text.replace(f"ListenStream={usual}\n", f"ListenStream={str(path).replace('%', '%%')}\n")
    return text


def _quoted(path: Path) -> str:
    """Return a path as systemd reads it (systemd.service(5), COMMAND LINES)."""
    text = str(path).replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if " " in text else text


@dataclass(slots=True)
class Note:
    """What was written: digests by path, and the folders that were made for it."""

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Note":
        """Read it; an empty one if there is none.

        Raises:
            NetplugError: it cannot be read.
        """
        try:
            found = json.loads(path.read_text())
            return cls(dict(found["files"]), list(found["folders"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise NetplugError("internal", f"{path}, which says what was installed, cannot be read: {exc}") from exc

    def write(self, path: Path) -> None:
        """Write it."""
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
        content: Mapping[str, object] = {"files": self.files, "folders": self.folders}
        replace(HostFile(path, json.dumps(content, indent=1).encode(), 0o600))

    def is_ours(self, path: Path) -> bool:
        """Return whether a file is there as it was written."""
        try:
            return self.files.get(str(path)) == digest(path.read_bytes())
        except OSError:
            return False


def digest(content: bytes) -> str:
    """Return what identifies a file's content."""
    return hashlib.sha256(content).hexdigest()


def replace(file: HostFile) -> None:
    """Write a file as a whole: a reader gets the old content or the new one.

    Raises:
        OSError: it cannot be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{file.path.name}-", dir=file.path.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(file.content)
            os.fchmod(out.fileno(), file.mode)
        Path(name).replace(file.path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove(note: Path) -> tuple[list[Path], list[Path]]:
    """Remove what was written and has not changed since, and the folders that are empty then.

    Returns:
        What was removed, and what was kept, since it has changed.

    Raises:
        NetplugError: the note cannot be read, or a file cannot be removed.
    """
    written = Note.read(note)
    removed: list[Path] = []
    kept: list[Path] = []
    for path in map(Path, written.files):
        if written.is_ours(path):
            try:
                path.unlink()
            except OSError as exc:
                words = f"{path} cannot be removed: {(exc.strerror or str(exc)).lower()}"
                raise NetplugError("unavailable", words) from exc
            removed.append(path)
        elif path.exists():
            kept.append(path)
    for folder in map(Path, reversed(written.folders)):
        remove_empty(folder)
    note.unlink(missing_ok=True)
    return removed, kept


def remove_empty(folder: Path) -> None:
    """Remove a folder that has nothing in it."""
    with suppress(OSError):
        folder.rmdir()
