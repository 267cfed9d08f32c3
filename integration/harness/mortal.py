"""A netplug whose daemon dies at a chosen point; see `crash_hook` and `crash_server`."""

import json
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from .crash_hook import Control
from .host import START_TIMEOUT_S, Host
from .netplugd import Netplug
from .wait import wait_until

SERVER = Path(__file__).with_name("crash_server.py")


class MortalProcess:
    """A process of the server; `connection` ends with it."""

    def __init__(self, address: Path, asked: dict[str, Any]) -> None:
        self.argv = tuple(asked["argv"])
        self._address = str(address)
        self._connection = _ask(self._address, asked)
        with self._connection.makefile() as answer:
            self.pid = int(answer.readline())
        """As seen inside."""

    def close(self) -> None:
        """Forget it."""
        self._connection.close()

    @property
    def alive(self) -> bool:
        return self._connection.fileno() >= 0 and not select.select([self._connection], [], [], 0)[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self.alive:
            _ask(self._address, {"kill": self.pid, "signal": number}).close()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end.

        Raises:
            AssertionError: it still runs.
        """
        if self._connection.fileno() >= 0:
            found = select.select([self._connection], [], [], timeout_s)[0]
            assert found, f"{self.argv} still runs after {timeout_s} s"
            self.close()

    def kill(self) -> None:
        """Send SIGKILL and wait."""
        self.signal(signal.SIGKILL)
        self.wait(START_TIMEOUT_S)


def _ask(address: str, asked: dict[str, Any]) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(address)
    connection.sendall(json.dumps(asked).encode() + b"\n")
    return connection


class Mortal(Netplug):
    """`Netplug`, by a server of processes that die where `control` says."""

    def __init__(self, host: Host, *serve_args: str) -> None:
        self.host = host
        self._address = host.dir / "crash.sock"
        self.control = Control(host.dir / "crash.points")
        self.control.disarm()
        argv = [sys.executable, str(SERVER), str(self._address), str(host.dir / "crash.points")]
        self.server = host.popen(argv, log="crash-server.log")
        wait_until(self._listens, 6 * START_TIMEOUT_S, "the server of processes")
        super().__init__(host, *serve_args)

    def _listens(self) -> bool:
        assert self.server.alive, self.host.dir.joinpath("crash-server.log").read_text()
        return self._address.exists()

    def fork(self, entry: str, argv: list[str], *, log: str, env: dict[str, str], stdin: str = "") -> MortalProcess:
        """Start a process."""
        out = self.host.dir / log
        if out not in self.host.logs:
            self.host.logs.append(out)
        return MortalProcess(
            self._address,
            {"entry": entry, "argv": argv, "env": self.host.env | env, "stdin": stdin, "out": str(out)},
        )

    def _launch(self, env: dict[str, str]) -> Any:
        self.close()
        return self.fork("netplug.cli:main", self.command(), log=self.log.name, env=env)

    def stop(self) -> None:
        """Stop it in an orderly way."""
        assert self.process
        self.process.signal(signal.SIGTERM)
        self.process.wait(START_TIMEOUT_S)

    def close(self) -> None:
        """Let go of it; it ends with its host."""
        if isinstance(self.process, MortalProcess):
            self.process.close()
