"""Many endpoints on one host: bare namespaces on several bridge networks, each with names and a published port."""

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .netplugd import RUN_DIR, Netplug

FIRST_PORT = 20_000
LOOK_S = 0.4
REST_LOOKS = 8
"""So many looks in a row show the same memory once a daemon rests. It looks at the kernel half a second after a change;
on a busy machine that takes longer."""
REST_MB = 0.1
REST_LIMIT_S = 60.0


class RefusedError(AssertionError):
    """The daemon refused. `status`: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """The daemon's own API, by one connection."""

    def __init__(self, path: Path, timeout_s: float = 120) -> None:
        self._connection = http.client.HTTPConnection("netplug", timeout=timeout_s)
        self._connection.sock = socket.socket(socket.AF_UNIX)
        self._connection.sock.settimeout(timeout_s)
        self._connection.sock.connect(str(path))

    @classmethod
    def of(cls, netplug: Netplug) -> Self:
        return cls(netplug.host.path(f"{RUN_DIR}/netplug.sock"))

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to a request; raises `RefusedError`."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, f"/v1/{path}", data, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RefusedError(response.status, answer.decode())
        return json.loads(answer) if answer else None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class Crowd:
    """Endpoints by number, on networks in turn. Their namespaces are there before, and stay."""

    netplug: Netplug
    networks: int = 4
    room: int = 0
    """How many namespaces there are."""
    present: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.api = Api.of(self.netplug)
        for number in range(self.networks):
            subnet = {"subnet": f"10.{100 + number}.0.0/16"}
            self.api.ask("POST", "networks", {"name": f"crowd{number}", "subnets": [subnet]})

    def make_room(self, room: int) -> None:
        """Create namespaces up to this number."""
        names = "".join(f"netns add box{number}\n" for number in range(self.room, room))
        self.netplug.host.run(["ip", "-batch", "-"], stdin=names, timeout_s=300)
        self.room = max(room, self.room)

    def attach(self, number: int) -> float:
        """Attach a namespace; return the milliseconds that it took."""
        name = f"box{number}"
        body = {"network": f"crowd{number % self.networks}", "netns": name, "name": name, "aliases": [f"www{number}"]}
        body["ports"] = [{"proto": "tcp", "port": 80, "host_port": FIRST_PORT + number}]
        begun = time.perf_counter()
        self.api.ask("POST", "attach", body)
        self.present.add(number)
        return (time.perf_counter() - begun) * 1000

    def detach(self, number: int) -> float:
        """Detach a namespace; return the milliseconds that it took."""
        begun = time.perf_counter()
        self.api.ask("POST", "detach", {"network": f"crowd{number % self.networks}", "netns": f"box{number}"})
        self.present.discard(number)
        return (time.perf_counter() - begun) * 1000

    def grow(self, size: int) -> None:
        """Attach as many as are missing."""
        self.make_room(size)
        for number in range(size):
            if number not in self.present:
                self.attach(number)

    def disperse(self) -> None:
        """Detach all, and delete the networks and namespaces."""
        for number in sorted(self.present):
            self.detach(number)
        for number in range(self.networks):
            self.api.ask("DELETE", f"networks/crowd{number}")
        names = "".join(f"netns del box{number}\n" for number in range(self.room))
        self.netplug.host.run(["ip", "-batch", "-"], stdin=names, timeout_s=300)
        self.room = 0
        self.api.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it to the end of the host what is there still."""
        self.api.close()

    def reconnect(self) -> None:
        """Connect to a daemon that was started anew."""
        self.api.close()
        self.api = Api.of(self.netplug)


def memory_mb(netplug: Netplug) -> dict[str, float]:
    """Return resident and private megabytes of the daemon (proc(5), smaps_rollup), once they stay as they are."""
    looks, deadline = [_memory_mb(netplug)], time.monotonic() + REST_LIMIT_S
    while time.monotonic() < deadline:
        time.sleep(LOOK_S)
        looks = [*looks, _memory_mb(netplug)][-REST_LOOKS:]
        resident = [look["rss"] for look in looks]
        if len(looks) == REST_LOOKS and max(resident) - min(resident) <= REST_MB:
            return looks[-1]
    raise AssertionError(f"the daemon's memory does not stay in {REST_LIMIT_S:.0f} s: {resident} MB")


def _memory_mb(netplug: Netplug) -> dict[str, float]:
    assert netplug.process
    text = Path(f"/proc/{netplug.process.pid}/smaps_rollup").read_text()
    found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {"rss": found["Rss"], "private": found["Private_Clean"] + found["Private_Dirty"]}


def files_of(netplug: Netplug) -> int:
    """Return how many descriptors the daemon has."""
    assert netplug.process
    return sum(1 for _ in Path(f"/proc/{netplug.process.pid}/fd").iterdir())


def spent_ms(netplug: Netplug) -> float:
    """Return the processor time of the daemon, of all of its threads."""
    assert netplug.process
    tasks = Path(f"/proc/{netplug.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
