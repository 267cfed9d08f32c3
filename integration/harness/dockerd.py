"""A real dockerd inside a host, and the docker command against it."""

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import Any

from netplug.lab.image import IMAGE, busybox_rootfs_tar

from .host import CommandError, Host, Process
from .wait import wait_until

READY_TIMEOUT_S = 40
"""One second as a rule; a restart that waits out an absent plugin takes 15 s a network."""
STOP_TIMEOUT_S = 40
SOCKET = "/run/docker.sock"


def docker_command() -> str:
    """Return Debian's CLI where there is one, so that results do not depend on what else is in PATH."""
    debian = "/usr/bin/docker"
    return os.environ.get("DOCKER") or (debian if Path(debian).exists() else which("docker") or "docker")


def dockerd_command() -> str | None:
    """Return the engine: `$DOCKERD`, or what PATH has."""
    return os.environ.get("DOCKERD") or which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Dockerd:
    """A dockerd with all its state in its host. The constructor starts it and imports the image `bb:1`.

    `docker_args` are its extra arguments, kept over restarts unless `start` is given others.
    """

    def __init__(self, host: Host, *docker_args: str, env: dict[str, str] | None = None) -> None:
        self.host = host
        self.args = docker_args
        self.env = env or {}
        self.process: Process | None = None
        self.log = host.dir / "dockerd.log"
        (host.dir / "daemon.json").write_text("{}\n")
        self.start()
        self.import_image()

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert not self.running, "dockerd already runs"
        command = dockerd_command()
        assert command, "dockerd is missing: apt-get install docker.io"
        argv = [
            command,
            "--data-root",
            str(self.host.dir / "docker"),
            "--config-file",
            str(self.host.dir / "daemon.json"),
        ]
        argv += [
            "--log-level",
            "warn",
            "--cgroup-parent",
            f"/{self.host.name}",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
        ]
        self.process = self.host.popen([*argv, *self.args], log=self.log.name, env=self.env)
        wait_until(self._answers, READY_TIMEOUT_S, f"dockerd of {self.host.name}", ignoring=(OSError,))

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    def _answers(self) -> bool:
        if not self.running:
            tail = "\n".join(self.log.read_text().splitlines()[-20:])
            raise RuntimeError(f"dockerd ended at start:\n{tail}")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2)
            sock.connect(str(self.host.path(SOCKET)))
            sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: d\r\n\r\n")
            return b"200 OK" in sock.recv(4096)

    def stop(self) -> None:
        """Stop it in an orderly way (SIGTERM); its containers stop too, unless it has `--live-restore`."""
        assert self.process
        self.process.stop(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill it with SIGKILL; its containerd goes with it, shims and containers run on."""
        assert self.process
        self.process.kill()

    def restart(self) -> None:
        """Stop it in an orderly way and start it again."""
        self.stop()
        self.start()

    def import_image(self) -> None:
        """Import the busybox image, if this dockerd has not got it."""
        if not self.docker("image", "ls", "-q", IMAGE):
            subprocess.run(
                self.host.inside([docker_command(), "import", "-", IMAGE]),
                check=True,
                input=busybox_rootfs_tar(),
                stdout=subprocess.DEVNULL,
                env=self.host.env,
            )

    def docker(self, *args: str, timeout_s: float = 60) -> str:
        """Run the docker command and return what it printed.

        Raises:
            CommandError: it failed; holds its stderr.
        """
        return self.host.run([docker_command(), *args], timeout_s=timeout_s).stdout.strip()

    def inspect(self, thing: str) -> dict[str, Any]:
        """Return `docker inspect` of one container, network or image."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", thing))
        return found[0]

    def run(self, *options: str, command: Sequence[str] = ("sleep", "3600")) -> "Container":
        """Start a container of `bb:1` in the background; `options` are those of `docker run`."""
        ident = self.docker("run", "-d", "--init", *options, IMAGE, *command).splitlines()[-1]
        return Container(self, ident)

    def remove_everything(self) -> None:
        """Remove all containers and all networks but Docker's own three; goes on after failures."""
        for kind, remove in (("ps -aq", "rm -f -v"), ("network ls -q --filter type=custom", "network rm")):
            with contextlib.suppress(CommandError):
                if found := self.docker(*kind.split()).split():
                    self.docker(*remove.split(), *found)


class Container:
    """One container, by its id."""

    def __init__(self, dockerd: Dockerd, ident: str) -> None:
        assert re.fullmatch("[0-9a-f]{64}", ident), f"no container id: {ident}"
        self.dockerd = dockerd
        self.id = ident

    def inspect(self) -> dict[str, Any]:
        return self.dockerd.inspect(self.id)

    @property
    def running(self) -> bool:
        return bool(self.inspect()["State"]["Running"])

    @property
    def netns(self) -> Path:
        """Its sandbox, as a path seen from outside."""
        pid = self.inspect()["State"]["Pid"]
        assert pid, f"container {self.id[:12]} does not run"
        return self.dockerd.host.path(f"/proc/{pid}/ns/net")

    def _endpoint(self, network: str) -> dict[str, Any]:
        networks: dict[str, dict[str, Any]] = self.inspect()["NetworkSettings"]["Networks"]
        return networks[network] if network else next(iter(networks.values()))

    def ip(self, network: str = "") -> str:
        """Return its IPv4 address in a network (default: its only one)."""
        return str(self._endpoint(network)["IPAddress"])

    def mac(self, network: str = "") -> str:
        return str(self._endpoint(network)["MacAddress"])

    def exec(self, *argv: str) -> str:
        """Run a command in it and return what it printed; raises CommandError."""
        return self.dockerd.docker("exec", self.id, *argv)

    def pings(self, address: str) -> bool:
        """Tell whether one of three pings is answered."""
        try:
            self.exec("ping", "-c", "3", "-i", "0.2", "-W", "1", address)
        except CommandError as exc:
            if exc.code == 1 or "unreachable" in exc.stderr:
                return False
            raise
        return True

    def remove(self) -> None:
        self.dockerd.docker("rm", "-f", "-v", self.id)
