"""The daemon under test inside a host, and its command."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from netplug.cli.client import Client

from .dockerd import SOCKET
from .host import CommandError, Host, Process
from .wait import POLL_S, wait_until

READY_TIMEOUT_S = 40
STOP_TIMEOUT_S = 40
RUN_DIR = "/run/netplug"
PLUGIN_DIR = "/run/docker/plugins"
COMMAND = Path(sys.executable).with_name("netplug")


class Netplug:
    """`netplug serve` with its state in its host. The constructor starts it and waits for systemd's READY=1.

    `serve_args` are extra arguments; a later one of the same name wins.
    """

    executable = COMMAND

    def __init__(self, host: Host, *serve_args: str, env: dict[str, str] | None = None) -> None:
        self.host = host
        self.args = serve_args
        self.env = env or {}
        self.state_dir = host.dir / "netplug"
        self.log = host.dir / "netplug.log"
        self.process: Process | None = None
        self.start()

    def command(self) -> list[str]:
        """Return the command line of the daemon."""
        argv = [str(self.executable), "serve", "--state-dir", str(self.state_dir), "--run-dir", RUN_DIR]
        return [*argv, "--plugin-dir", PLUGIN_DIR, "--docker-host", f"unix://{SOCKET}", *self.args]

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def plugin_socket(self) -> Path:
        """The Docker plugin socket, seen from outside; for tests that speak the protocol themselves."""
        return self.host.path(f"{PLUGIN_DIR}/pynet.sock")

    def start(self) -> None:
        """Start the daemon and wait until it says that it is ready (sd_notify)."""
        assert not self.running, "netplug already runs"
        address = self.host.dir / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            address.unlink(missing_ok=True)
            notify.bind(str(address))
            notify.settimeout(POLL_S)
            env = self.env | {"NOTIFY_SOCKET": str(address)}
            self.process = self._launch(env)

            def ready() -> bool:
                if not self.running:
                    tail = "\n".join(self.log.read_text().splitlines()[-20:])
                    raise RuntimeError(f"netplug serve ended at start:\n{tail}")
                # Messages about sockets to keep come before, one for each port, and few have room in the queue.
                while b"READY=1" not in notify.recv(4096).splitlines():
                    pass
                return True

            wait_until(ready, READY_TIMEOUT_S, f"netplug of {self.host.name}", ignoring=(TimeoutError,))
        address.unlink()

    def _launch(self, env: dict[str, str]) -> Process:
        return self.host.popen(self.command(), log=self.log.name, env=env)

    def stop(self) -> None:
        """Stop it in an orderly way (SIGTERM); asserts that it calls that a success."""
        assert self.process
        code = self.process.stop(STOP_TIMEOUT_S)
        assert code == 0, f"netplug serve ended with {code}"

    def kill(self) -> None:
        assert self.process
        self.process.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def client(self) -> Client:
        """What speaks with the daemon's API, from outside the host."""
        return Client(self.host.path(RUN_DIR))

    def cli(self, *args: str) -> str:
        """Run a client command and return what it printed.

        Raises:
            CommandError: it failed; holds its exit code and stderr.
        """
        return self.host.run([str(self.executable), *args], env={"NETPLUG_RUN_DIR": RUN_DIR}).stdout.strip()

    def json(self, *args: str) -> Any:
        """Run a listing command with `--json` and return what it printed, parsed."""
        return json.loads(self.cli(*args, "--json"))

    def drift(self) -> str:
        """Return what `netplug diff` says, or nothing when plans and kernel agree."""
        try:
            self.cli("diff")
        except CommandError as exc:
            if exc.code != os.EX_OK + 1:
                raise
            return exc.stdout or exc.stderr or "drift"
        return ""
