"""Networks, containers and bare namespaces for the length of a `with` block.

What Docker made is removed only if the block got to its end, since the leak check cleans up after a failed test; what
our own command made, and namespaces, are removed in any case, since nobody else would.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from .dockerd import Container, Dockerd
from .host import CommandError, Host
from .netplugd import Netplug

_numbers = count(1)


class Namespace:
    """A network namespace of a host that has a name and no process: what `ip netns add` makes.

    `addresses`, `mac`: those that it was given in a network of a cluster.
    """

    def __init__(self, host: Host, name: str = "") -> None:
        self.host = host
        self.addresses: list[str] = []
        self.mac = ""
        self.name = name or f"bare{next(_numbers)}"
        self.host.run(["ip", "netns", "add", self.name])

    @property
    def netns(self) -> Path:
        return self.host.path(f"/run/netns/{self.name}")

    def exec(self, *argv: str) -> str:
        """Run a command in it and return what it printed; raises CommandError."""
        return self.host.output("nsenter", f"--net=/run/netns/{self.name}", "--", *argv)

    def pings(self, address: str) -> bool:
        """Tell whether one of three pings is answered."""
        try:
            self.exec("busybox", "ping", "-c", "3", "-i", "0.2", "-W", "1", address)
        except CommandError as exc:
            if exc.code == 1 or "unreachable" in exc.stderr:
                return False
            raise
        return True

    def attach(self, netplug: Netplug, network: str, *options: str) -> dict[str, Any]:
        """Plug it into a network and return what the command says."""
        result: dict[str, Any] = json.loads(netplug.cli("attach", network, "--netns", self.name, *options))
        self.addresses = [text.partition("/")[0] for text in result["addresses"]]
        self.mac = result["mac"]
        return result

    def attaches(self, netplug: Netplug, network: str, *options: str) -> bool:
        """Try to plug it in, and tell whether that was done."""
        try:
            self.attach(netplug, network, *options)
        except CommandError:
            return False
        return True

    def detach(self, netplug: Netplug, network: str, *options: str) -> None:
        netplug.cli("detach", network, "--netns", self.name, *options)

    def remove(self) -> None:
        self.host.run(["ip", "netns", "del", self.name])


@contextmanager
def namespace(host: Host) -> Iterator[Namespace]:
    """A bare namespace; the block may have removed it."""
    it = Namespace(host)
    try:
        yield it
    finally:
        if it.name in host.output("ip", "netns", "list").split():
            it.remove()


@contextmanager
def attached(netplug: Netplug, network: str, *options: str) -> Iterator[tuple[Namespace, dict[str, Any]]]:
    """A bare namespace in a network, and what `attach` said of it."""
    with namespace(netplug.host) as it:
        result = it.attach(netplug, network, *options)
        try:
            yield it, result
        except BaseException:
            with suppress(CommandError):
                it.detach(netplug, network)
            raise
        it.detach(netplug, network)


@contextmanager
def cli_network(netplug: Netplug, *options: str) -> Iterator[str]:
    """A network made by `netplug network create`; its name."""
    name = f"own{next(_numbers)}"
    netplug.cli("network", "create", name, *options)
    try:
        yield name
    except BaseException:
        with suppress(CommandError):
            for it in netplug.json("ps", "--network", name):
                netplug.cli("detach", name, "--netns", it["sandbox"], "--ifname", it["interface"])
            netplug.cli("network", "rm", name)
        raise
    netplug.cli("network", "rm", name)


@contextmanager
def docker_network(dockerd: Dockerd, *options: str, driver: str = "pynet", may_miscount: bool = False) -> Iterator[str]:
    """A network made through Docker; its name. Removed at the end if the test got there.

    `may_miscount`: the test kills the plugin in the middle of calls, or removes many containers at once. dockerd may
    then count an endpoint for ever that none of its lists has (moby 17217); it counts anew when it starts.
    """
    name = f"net{next(_numbers)}"
    dockerd.docker("network", "create", "-d", driver, *options, name)
    yield name
    try:
        dockerd.docker("network", "rm", name)
    except CommandError as exc:
        if not may_miscount or "has active endpoints" not in exc.stderr or dockerd.inspect(name)["Containers"]:
            raise
        dockerd.restart()
        dockerd.docker("network", "rm", name)


@contextmanager
def container(dockerd: Dockerd, *options: str, command: Sequence[str] = ("sleep", "3600")) -> Iterator[Container]:
    """A running container, removed at the end if the test got there."""
    it = dockerd.run(*options, command=command)
    yield it
    it.remove()
