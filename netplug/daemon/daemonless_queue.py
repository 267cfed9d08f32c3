"""The queue of CNI calls without a daemon: the first process does the work, and answers the calls behind it.

`netplug.frontends.cni.shim` starts this module. Starting the engine (`netplug.daemon.daemonless`) takes half a second
of processor time, so only one of many simultaneous calls does it; this module imports nothing expensive. The queue is
two files beside the daemon's socket with file locks: the working process holds an exclusive lock on the one, waiting
processes hold shared locks on the other.
"""

import fcntl
import os
import sys
import time

from netplug.frontends.cni import shim

PATIENCE_S = 110.0
"""Longest wait of a call, for the queue and the state together: runtimes allow a plugin two minutes or more."""
FIRST_WAIT_S = 0.005
LONGEST_WAIT_S = 0.25
_MODE = 0o600


class CallQueue:
    """The queue of a run directory. If its files cannot be created, it counts as empty, and each call is the first.

    `patience_s`: how long this call may wait, from now on.
    """

    def __init__(self, run_dir: str, patience_s: float = PATIENCE_S) -> None:
        self._deadline = time.monotonic() + patience_s
        self._socket = f"{run_dir}/{shim.SOCKET}"
        self._first = self._waiting = -1
        try:
            os.makedirs(run_dir, mode=0o755, exist_ok=True)  # noqa: PTH103 - pathlib takes as long to import as all else here
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._waiting = os.open(f"{run_dir}/cni.waiting", flags, _MODE)
            self._first = os.open(f"{run_dir}/cni.turn", flags, _MODE)
        except OSError:
            return

    def left_s(self) -> float:
        """Return the remaining time for which the call may wait; negative if it is over."""
        return self._deadline - time.monotonic()

    def wait(self, request: bytes) -> bytes:
        """Return the answer of the working process; empty: from now on this process does the work, until it ends."""
        if self._first < 0:
            return b""
        fcntl.flock(self._waiting, fcntl.LOCK_SH)
        pauses = Backoff()
        while self.left_s() > 0:
            try:
                fcntl.flock(self._first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if answer := shim.ask(self._socket, request):
                    return answer
            pauses.pause()
        fcntl.flock(self._waiting, fcntl.LOCK_UN)
        return b""

    def close(self) -> None:
        """Leave the queue; the end of the process has the same effect."""
        for fd in {self._first, self._waiting} - {-1}:
            os.close(fd)

    def goes_on(self) -> bool:
        """Tell whether another call is waiting."""
        if self._first < 0:
            return False
        try:
            fcntl.flock(self._waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._waiting, fcntl.LOCK_UN)
        return False


class Backoff:
    """Waits between attempts: longer each time, up to a quarter of a second."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S

    def pause(self) -> None:
        """Wait until the next attempt."""
        time.sleep(self._next_s)
        self._next_s = min(self._next_s * 1.5, LONGEST_WAIT_S)


def main() -> int:
    """Answer the call in this process's environment."""
    name, *arguments = sys.argv[1:]
    env = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    if not env.get("CNI_COMMAND") and arguments:
        env = {"NETAVARK_COMMAND": arguments[0], "NETAVARK_NETNS": arguments[-1]}
    words = [name, *(f"{key}={value}" for key, value in env.items())]
    given = sys.stdin.buffer.read()
    request = "\0".join(words).encode(errors="surrogateescape") + b"\0\0" + given
    line = CallQueue(os.environ.get(shim.LINE, "") or os.environ.get("NETPLUG_RUN_DIR", "") or shim.RUN_DIR)
    if said := line.wait(request):
        return shim.say(said)
    from netplug.daemon import daemonless  # noqa: PLC0415 - see above

    return shim.say(daemonless.answer(request, line).render())


if __name__ == "__main__":
    sys.exit(main())
