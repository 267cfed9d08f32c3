"""What front ends need of the host beside networks: who calls, other people's plugins, who answers at a socket."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from netplug.kernel.host import cni_plugins, runtimes, socket_owner
from netplug.kernel.host.cni_plugins import Finished


class Runtimes(Protocol):
    """Tells runtimes apart by their processes."""

    def calling_runtime(self, pid: int) -> str:
        """Return which runtime a process was started by; empty when that cannot be told."""

    def annotations(self, pid: int, container: str) -> Mapping[str, str]:
        """Return the annotations of a container in whose bundle a plugin runs; nothing where it does not."""

    def same_runtime(self, one: str, other: str) -> bool:
        """Tell whether two calls are of one runtime; it may have been started anew between them."""

    def process_identity(self, pid: int) -> str:
        """Return what identifies a process during this boot; raises `OSError`: there is none."""


class Plugins(Protocol):
    """Executables of other people's CNI plugins."""

    def find(self, name: str, path: str) -> str:
        """Return the executable of a plugin in the folders of `path`; raises `NetplugError`."""

    async def run(self, program: str, env: Mapping[str, str], stdin: bytes) -> Finished:
        """Run a plugin to its end; raises `NetplugError`."""


class SocketOwners(Protocol):
    """Tells which process answers at a Unix socket."""

    def answering_process(self, path: str, greeting: bytes) -> str:
        """Return which process answers a greeting, empty where that cannot be seen. Blocks; raises `OSError`."""


class NullRuntimes:
    """No process calls."""

    def calling_runtime(self, pid: int) -> str:  # noqa: ARG002 - as of `Runtimes`
        return ""

    def annotations(self, pid: int, container: str) -> Mapping[str, str]:  # noqa: ARG002 - as of `Runtimes`
        return {}

    def same_runtime(self, one: str, other: str) -> bool:
        return one == other

    def process_identity(self, pid: int) -> str:
        return str(pid)


@dataclass(frozen=True, slots=True)
class HostServices:
    """The services of this host."""

    runtimes: Runtimes = runtimes
    plugins: Plugins = cni_plugins
    socket_owners: SocketOwners = socket_owner
