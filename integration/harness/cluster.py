"""Several hosts with a daemon each, on one etcd, behind one router: a cluster in namespaces.

The router is a host too; etcd runs on it. Each host has a subnet of its own towards it, so that a tunnel goes over
another hop, and links can be cut one by one.
"""

import json
import signal
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from netplug.cluster.following import WAITING

from .host import CommandError, Host, Process
from .netplugd import Netplug
from .scoped import Namespace, namespace
from .wait import wait_until
from .wire import Wire, connect, wait_until_passing

needs_etcd = pytest.mark.skipif(not which("etcd"), reason="needs etcd (make setup)")
CLIENT_PORT, PEER_PORT = 2379, 2380
PEER_URL = f"http://127.0.0.1:{PEER_PORT}"
START_S = 30
SETTLE_S = 20
_ROOT = "/netplug/v1/default/"


class Etcd:
    """The store of a cluster, on a host; or one member of such a store, which then waits for `launch`.

    `others`: names and peer URLs of all members, this one's too.
    """

    def __init__(self, host: Host, address: str, others: Mapping[str, str] | None = None) -> None:
        self.host = host
        self.url = f"etcd://{address}:{CLIENT_PORT}"
        self.flags: tuple[str, ...] = ()
        self._lives = 0
        name, members = (host.name, others) if others else ("m", {"m": PEER_URL})
        initial = ",".join(f"{name}={url}" for name, url in members.items())
        self._member = ("--name", name, "--initial-advertise-peer-urls", members[name], "--initial-cluster", initial)
        self._peer_url = members[name]
        if not others:
            self.start()

    @property
    def _data(self) -> Path:
        return self.host.dir / f"etcd-{self._lives}"

    def start(self, *, emptied: bool = False) -> None:
        """Start it with the data that it had, or without any, and wait until it serves."""
        self._lives += emptied
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it serves, which a member does with most of the others."""
        wait_until(self._healthy, START_S, "etcd")

    def launch(self) -> None:
        """Start it with the data that it had."""
        self._lives = self._lives or 1
        command = [
            *("etcd", "--data-dir", str(self._data), "--unsafe-no-fsync", *self._member, *self.flags),
            *("--listen-client-urls", f"http://0.0.0.0:{CLIENT_PORT}"),
            *("--advertise-client-urls", f"http://127.0.0.1:{CLIENT_PORT}", "--listen-peer-urls", self._peer_url),
        ]
        self.process: Process = self.host.popen(command, log="etcd.log")

    def _healthy(self) -> bool:
        assert self.process.alive, "etcd ended"
        return self.ctl("endpoint", "health", check=False) == 0

    def ctl(self, *args: str, check: bool = True) -> int:
        """Run etcdctl and return its exit code."""
        return self._ctl(*args, check=check).returncode

    def _ctl(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["etcdctl", f"--endpoints=127.0.0.1:{CLIENT_PORT}", *args]
        return self.host.run(command, check=check, env={"ETCDCTL_API": "3"})

    def kill(self) -> None:
        self.process.kill()

    def save(self, path: Path) -> None:
        """Make a backup."""
        self.ctl("snapshot", "save", str(path))

    def restore(self, path: Path) -> None:
        """Give it a backup in place of its data, as its administrator does."""
        self.kill()
        self._lives += 1
        self.ctl("snapshot", "restore", str(path), "--data-dir", str(self._data), *self._member)
        self.start()

    def newest(self, prefix: str) -> int:
        """Return the revision at which one of netplug's records, whose keys begin so, was written last; or 0."""
        found = json.loads(self._ctl("get", "--prefix", _ROOT + prefix, "--keys-only", "--write-out", "json").stdout)
        return max((kv["mod_revision"] for kv in found.get("kvs", ())), default=0)

    def write(self, key: str, value: object) -> None:
        """Put a record, as a netplug that went mad would."""
        self.ctl("put", _ROOT + key, json.dumps({"txn": "", "value": value}))

    def read(self, key: str) -> dict[str, Any]:
        """Return the value of a record."""
        record: dict[str, Any] = json.loads(self._ctl("get", "--print-value-only", _ROOT + key).stdout)
        value: dict[str, Any] = record["value"]
        return value

    def keys(self, prefix: str, end: str = "") -> list[str]:
        """Return the keys of netplug's records that begin, and end, so."""
        found = self._ctl("get", "--prefix", _ROOT + prefix, "--keys-only").stdout.split()
        return [it.removeprefix(_ROOT) for it in found if it.endswith(end)]

    def records(self) -> dict[str, dict[str, Any]]:
        """Return netplug's records, by key."""
        found = json.loads(self._ctl("get", "--prefix", _ROOT, "--write-out", "json").stdout)
        pairs = ((b64decode(it["key"]).decode(), json.loads(b64decode(it["value"]))) for it in found.get("kvs", ()))
        return {key.removeprefix(_ROOT): record["value"] for key, record in pairs}

    def delete(self, prefix: str) -> None:
        """Delete all records whose keys begin so."""
        self.ctl("del", "--prefix", _ROOT + prefix)

    def hang(self) -> None:
        """Stop it as one that hangs: the kernel still takes connections."""
        self.process.freeze()

    def go_on(self) -> None:
        self.process.signal(signal.SIGCONT)


