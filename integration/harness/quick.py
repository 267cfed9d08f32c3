"""Networks and namespaces by the daemon's API, without a process for each call, and who reaches whom."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from netplug.cli import CliError

from .netplugd import Netplug
from .scoped import namespace
from .traffic import Placed, SeenServer, tcp_ask, udp_ask

PORT = 80
"""Where a `Spot` serves, by TCP and UDP."""
ANYBODY = "anybody"
_SILENCE_S = 1
"""What is to be dropped has been by then: answers take milliseconds."""
_AT_ONCE_S = 0.2
_PATIENCE_S = 15
"""Dozens of ways are tried at once, in threads of this process, which serves them too."""

_numbers = count(1)


@dataclass(frozen=True)
class Spot:
    """A network namespace whose servers tell each client the source address that they see."""

    netns: Path
    ip4: str
    ip6: str = ""
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """From a place to an address. `wanted`: the source address that the server sees, `ANYBODY`, or "" for no answer."""

    place: Placed
    address: str
    wanted: str
    port: int = PORT
    protos: tuple[str, ...] = ("tcp", "udp")

    def found(self, proto: str, timeout_s: float = _PATIENCE_S) -> str:
        """Try it, and return the source address; "" for no answer."""
        ask = tcp_ask if proto == "tcp" else udp_ask
        try:
            seen = ask(self.place, self.address, self.port, timeout_s=timeout_s if self.wanted else _SILENCE_S)
        except OSError:
            return ""
        return seen.removeprefix("::ffff:")

    def passes(self) -> bool:
        """Whether a datagram is answered at once."""
        return bool(self.found("udp", _AT_ONCE_S))


def check(ways: Mapping[str, Way]) -> None:
    """Try all ways at once.

    Raises:
        AssertionError: names those that differ from what is wanted.
    """
    tries = [(f"{what} ({proto})", way, proto) for what, way in ways.items() for proto in way.protos]
    with ThreadPoolExecutor(len(tries)) as pool:
        answers = list(pool.map(lambda it: it[1].found(it[2]), tries))
    wrong = [
        f"{what}: {found or 'no answer'} in place of {way.wanted or 'no answer'}"
        for (what, way, _), found in zip(tries, answers, strict=True)
        if found != way.wanted and not (found and way.wanted == ANYBODY)
    ]
    assert not wrong, "\n".join(("who reaches whom:", *wrong))


@contextmanager
def serving(place: Placed, port: int = PORT) -> Iterator[None]:
    """The servers of a place, for both IP versions."""
    with SeenServer(place, "tcp", port, "::"), SeenServer(place, "udp", port, "::"):
        yield


@contextmanager
def quick_network(netplug: Netplug, *, internal: bool = False, ipv6: bool = True, **options: str) -> Iterator[str]:
    """A network; its name."""
    name = f"quick{next(_numbers)}"
    netplug.client.post("networks", body={"name": name, "internal": internal, "ipv6": ipv6, "options": options})
    try:
        yield name
    finally:
        with suppress(CliError):
            for it in netplug.client.get("endpoints", network=name)["endpoints"]:
                _detach(netplug, name, it["sandbox"])
        netplug.client.delete("networks", name)


@contextmanager
def quick_spot(netplug: Netplug, network: str, *, publish: int = 0, name: str = "") -> Iterator[Spot]:
    """A namespace in a network, whose port is published at port `publish` of the host, if that is one."""
    ports = [{"port": PORT, "proto": proto, "host_port": publish} for proto in ("tcp", "udp") if publish]
    with namespace(netplug.host) as it:
        body = {"network": network, "netns": it.name, "name": name, "ports": ports}
        said: dict[str, Any] = netplug.client.post("attach", body=body)
        ip4, ip6 = (*(text.partition("/")[0] for text in said["addresses"]), "")[:2]
        with serving(it):
            yield Spot(it.netns, ip4, ip6, tuple(said["gateways"]))
        _detach(netplug, network, it.name)


def _detach(netplug: Netplug, network: str, netns: str) -> None:
    netplug.client.post("detach", body={"network": network, "netns": netns})


def drift(netplug: Netplug) -> list[str]:
    """Return what `netplug diff` shows, without a process."""
    return [f"{it['object']}: {it['what']}" for it in netplug.client.get("diff")["differences"]]
