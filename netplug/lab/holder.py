"""The first process of a simulated host: prepares its mounts, then reaps orphans until its stdin closes.

It is process 1 of the host's PID namespace. When it ends for any reason, the kernel ends every process of the host;
with the last one it removes the network and mount namespaces. So a host is removed even if its test run was killed (the
pipe closes then).

Run it as `python -I -S holder.py HOSTNAME STATE_DIR` under `unshare`; with `--stay` at the end it runs until it is
killed.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path


def main(name: str, state: Path, *, stay: bool = False) -> None:
    resolv = Path("/etc/resolv.conf")
    (state / "resolv.conf").write_bytes(resolv.read_bytes() if resolv.exists() else b"")
    resolv_target = resolv.resolve()
    socket.sethostname(name)
    prepare_mounts(state)
    if resolv_target.is_relative_to("/run"):
        resolv_target.parent.mkdir(parents=True, exist_ok=True)
        resolv_target.touch()
    if resolv_target.exists():
        run("mount", "--bind", str(state / "resolv.conf"), str(resolv_target))
    run("ip", "link", "set", "lo", "up")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if stay:
        os.close(1)
    reap_until_stdin_closes(watched=not stay)


def prepare_mounts(state: Path) -> None:
    """Give the host a /proc of its PID namespace, a /sys of its network namespace, and an empty /run.

    The control groups are mounted in the new /sys too, since engines need them (`ip netns exec` omits that).
    """
    cgroups = state / "cgroup"
    cgroups.mkdir()
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "--rbind", "/sys/fs/cgroup", str(cgroups))
    run("mount", "-t", "sysfs", "sysfs", "/sys")
    run("mount", "--rbind", str(cgroups), "/sys/fs/cgroup")
    run("umount", "-R", str(cgroups))
    run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    for folder in ("/run/docker/plugins", "/run/netplug", "/run/netns", "/run/lock"):
        Path(folder).mkdir(parents=True)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def reap_until_stdin_closes(*, watched: bool) -> None:
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        ready, _, _ = select.select([wake_read, *([0] if watched else [])], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if wake_read in ready:
            os.read(wake_read, 4096)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), stay="--stay" in sys.argv[3:])
