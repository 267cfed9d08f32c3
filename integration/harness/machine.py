"""The machine itself in the place of a simulated host, for the demo where an engine runs already.

It has the machine's own network, so only `make demo` uses it, and only beside an engine that is there.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .dockerd import SOCKET
from .host import Host, Process

STOP_TIMEOUT_S = 15


def engine_runs() -> bool:
    """Tell whether an engine answers at its usual place."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2)
        try:
            sock.connect(SOCKET)
            sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: d\r\n\r\n")
            return b"200 OK" in sock.recv(4096)
        except OSError:
            return False


class Machine(Host):
    """As a `Host`; its processes are stopped and its folder removed at the end, nothing else."""

    described = "beside the engine that runs on this machine"

    def __init__(self) -> None:
        self.name = socket.gethostname()
        self.dir = Path(tempfile.mkdtemp(prefix="netplug-demo-"))
        self.logs: list[Path] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "NETPLUG_"))}
        self.env |= {"LC_ALL": "C.UTF-8"}
        self.pid = 1
        self._started: list[Process] = []

    def inside(self, argv: Sequence[str]) -> list[str]:
        # A process of its own under a waiting shell: `Process` looks for the child of what it started.
        return ["sh", "-c", '"$@"; exit $?', "sh", *argv]

    def path(self, inside: str | Path) -> Path:
        return Path(inside)

    def close(self) -> None:
        for process in self._started:
            process.stop(STOP_TIMEOUT_S)
        shutil.rmtree(self.dir)
