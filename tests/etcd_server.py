"""Real etcd servers for tests: on loopback, on free ports, with their data in a temporary directory.

Each is a process of ours, ended by its id; `pause` stops it as a hung one is stopped: its kernel still takes
connections, and nothing answers.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

BINARY = shutil.which("etcd")
START_S = 20
TRIES = 3  # a port that was free a moment ago may be taken

ALONE = ("--heartbeat-interval", "20", "--election-timeout", "200")
"""One member waits this long (ms) for others at each start, and has none: a second less than by default."""

needs_etcd = pytest.mark.skipif(not BINARY, reason="needs etcd (make setup)")


class Member:
    """One server. `url`: of clients; `host`: the same as host:port."""

    def __init__(self, name: str, folder: Path, flags: Sequence[str], *, tls: bool = False) -> None:
        self.name = name
        self.folder = folder
        self.client_port, self.peer_port, self.health_port = free_ports(3)
        self.host = f"127.0.0.1:{self.client_port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self.log = folder / f"{name}.log"
        self.flags = flags
        self.cluster = f"{name}={self.peer_url}"
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        assert BINARY
        command = [
            *(BINARY, "--name", self.name, "--data-dir", str(self.folder / self.name)),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--listen-metrics-urls", f"http://127.0.0.1:{self.health_port}"),
            *("--initial-cluster", self.cluster, "--unsafe-no-fsync", *self.flags),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it serves: it has a leader."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process
            if self.process.poll() is not None:
                raise StartError(self.log.read_text(errors="replace")[-2000:])
            if self._healthy():
                return
            time.sleep(0.02)
        raise StartError(f"not healthy in {START_S} s: {self.log.read_text(errors='replace')[-2000:]}")

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/health", timeout=1) as response:
                return bool(json.load(response)["health"] == "true")
        except urllib.error.HTTPError as exc:
            exc.close()  # 503: it has no leader yet
        except (OSError, ValueError):
            pass
        return False

    def start(self) -> None:
        self.spawn()
        self.wait()

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def pause(self) -> None:
        """Freeze it, and return when all its threads have stopped."""
        self.signal(signal.SIGSTOP)
        assert self.process
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as a crash does; its data stays."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def post(self, path: str, **body: object) -> dict[str, Any]:
        """Ask it something by its JSON gateway."""
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=START_S) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
            return answer

    def records(self, prefix: str) -> dict[str, Any]:
        """Return the values of netplug's records whose keys begin so, by key."""
        root = f"/netplug/v1/default/{prefix}".encode()
        end = root[:-1] + bytes([root[-1] + 1])
        kvs = self.post("kv/range", key=_b64(root), range_end=_b64(end)).get("kvs", ())
        found = {b64decode(kv["key"]).decode(): json.loads(b64decode(kv["value"])) for kv in kvs}
        return {key.removeprefix("/netplug/v1/default/"): record["value"] for key, record in found.items()}

    def write(self, key: str, value: object) -> None:
        """Put a record, as a netplug that went mad would."""
        record = json.dumps({"txn": "", "value": value}).encode()
        self.post("kv/put", key=_b64(f"/netplug/v1/default/{key}".encode()), value=_b64(record))

    def delete(self, key: str) -> None:
        self.post("kv/deleterange", key=_b64(f"/netplug/v1/default/{key}".encode()))

    def compact(self) -> None:
        """Forget all changes up to now."""
        revision = self.post("kv/range", key="AA==")["header"]["revision"]
        self.post("kv/compaction", revision=revision, physical=True)

    def empty(self) -> None:
        """Delete all that is in it."""
        self.post("kv/deleterange", key="AA==", range_end="AA==")

    def save(self, path: Path) -> None:
        """Make a backup."""
        command = ["etcdctl", f"--endpoints={self.host}", "snapshot", "save", str(path)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})

    def restore(self, path: Path, *, writes: int = 0) -> None:
        """Give it a backup, as its administrator does. `writes`: of others, before anybody of ours is let in."""
        self.wipe()
        command = [
            *("etcdctl", "snapshot", "restore", str(path), "--name", self.name, "--initial-cluster", self.cluster),
            *("--initial-advertise-peer-urls", self.peer_url, "--data-dir", str(self.folder / self.name)),
        ]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})
        if writes:
            url, (port,) = self.url, free_ports(1)
            self.url = f"http://127.0.0.1:{port}"
            self.start()
            for _ in range(writes):
                self.post("kv/put", key=_b64(b"/others"), value="")
            self.stop()
            self.url = url
        self.start()

    def refuse(self, *, full: bool = True) -> None:
        """Refuse what would take room, as when its database has reached its limit; or, no more."""
        action = "ACTIVATE" if full else "DEACTIVATE"
        self.post("maintenance/alarm", action=action, memberID=0, alarm="NOSPACE")

    def enable_authentication(self, password: str) -> None:
        """Make user root with this password, and ask everybody for a user from now on."""
        for path, body in (
            ("user/add", {"name": "root", "password": password}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            request = urllib.request.Request(f"{self.url}/v3/auth/{path}", json.dumps(body).encode())  # noqa: S310
            urllib.request.urlopen(request, timeout=START_S).close()  # noqa: S310

    def disable_authentication(self, password: str) -> None:
        """Ask nobody any more."""
        token = str(self.post("auth/authenticate", name="root", password=password)["token"])
        request = urllib.request.Request(f"{self.url}/v3/auth/disable", b"{}", {"Authorization": token})  # noqa: S310
        urllib.request.urlopen(request, timeout=START_S).close()  # noqa: S310

    def wipe(self) -> None:
        """End it and delete its data."""
        self.stop()
        shutil.rmtree(self.folder / self.name)


def _b64(text: bytes) -> str:
    return b64encode(text).decode()


class StartError(Exception):
    pass


@contextlib.contextmanager
def running(folder: Path, *flags: str, members: int = 1, tls: bool = False) -> Iterator[list[Member]]:
    """Run a cluster. `flags`: of each member; the last of several counts."""
    flags = flags if members > 1 else (*ALONE, *flags)
    for attempt in itertools.count(1):
        cluster = [Member(f"m{n}-{attempt}", folder, flags, tls=tls) for n in range(members)]
        for member in cluster:
            member.cluster = ",".join(f"{other.name}={other.peer_url}" for other in cluster)
        try:
            try:
                for member in cluster:
                    member.spawn()
                for member in cluster:
                    member.wait()
            except StartError:
                if attempt == TRIES:
                    raise
                continue
            yield cluster
            return
        finally:
            for member in cluster:
                member.stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


async def until(holds: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0.02)