class Member:
    """A host of the cluster. `wire`: its cable to the router, `left` is its own end."""

    def __init__(
        self, host: Host, wire: Wire, etcd: Etcd, *args: str, family: int = 4, env: dict[str, str] | None = None
    ) -> None:
        self.host = host
        self.wire = wire
        self.vtep = wire.left if family == 4 else wire.left6
        shared = ("--store", etcd.url, "--docker-host", "none", "--vtep", self.vtep)
        self.netplug = Netplug(host, *shared, *args, "--host-name", host.name, env=env)

    def cli(self, *args: str) -> str:
        return self.netplug.cli(*args)

    def has(self, network: str) -> bool:
        """Whether a network has been built here."""
        return network in {net["name"] for net in self.netplug.client.get("networks")["networks"]}

    def differences(self) -> list[str]:
        """Return what `netplug diff` finds, by the API: no process."""
        return [str(it) for it in self.netplug.client.get("diff")["differences"]]

    def leaks(self) -> list[str]:
        """Return what `netplug ipam audit` finds."""
        return [str(it) for it in self.netplug.client.get("ipam/audit")["findings"]]

    def knows(self, mac: str) -> str:
        """Return the VTEP to which this host's kernel sends frames for a MAC; nothing when it knows none."""
        for line in self.host.output("bridge", "fdb", "show").splitlines():
            words = line.split()
            if words[0] == mac and "dst" in words:
                return words[words.index("dst") + 1]
        return ""

    def cut(self) -> None:
        """Pull the cable."""
        self.host.run(["ip", "link", "set", self.wire.left_link, "down"])

    def mend(self) -> None:
        """Plug the cable in again, with the default routes that went with it."""
        v4, v6 = self.wire.right, self.wire.right6
        lines = (
            f"link set {self.wire.left_link} up",
            f"-6 addr replace {self.wire.left6}/64 dev {self.wire.left_link} nodad",
            f"route replace default via {v4}",
            f"-6 route replace default via {v6}",
        )
        self.host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in lines)])
        wait_until_passing(self.host, self.wire.left_link)


