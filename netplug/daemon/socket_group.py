"""The group whose members may use the API: the setting `socket_group`.

It gets the API's socket alone. Those of Docker's plugin and of CNI stay root's: nobody else has business there.
"""

import os
import stat
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

GROUP_MODE = 0o660
_CLOSE = "systemctl restart netplug.socket netplug closes it, unless SocketMode= of netplug.socket says otherwise"
_HINT = "systemctl edit netplug: [Service] SupplementaryGroups={group}; then systemctl restart netplug"


def let_group_in(path: Path, group: int | None) -> None:
    """Give a group the right to connect to a socket. `group`: its id; None says in the log if one has that right.

    The daemon goes on if it may not: without CAP_CHOWN, a file gets only a group of the process itself (chown(2)).
    """
    try:
        before = path.lstat()
        if group is None:
            _warn_if_open(path, before)
            return
        if before.st_gid != group:
            path.chmod(0o600)  # what another group may have had
            os.chown(path, -1, group, follow_symlinks=False)
        path.chmod(GROUP_MODE)
    except OSError as exc:
        log.error("socket.group_refused", path=str(path), reason=exc.strerror, hint=_HINT.format(group=group))  # noqa: TRY400


def _warn_if_open(path: Path, status: os.stat_result) -> None:
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        log.warning("socket.open", path=str(path), mode=mode, group=status.st_gid, hint=_CLOSE)
