"""A `Scene` whose host is part of a cluster: beside it there are a real etcd and another host that follows all.

The picture then has what the other host's kernel has of this one, and the keys of all records in etcd.
"""

import shutil
from contextlib import ExitStack, suppress

from netplug.cli import CliError
from netplug.cluster.recovery import SEEN

from .cluster import Cluster, Member
from .crash_scene import NO_DOCKER, Scene
from .host import CommandError, Host
from .netplugd import Netplug
from .snapshot import Snapshot, snapshot
from .wait import wait_until

THERE = ("links", "neighbours", "fdb", "nftables")
MEANT_TO_STAY = ("cluster/marks/", "confirmed/")
"""How new the store is, by which each host sees that it was restored; what hosts have applied of others' endpoints, of
which only who attaches one reads, while it waits.
"""
THIRD = ("--ip", "10.80.0.77", "--ip", "fd00:80::77")
NETWORKS = "cluster/networks/"
_FOLLOWING_S = 20


class ClusterScene(Scene):
    """One host of a cluster. `there`: the other one."""

    def __init__(self, stack: ExitStack) -> None:
        self._cluster = Cluster(stack)
        self.there: Member = self._cluster.add()
        host, self._wire = self._cluster.prepare()
        self._third: Member | None = None
        self._defined: dict[str, str] = {}
        super().__init__(
            host,
            *("--store", self._cluster.etcd.url, *NO_DOCKER),
            *("--vtep", self._wire.left, "--host-name", host.name),
        )

    def _prepare(self) -> None:
        self.host.run(["sh", "-ec", "ip netns add web; ip -n web link set lo up"])

    def _words(self) -> dict[str, str]:
        """Name the networks by their ids in the cluster, too: Docker has them by others."""
        return super()._words() | self._defined

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All hosts, whose names differ from run to run."""
        return (self.host, self.there.host, *((self._third.host,) if self._third else ()))

    def named(self, taken: Snapshot) -> Snapshot:
        """Replace what differs from one cluster to another, too."""
        words = {it["id"]: f"<{it['name']}>" for it in self.there.netplug.client.get("hosts")["hosts"]}
        found = {}
        for section, lines in super().named(taken).items():
            text = "\n".join(lines)
            for ident, word in words.items():
                text = text.replace(ident, word)
            for number, host in enumerate(self.hosts):
                text = text.replace(host.name, f"HOST{number}")
            found[section] = tuple(sorted(text.splitlines())) if "tables" not in section else tuple(text.splitlines())
        return found

    def followed(self) -> None:
        """Wait until the other host has the networks that this one has, which may be building them still."""

        def names(member: Netplug) -> set[str]:
            return {it["name"] for it in member.client.get("networks")["networks"]}

        def same() -> bool:
            try:
                here = names(self.netplug)
            except CliError as error:  # it died at work that goes on after its answer
                self._died(error)
                raise
            return names(self.there.netplug) == here

        wait_until(same, _FOLLOWING_S, "the other host follows")

    # Members that come and go

    def leave(self) -> None:
        """End this host's daemon, have the other forget it, and lose its state: it is as a new machine."""
        if self.netplug.running:
            self.netplug.kill()
        self._bury(self.host.name)
        shutil.rmtree(self.netplug.state_dir, ignore_errors=True)

    def third_dies(self) -> None:
        """Have a third host with an endpoint that has been dead for long."""
        if self._third is None:
            self._third = self._cluster.add()
            self._third.host.run(["ip", "netns", "add", "far"])
        elif not self._third.netplug.running:
            self._third.netplug.start()
        third = self._third
        wait_until(lambda: third.has("blue"), _FOLLOWING_S, "the third has the network")
        with suppress(CommandError):  # it has not forgotten
            third.cli("attach", "blue", "--netns", "far", "--name", "far", *THIRD)
        wait_until(lambda: "far" in self.there.cli("ps"), _FOLLOWING_S, "the third is known")
        third.netplug.kill()
        self._pronounce_dead(third.host.name)

    def forget_third(self) -> None:
        """Forget the third host."""
        assert self._third
        self.api("DELETE", "hosts", self._third.host.name, already="no host")

    def _bury(self, name: str) -> None:
        """Have all records of a dead host deleted."""
        self._pronounce_dead(name)
        with suppress(CommandError):
            self.there.cli("host", "forget", name)

    def _pronounce_dead(self, name: str) -> None:
        """Have deleted now what etcd deletes when a host's lease ends."""
        etcd = self._cluster.etcd
        for it in self.there.netplug.client.get("hosts")["hosts"]:
            if it["name"] == name:
                for kind in ("alive", "stopped"):
                    etcd.delete(f"cluster/{kind}/{it['id']}")

    # Looking

    def settle(self) -> None:
        """Wait for the mark that each start writes in etcd."""
        if self.netplug.running:
            wait_until(lambda: SEEN in self.records(), _FOLLOWING_S, "the mark is written")

    def take(self) -> Snapshot:
        """Return all that there is, here and there."""
        mine = self.look()
        there = snapshot(self.there.host)
        records = self._cluster.etcd.records()
        self._defined = {
            key.removeprefix(NETWORKS): f"<{it['name']}>" for key, it in records.items() if key.startswith(NETWORKS)
        }
        shared = [key for key in records if not key.startswith(MEANT_TO_STAY)]
        theirs = {f"there: {name}": there[name] for name in THERE}
        return self.named(mine | theirs | {"etcd": tuple(sorted(shared))})