class Cluster:
    """A router with an etcd, and members."""

    def __init__(self, stack: ExitStack, family: int = 4) -> None:
        self._stack = stack
        self._family = family
        self.router = stack.enter_context(Host("router"))
        _forward(self.router)
        self.members: list[Member] = []
        self._hosts = 0
        self._etcd: Etcd | None = None

    @property
    def etcd(self) -> Etcd:
        assert self._etcd
        return self._etcd

    def add(self, *args: str, env: dict[str, str] | None = None) -> Member:
        """Add a host with a daemon."""
        return self.join(*self.prepare(), *args, env=env)

    def add_with_etcd(self, count: int) -> list[Etcd]:
        """Add hosts with a daemon and a member of etcd each; none is on the router then. Return the members."""
        places = [self._cabled() for _ in range(count)]
        peers = {host.name: f"http://{wire.left}:{PEER_PORT}" for host, wire in places}
        members = [Etcd(host, wire.left, peers) for host, wire in places]
        for it in members:
            it.launch()
        for it in members:
            it.wait()
        store = "etcd://" + ",".join(it.url.removeprefix("etcd://") for it in members)
        self._etcd = members[0]
        for host, wire in places:
            self.join(host, wire, "--store", store)
        return members

    def prepare(self) -> tuple[Host, Wire]:
        """Add a host without a daemon, and its cable. The first has etcd started on the router."""
        host, wire = self._cabled()
        if self._etcd is None:
            self._etcd = Etcd(self.router, wire.right)
        return host, wire

    def _cabled(self) -> tuple[Host, Wire]:
        self._hosts += 1
        number = self._hosts
        host = self._stack.enter_context(Host(f"member{number}"))
        _forward(host)  # which our daemon turns on and leaves on
        wire = connect(host, self.router, f"198.51.{number}.0/24", f"fd00:51:{number}::/64")
        return host, wire

    def join(self, host: Host, wire: Wire, *args: str, env: dict[str, str] | None = None) -> Member:
        """Start the daemon of a host."""
        member = Member(host, wire, self.etcd, *args, family=self._family, env=env)
        self.members.append(member)
        return member

    @contextmanager
    def network(self, name: str, *options: str) -> Iterator[str]:
        """A network on all hosts; at its end no host has any difference to its records, and none has the network."""
        self.members[0].cli("network", "create", name, "--cluster", *options)
        for member in self.members:
            wait_until(lambda member=member: member.has(name), what=f"{name} on {member.host.name}")  # type: ignore[misc]
        try:
            yield name
            self.settled()
        except BaseException:  # the next test finds what it would find after a success
            for member in self.members:
                with suppress(CommandError, AssertionError):
                    for it in member.netplug.json("ps", "--network", name):
                        if it["sandbox"]:  # it is not another host's
                            member.cli("detach", name, "--netns", it["sandbox"])
            with suppress(CommandError):
                self.members[0].cli("network", "rm", name)
            raise
        self.members[-1].cli("network", "rm", name)
        for member in self.members:
            wait_until(lambda member=member: not member.has(name), what=f"end of {name}")  # type: ignore[misc]

    @contextmanager
    def station(self, member: Member, network: str, *options: str, told: bool = True) -> Iterator[Namespace]:
        """A namespace of a member in a network; `told`: known to all others when `attach` returned, as it is to be."""
        with namespace(member.host) as place:
            place.attach(member.netplug, network, *options)
            for other in self.members if told else ():
                if other is not member:
                    self.at_once(lambda other=other: other.knows(place.mac) == member.vtep, f"{place.mac} is known")  # type: ignore[misc]
            yield place
            place.detach(member.netplug, network)

    def known(self, place: Namespace, at: Member) -> None:
        """Wait until all other members send to a namespace where it is."""
        for other in self.members:
            if other is not at:
                wait_until(lambda other=other: other.knows(place.mac) == at.vtep, what=f"{place.mac} at {at.vtep}")  # type: ignore[misc]

    @property
    def confirmed(self) -> bool:
        """Whether all that was attached up to now was confirmed by all hosts before the command returned.

        Daemons say so where they waited no longer: a busy machine is slower than their patience.
        """
        return not any("endpoint.unconfirmed" in member.netplug.log.read_text() for member in self.members)

    def at_once(self, holds: Callable[[], object], what: str) -> None:
        """Assert that something holds; a moment later only where a daemon said that it has not waited for others."""
        if self.confirmed:
            assert holds() or not self.confirmed, what
        wait_until(holds, what=what)

    def update(self, member: Member, network: str, *args: str) -> None:
        """Update a network on a member: all hosts have followed when the command returns, or it said which has not."""
        said = member.cli("network", "update", network, *args)

        def behind() -> list[dict[str, str]]:
            found = (host for it in self.members for host in it.netplug.client.get("hosts")["hosts"])
            return [host["behind"] for host in found if host["behind"]]

        if WAITING in said:
            wait_until(lambda: not behind(), what="all hosts have followed")
        assert behind() == []

    def settled(self) -> None:
        """Wait until no host has differences or leaks; what one still has is in the failure."""
        for member in self.members:
            with suppress(AssertionError):
                wait_until(lambda member=member: not member.differences() + member.leaks(), SETTLE_S)  # type: ignore[misc]
            assert member.differences() + member.leaks() == [], member.host.name


@contextmanager
def cluster(count: int, *args: str, family: int = 4) -> Iterator[Cluster]:
    """A cluster of so many hosts. `family`: of the underlay, that is, of the VTEPs."""
    with ExitStack() as stack:
        it = Cluster(stack, family)
        for _ in range(count):
            it.add(*args)
        yield it


def _forward(host: Host) -> None:
    host.run(["sh", "-ec", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"])


def refused(member: Member, *args: str) -> tuple[int, str]:
    """Return exit code and stderr of a command that fails."""
    try:
        member.cli(*args)
    except CommandError as exc:
        return exc.code, exc.stderr.strip()
    raise AssertionError(f"{' '.join(args)} succeeded")
