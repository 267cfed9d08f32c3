"""One daemon per state directory, one listener per socket path: by file locks, which end with their process.

A PID file names a process, but does not say whether it is running; so the text in the lock file is for messages only.
All functions here block, and are meant for the start.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from netplug.daemon.folders import own_folder
from netplug.daemon.systemd import UNIT
from netplug.errors import NetplugError
from netplug.errors.redaction import without_passwords, word_without_users
from netplug.setting_values import SOCKET_PATH_BYTES

DAEMONLESS_LOCK = "turn"
"""Lock file of a command that works on the state without a daemon (`netplug.daemon.daemonless_queue`)."""
SOCKET_MODE = 0o600
_BACKLOG = 2048
"""Requests that wait: each container that starts sends a few."""
_POLL_S = 0.005
_LONGEST_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 1.0  # a unix socket answers at once, unless its queue is full: then it is in use


class Held(NetplugError):  # noqa: N818 - a state, not an error
    """Another process holds the lock or the socket."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__("unavailable", message, hint=hint)


class FileLock:
    """A lock, held until `release` or the end of the process. The file remains: unlinking it would be a race."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Release the lock; a second call has no effect."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a read-only disk
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ClaimedSocket(socket.socket):
    """A listening unix socket that knows its file."""

    path: Path
    identity: tuple[int, int, int]  # of the file


def lock_file(path: Path, what: str = "", *, hint: str = "stop it, or choose another --state-dir") -> FileLock:
    """Lock the file `path`; it stands for `what`, or for its directory. Create both for the owner only if absent.

    Raises:
        Held: another process holds it; the message names the process.
        NetplugError: the file cannot be opened, or others may change its folder.
    """
    try:
        own_folder(path.parent, 0o700)
        fd = _opened(path)
    except OSError as exc:
        raise _refused(f"lock file {path} cannot be opened", exc) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full or read-only disk; the text is for messages only
            os.ftruncate(fd, 0)
            os.pwrite(fd, _own_name().encode(errors="replace"), 0)
    except BlockingIOError as exc:
        holder = without_passwords(os.pread(fd, 400, 0).decode(errors="replace").strip())
        os.close(fd)
        raise Held(
            f"{what or f'state directory {path.parent}'} is in use by {holder or 'another process'}", hint=hint
        ) from exc
    except OSError as exc:
        os.close(fd)
        raise _refused(f"lock file {path} cannot be locked", exc) from exc
    return FileLock(path, fd)


def _opened(path: Path) -> int:
    """Open a lock file; on a read-only file system one that is there."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


@contextlib.contextmanager
def exclusive(path: Path, patience_s: float) -> Iterator[None]:
    """Wait for the lock on file `path`, and hold it within the block, which should be short.

    Raises:
        Held: it was not free within `patience_s`.
        NetplugError: the file cannot be opened.
    """
    deadline, pause_s = time.monotonic() + patience_s, _POLL_S
    while True:
        try:
            lock = lock_file(path)
            break
        except Held:
            if time.monotonic() >= deadline:
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
    with lock:
        yield


def claim_socket(path: Path, mode: int) -> ClaimedSocket:
    """Listen on a unix stream socket at `path`, and replace a dead one; its file never has more rights than `mode`.

    It listens at once, so that another claim finds it in use; clients wait in its queue until it is served.

    Raises:
        Held: a running process listens there.
        NetplugError: the path is too long or not a socket, or its folder is not writable, or others may change it.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise NetplugError(
            "invalid",
            f"socket path {path} is {len(os.fsencode(path))} bytes long, the limit is {SOCKET_PATH_BYTES}",
            hint="choose a shorter directory",
        )
    try:
        own_folder(path.parent, 0o755)
        with _locked(path):
            _remove_dead(path)
            return _listen(path, mode)
    except OSError as exc:
        raise _refused(f"socket {path} cannot be created", exc) from exc


def release_socket(claimed: ClaimedSocket) -> None:
    """Close the socket, and unlink its file unless another process has replaced it."""
    try:
        with contextlib.suppress(FileNotFoundError), _locked(claimed.path):
            if _identity(claimed.path) == claimed.identity:
                claimed.path.unlink()
    except OSError as exc:
        raise _refused(f"socket {claimed.path} cannot be removed", exc) from exc
    finally:
        claimed.close()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Serialize the processes that probe, unlink and bind one socket.

    The lock is a file that only root can open, and that is gone afterwards. The folder itself is no lock: whoever may
    list it may lock it, for ever (flock(2)).
    """
    lock = path.with_name(f".{path.name}.lock")
    while not (fd := _taken(lock)):
        pass
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def _taken(lock: Path) -> int:
    """Lock a file, and return its descriptor; 0 if its last holder has just removed it."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(fd), lock.lstat()):
            return fd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return 0


def _remove_dead(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise NetplugError("invalid", f"{path} exists and is not a socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, TimeoutError) as exc:  # its queue is full
            raise _in_use(path, "another process, which is busy") from exc
        except OSError as exc:
            if exc.errno != errno.EPROTOTYPE:
                raise
            raise _in_use(path, "another process, as a socket of another type") from exc
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", raw)[0]
    if pid == 1 and _is_systemd(pid):
        hint = f"systemctl start netplug; or first systemctl stop {UNIT} netplug.service"
        raise Held(f"socket {path} is held by systemd for its service", hint=hint)
    raise _in_use(path, f"process {pid}" if pid else "a process of another pid namespace")


def _listen(path: Path, mode: int) -> ClaimedSocket:
    claimed = ClaimedSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o777 & ~mode)  # the umask is the process's: at the start no other thread creates files
        try:
            claimed.bind(os.fspath(path))
        finally:
            os.umask(mask)
        claimed.path, claimed.identity = path, _identity(path)
        claimed.listen(_BACKLOG)
        claimed.setblocking(False)
    except BaseException:
        claimed.close()
        raise
    return claimed


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns  # ext4 reuses the inode of a deleted file


def command_of(pid: int) -> str:
    """Return the command line of a process for messages, without passwords."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "unknown command"
    return _command([word.decode(errors="replace") for word in words])


def _own_name() -> str:
    return f"process {os.getpid()} ({_command([Path(sys.argv[0]).name, *sys.argv[1:]])})"


def _command(words: Sequence[str]) -> str:
    return without_passwords(shlex.join(map(word_without_users, words)))[:300]


def _is_systemd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") == "systemd\n"
    except OSError:
        return False


def _in_use(path: Path, holder: str) -> Held:
    return Held(f"socket {path} is in use by {holder}", hint="stop it, or choose another path")


def _refused(what: str, exc: OSError) -> NetplugError:
    reason = (exc.strerror or str(exc)).lower()
    if isinstance(exc, FileExistsError):  # of mkdir
        reason = f"{exc.filename} is not a directory"
    return NetplugError("unavailable", f"{what}: {reason}")
