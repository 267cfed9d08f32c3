"""Callers that attach and detach all the time, by CNI, by the API and by Docker's plugin protocol, some of them killed.

`killing` runs this file as a program inside the host: a thread a caller, and a process for each call of the CNI plugin.
A caller that is killed in the middle of a request does what runtimes do after that: it deletes, at once or after
another try.
"""

import http.client
import json
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

API, PLUGIN = "/run/netplug/netplug.sock", "/run/docker/plugins/pynet.sock"
KINDS = ("cni", "api", "plugin")
PATIENCE_S = 60.0
LONGEST_KILL_S = 0.012
"""A caller is killed so long after its request at most; an attach takes about as long."""


@dataclass
class Plan:
    """What is done: networks by kind of caller, callers, seconds, and the part of the attaches that is killed."""

    networks: dict[str, str]
    callers: int = 12
    seconds: float = 60.0
    killed: float = 0.01
    cni: str = "/run/cni-bin/pynet"
    run_dir: str = "/run/netplug"
    seed: int = 1


@dataclass
class Result:
    """What was done. `took`: median milliseconds by kind and verb. `failed`: errors in words, without those killed."""

    operations: int = 0
    seconds: float = 0.0
    killed: int = 0
    failed: list[str] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Attaches and detaches a second."""
        return self.operations / self.seconds


class CallError(Exception):
    """The daemon refused."""


class UnixHttp:
    """HTTP over a unix socket, one connection, kept alive."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: http.client.HTTPConnection | None = None

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("netplug", timeout=PATIENCE_S)
            self._connection.sock = socket.socket(socket.AF_UNIX)
            self._connection.sock.settimeout(PATIENCE_S)
            self._connection.sock.connect(self._path)
        return self._connection

    def post(self, path: str, body: dict[str, Any], killed_after_s: float | None = None) -> Any:
        connection = self._connected()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if killed_after_s is not None:
            time.sleep(killed_after_s)
            connection.close()
            self._connection = None
            return None
        response = connection.getresponse()
        data = response.read()
        if response.status >= 300:
            raise CallError(data.decode())
        return json.loads(data) if data else None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Caller(ABC):
    """One that attaches and detaches the same namespace."""

    def __init__(self, plan: Plan, number: int) -> None:
        self.plan, self.number = plan, number
        self.netns = f"churn{number}"

    @abstractmethod
    def attach(self, killed_after_s: float | None = None) -> None: ...

    @abstractmethod
    def detach(self) -> None:
        """Detach, whether attached or not."""


class ApiCaller(Caller):
    def __init__(self, plan: Plan, number: int) -> None:
        super().__init__(plan, number)
        self._api = UnixHttp(API)

    def attach(self, killed_after_s: float | None = None) -> None:
        ports = [{"port": 80, "host_port": 30_000 + self.number}]
        body = {"network": self.plan.networks["api"], "netns": self.netns, "name": self.netns, "ports": ports}
        self._api.post("/v1/attach", body, killed_after_s)

    def detach(self) -> None:
        try:
            self._api.post("/v1/detach", {"network": self.plan.networks["api"], "netns": self.netns})
        except CallError as error:
            if "is not attached" not in str(error):
                raise


class PluginCaller(Caller):
    def __init__(self, plan: Plan, number: int) -> None:
        super().__init__(plan, number)
        self._plugin = UnixHttp(PLUGIN)
        self._ident = ""

    def _call(self, verb: str, killed_after_s: float | None = None, **more: Any) -> None:
        body = {"NetworkID": self.plan.networks["plugin"], "EndpointID": self._ident} | more
        self._plugin.post(f"/NetworkDriver.{verb}", body, killed_after_s)

    def attach(self, killed_after_s: float | None = None) -> None:
        self._ident = self._ident or secrets.token_hex(32)
        address = f"10.203.{1 + self.number // 200}.{1 + self.number % 200}/16"
        interface = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
        early = killed_after_s is not None and killed_after_s > LONGEST_KILL_S / 2
        self._call("CreateEndpoint", killed_after_s if early else None, Interface=interface, Options={})
        if not early:
            key = f"/var/run/docker/netns/{self._ident[:12]}"
            self._call("Join", killed_after_s, SandboxKey=key, Options={})

    def detach(self) -> None:
        self._call("Leave")
        self._call("DeleteEndpoint")
        self._ident = ""


class CniCaller(Caller):
    def _run(self, command: str, killed_after_s: float | None = None) -> None:
        config = {"cniVersion": "1.0.0", "name": self.plan.networks["cni"], "type": "pynet"}
        config |= {"ipam": {"type": "netplug-ipam", "ranges": [[{"subnet": "10.202.0.0/16"}]]}}
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": self.netns, "CNI_NETNS": f"/run/netns/{self.netns}"}
        env |= {"CNI_IFNAME": "eth0", "CNI_PATH": str(Path(self.plan.cni).parent)}
        env |= {"NETPLUG_RUN_DIR": self.plan.run_dir, "PATH": os.environ["PATH"]}
        given, said = os.memfd_create("in"), os.memfd_create("out")
        try:
            os.write(given, json.dumps(config).encode())
            os.lseek(given, 0, 0)
            files = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
            pid = os.posix_spawn(self.plan.cni, [self.plan.cni], env, file_actions=files)
            if killed_after_s is not None:
                time.sleep(killed_after_s)
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if status and killed_after_s is None:
                raise CallError(os.pread(said, 1 << 16, 0).decode())
        finally:
            os.close(given)
            os.close(said)

    def attach(self, killed_after_s: float | None = None) -> None:
        self._run("ADD", killed_after_s)

    def detach(self) -> None:
        self._run("DEL")


_CALLERS: dict[str, type[Caller]] = {"cni": CniCaller, "api": ApiCaller, "plugin": PluginCaller}


def _work(plan: Plan, number: int, over: float, result: Result, times: dict[str, list[float]]) -> None:
    kind = KINDS[number % len(KINDS)]
    caller, dice = _CALLERS[kind](plan, number), random.Random(f"{plan.seed} {number}")  # noqa: S311
    while time.monotonic() < over:
        try:
            if dice.random() < plan.killed:
                caller.attach(dice.uniform(0, LONGEST_KILL_S))
                result.killed += 1
                if dice.random() < 0.5:
                    _tried_again(caller)
            else:
                begun = time.perf_counter()
                caller.attach()
                times[f"{kind} attach"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            caller.detach()
            times[f"{kind} detach"].append(time.perf_counter() - begun)
        except (CallError, OSError) as error:
            result.failed.append(f"{kind} {number}: {error}")
        result.operations += 2


def _tried_again(caller: Caller) -> None:
    """Attach once more: what the killed request has made, or is just making, is in the way."""
    try:
        caller.attach()
    except CallError as error:
        if "already" not in str(error) and "just being attached" not in str(error):
            raise


def main() -> None:
    """Do what the argument says, and print what was done."""
    plan = Plan(**json.loads(sys.argv[1]))
    result, begun = Result(), time.monotonic()
    times: dict[str, list[float]] = {f"{kind} {verb}": [] for kind in KINDS for verb in ("attach", "detach")}
    work = [(plan, number, begun + plan.seconds, result, times) for number in range(plan.callers)]
    threads = [threading.Thread(target=_work, args=args) for args in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - begun
    result.took = {what: round(median(found) * 1000, 2) for what, found in times.items() if found}
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
