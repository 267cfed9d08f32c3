"""Tells whether the Docker that calls the plugin is the one that we listen to: several may share a plugin folder.

Only what this one does not list is lost. If it is killed while it creates a network, it never lists that network.
"""

from urllib.parse import urlsplit

import structlog

from netplug.engine.host_services import Runtimes, SocketOwners
from netplug.tasks.apart import apart

log = structlog.get_logger(__name__)

_GREETING = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"


class OwnDocker:
    """Knows the process that answers at a Docker's socket since `learn`."""

    def __init__(self, docker_host: str, runtimes: Runtimes, socket_owners: SocketOwners) -> None:
        self._url = urlsplit(docker_host)
        self._runtimes = runtimes
        self._socket_owners = socket_owners
        self._process = ""

    async def learn(self) -> None:
        """Find the process; call it after each connection, since a restarted Docker is another one."""
        if self._url.scheme != "unix":
            return  # it is on another host, or in another PID namespace
        try:
            self._process = await apart(lambda: self._socket_owners.answering_process(self._url.path, _GREETING))
        except OSError as exc:  # TimeoutError too
            log.debug("docker.process_unknown", error=str(exc))

    def calls(self, pid: int) -> bool:
        """Tell whether it is this process. False also if that is not known."""
        if not pid or not self._process:
            return False
        try:
            return self._runtimes.process_identity(pid) == self._process
        except OSError:
            return False
