"""Containers of all runtimes that come and go on three hosts of a cluster, while daemons, engines and etcd are killed.

A `Churn` has a host with Docker, one with podman and a CNI runtime, and one where bare namespaces are attached. All are
on one overlay, and each has a network of its own besides. Who is refused because something was just killed asks again,
as a runtime does.
"""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Event, Thread

from .cluster import Cluster, Member
from .cni import BIN_DIR, Attached, PluginError, Runtime
from .dockerd import SOCKET, Dockerd
from .host import CommandError, Host
from .podman import Podman
from .scoped import Namespace, namespace
from .wait import wait_until

PATIENCE_S = 90.0
"""What a deletion may take that is asked for until it succeeds."""
AGAIN_S = 0.5
OVERLAY, SUBNET = "blue", "10.90.0.0/22"
_DOCKERS = ("network", "create", "-d", "pynet", "--ipam-driver", "pynet")
_REFUSED = (CommandError, PluginError)


class Churn:
    """The hosts, their runtimes, and threads that use them.

    `done`, `refused`: lives of containers by kind, whole ones and those in which something was refused. `killed`: by
    what. `words`: what was said at refusals.
    """

    def __init__(self, stack: ExitStack, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.seed = seed
        self.chance = random.Random(seed)  # noqa: S311 - it is to be the same again
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.words: list[str] = []
        self._stack = stack
        self._stop = Event()
        cluster.add("--docker-host", f"unix://{SOCKET}")
        cluster.add()
        cluster.add()
        self.docked, self.podded, self.bare = cluster.members
        self.dockerd = Dockerd(self.docked.host)
        self._networks()

    def _networks(self) -> None:
        self.bare.cli("network", "create", OVERLAY, "--cluster", "--subnet", SUBNET)
        for member in self.cluster.members:
            wait_until(lambda member=member: member.has(OVERLAY), what=OVERLAY)  # type: ignore[misc]
        self.dockerd.docker(*_DOCKERS, "--ipam-opt", f"name={OVERLAY}", "-o", "mode=overlay", "-o", "name=blue", "blue")
        self.dockerd.docker(*_DOCKERS, "--subnet", "10.94.0.0/24", "red")
        self.podded.cli("network", "create", "green", "--subnet", "10.95.0.0/24", "--ipv6")
        self.podded.cli("cni", "install", "--bin-dir", BIN_DIR)
        self.podman = Podman(self.podded.host, "green", self.podded.cli("cni", "config", "green"))
        listed = json.loads(self.podded.cli("cni", "config", OVERLAY))
        self.runtime = Runtime(self.podded.host, *listed["plugins"], name=OVERLAY, version=listed["cniVersion"])
        self.bare.cli("network", "create", "grey", "--subnet", "10.96.0.0/24")
        self._residents()

    def _residents(self) -> None:
        """Two namespaces that stay, on two hosts, one of which pings the other all the time."""
        ends = []
        for member in (self.docked, self.bare):
            place = self._stack.enter_context(namespace(member.host))
            place.attach(member.netplug, OVERLAY, "--ifname", "eth0")
            ends.append(place)
        self._pinging, self._pinged = ends

    @property
    def residents(self) -> tuple[tuple[Member, Namespace], ...]:
        """The namespaces that stay, and where they are."""
        return (self.docked, self._pinging), (self.bare, self._pinged)

    # Operations, each one life of one or more containers

    def docker(self, number: int) -> None:
        """A container in one network, then in two; stopped, started again, removed."""
        name = f"d{number}"
        docker = self.dockerd.docker
        chance = self._chance(name)
        options = ("--init", "--stop-signal", "KILL", "--network", chance.choice((OVERLAY, "red")), "-p", "80")
        try:
            docker("run", "-d", *options, "--name", name, "bb:1", "sleep", "3600")
            with suppress(CommandError):  # it is in that one
                docker("network", "connect", "red", name)
            if chance.random() < 0.3:
                docker("restart", "-t", "0", name)
        finally:
            self._surely(lambda: docker("rm", "-f", name), "no such container")

    def pod(self, number: int) -> None:
        name = f"p{number}"
        try:
            self.podman.run(name, "--network", "green", "-p", f"{8000 + number % 100}:80")
        finally:
            self._surely(lambda: self.podman("rm", "-f", "-t", "0", name), "no such container", "no container with")

    def cni(self, number: int) -> None:
        with namespace(self.podded.host) as place:
            it: Attached | None = None
            try:
                it = self.runtime.add(place, container=f"c{number}", runtime=_ports(9000 + number % 100))
                self.runtime.check(it)
            finally:
                # A runtime deletes what it could not add, too.
                gone = _attached(number, place) if it is None else it
                self._surely(lambda: self.runtime.delete(gone))

    def attach(self, number: int) -> None:
        network = self._chance(f"a{number}").choice(("grey", OVERLAY))
        with namespace(self.bare.host) as place:
            try:
                place.attach(self.bare.netplug, network, "--name", f"a{number % 3}", "--publish", "80")
            finally:
                self._surely(lambda: place.detach(self.bare.netplug, network), "is not attached")

    def _chance(self, name: str) -> random.Random:
        """Return what chooses for a container: the same in each run with this seed."""
        return random.Random(f"{self.seed} {name}")  # noqa: S311 - as above

    def _surely(self, work: Callable[[], object], *gone: str) -> None:
        """Do it until it succeeds, or what it is to delete is `gone`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                work()
            except _REFUSED as exc:
                words = str(exc)
                if any(it in words.lower() for it in gone):
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not deleted within {PATIENCE_S:g} s: {words}") from exc
                time.sleep(AGAIN_S)
            else:
                return

    # Threads

    def run(self, seconds: float, kill_every_s: float, tell: Callable[[], None] = lambda: None) -> None:
        """Let containers come and go for a time, and kill something each `kill_every_s` (0: nothing).

        At the end all that came has gone. `tell` is called each 30 s.

        Raises:
            AssertionError: something that was to be deleted could not be.
        """
        self._stop.clear()
        failed: list[BaseException] = []
        works = (self.docker, self.docker, self.pod, self.cni, self.attach)
        threads = [Thread(target=self._repeat, args=(work, lane, failed)) for lane, work in enumerate(works)]
        for thread in threads:
            thread.start()
        try:
            self._kill_until(time.monotonic() + seconds, kill_every_s, tell)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]

    def _repeat(self, work: Callable[[int], None], lane: int, failed: list[BaseException]) -> None:
        number = lane
        while not self._stop.is_set() and not failed:
            number += 10
            try:
                work(number)
            except _REFUSED as exc:
                self.refused[work.__name__] += 1
                self.words.append(f"{work.__name__} {number}: {exc}")
            except BaseException as exc:  # noqa: BLE001 - it is raised by `run`
                failed.append(exc)
            else:
                self.done[work.__name__] += 1

    def _kill_until(self, end: float, every_s: float, tell: Callable[[], None]) -> None:
        told = time.monotonic()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, every_s or left, 30.0))
            if every_s and end - time.monotonic() > every_s:
                self._kill_one()
            if time.monotonic() - told >= 30.0:
                told = time.monotonic()
                tell()

    def _kill_one(self) -> None:
        """Kill one of all at random; the daemon of the host with bare namespaces lives through all."""
        victims: dict[str, Callable[[], None]] = {
            "netplug beside dockerd": lambda: _again(self.docked),
            "netplug beside podman": lambda: _again(self.podded),
            "dockerd": self._kill_dockerd,
            "containerd": self._kill_containerd,
            "etcd": self._kill_etcd,
        }
        name = self.chance.choice([*victims])
        self.killed[name] += 1
        victims[name]()

    def _kill_dockerd(self) -> None:
        self.dockerd.kill()
        self.dockerd.start()

    def _kill_containerd(self) -> None:
        script = (
            'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = containerd ] && kill -9 ${p#/proc/}; done; :'
        )
        self.docked.host.run(["sh", "-c", script])

    def _kill_etcd(self) -> None:
        self.cluster.etcd.kill()
        time.sleep(self.chance.uniform(0.0, 3.0))
        self.cluster.etcd.start()

    # The pings

    def ping(self) -> None:
        """Begin to ping, ten times a second."""
        address = self._pinged.addresses[0]
        host: Host = self._pinging.host
        argv = ["nsenter", f"--net=/run/netns/{self._pinging.name}", "busybox", "ping", "-i", "0.1", address]
        self._pings = host.popen(argv, log="ping.log")

    def lost(self) -> tuple[int, int]:
        """End to ping, and return how many pings were sent, and how many were not answered."""
        self._pings.signal(signal.SIGINT)
        self._pings.wait(10)
        text = (self._pinging.host.dir / "ping.log").read_text().rpartition("packets transmitted")
        sent = int(text[0].split()[-1])
        return sent, max(0, sent - int(text[2].split()[1]) - 1)  # the last answer may be on its way

    def close(self) -> None:
        """Detach the residents, and remove the networks."""
        for member, place in self.residents:
            place.detach(member.netplug, OVERLAY)
        self.dockerd.remove_everything()
        self.podded.cli("network", "rm", "green")
        self.bare.cli("network", "rm", "grey")
        with suppress(CommandError):  # Docker's removal was of the whole cluster's
            self.bare.cli("network", "rm", OVERLAY)


def _again(member: Member) -> None:
    member.netplug.kill()
    member.netplug.start()


def _ports(port: int) -> dict[str, object]:
    return {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}


def _attached(number: int, place: Namespace) -> Attached:
    return Attached(f"c{number}", f"/run/netns/{place.name}", "eth0", "", {})
