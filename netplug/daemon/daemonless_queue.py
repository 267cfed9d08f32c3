"""A CNI call that no daemon answers stands in line: who is first does the work, and answers those behind it.

`netplug.frontends.cni.shim` becomes this. To start a netplug (`netplug.daemon.daemonless`) takes half a second of a
processor, so of many calls at once one does it; here is imported nothing dear. The line is two files beside the
daemon's socket, locked by the kernel: whoever is at work holds the one, whoever waits has a share of the other.
"""

import fcntl
import os
import sys
import time

from netplug.frontends.cni import shim

PATIENCE_S = 110.0
"""How long a call waits in all, in line and for the state: runtimes give a plugin two minutes and more."""
FIRST_WAIT_S = 0.005
LONGEST_WAIT_S = 0.25
_MODE = 0o600


class CallQueue:
    """The line of a run directory; one that cannot be made is empty, and whoever comes is first.

    `patience_s`: how long the call that stands in it may wait, from now on.
    """

    def __init__(self, run_dir: str, patience_s: float = PATIENCE_S) -> None:
        self._deadline = time.monotonic() + patience_s
        self._socket = f"{run_dir}/{shim.SOCKET}"
        self._first = self._waiting = -1
        try:
            os.makedirs(run_dir, mode=0o755, exist_ok=True)  # noqa: PTH103 - pathlib takes as long as all else here
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._waiting = os.open(f"{run_dir}/cni.waiting", flags, _MODE)
            self._first = os.open(f"{run_dir}/cni.turn", flags, _MODE)
        except OSError:
            return

    def left_s(self) -> float:
        """Return how long the call may wait yet; negative when it has waited longer."""
        return self._deadline - time.monotonic()

    def wait(self, request: bytes) -> bytes:
        """Return the answer of whoever is at work; nothing: it is this process's turn, until it ends."""
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
        """Leave the line; the end of the process does it, too."""
        for fd in {self._first, self._waiting} - {-1}:
            os.close(fd)

    def goes_on(self) -> bool:
        """Tell whether somebody waits behind this process."""
        if self._first < 0:
            return False
        try:
            fcntl.flock(self._waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._waiting, fcntl.LOCK_UN)
        return False


class Backoff:
    """Waits for what somebody else will end: longer each time, up to a quarter of a second."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S

    def pause(self) -> None:
        """Wait once more."""
        time.sleep(self._next_s)
        self._next_s = min(self._next_s * 1.5, LONGEST_WAIT_S)


def main() -> int:
    """Answer the call of this environment."""
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
