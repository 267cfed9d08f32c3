"""Disks that are full or can only be read: what runs goes on, what cannot be is refused in words, and it heals.

The state directory is on a small disk of its own. Containers are bare namespaces, with names and a published port.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

import pytest
from harness import CommandError, Host, Namespace, Netplug, Stream, links_are_gone, wait_until
from harness.volume import Disk, Volume

NewHost = Callable[..., Host]
REFUSED_S = 10
"""A refusal is immediate; CI is slow."""
HEAL_S = 30
"""The store is looked at every 5 s."""
FULL = "cannot grow: the disk is full"


@dataclass
class Place:
    """A host with a small disk, and what runs on it."""

    host: Host
    volume: Volume | Disk
    netplug: Netplug
    running: list[Namespace] = field(default_factory=list)

    @property
    def faults(self) -> str:
        return str(self.netplug.client.get("diff")["differences"])

    def refusal(self, *args: str) -> str:
        """Run a command that is refused for want of a store, and return the words."""
        began = time.monotonic()
        with pytest.raises(CommandError) as caught:
            self.netplug.cli(*args)
        assert time.monotonic() - began < REFUSED_S
        assert caught.value.code == 3, caught.value
        said = caught.value.stderr.strip()
        assert len(said.splitlines()) == 1
        assert "Traceback" not in self.netplug.log.read_text()
        return said

    def serves(self) -> bool:
        """Whether names and ports of what runs are served."""
        one, other = self.running[:2]
        asked = one.exec("busybox", "nslookup", "-type=a", "two.blue.netplug.internal", "10.97.0.1")
        return other.addresses[0] in asked and one.pings(other.addresses[0])

    def all_well(self) -> None:
        """Wait until nothing differs, and connect and disconnect one more."""
        wait_until(lambda: self.faults == "[]", HEAL_S, "no difference")
        late = Namespace(self.host)
        late.attach(self.netplug, "blue")
        assert self.running[0].pings(late.addresses[0])
        late.detach(self.netplug, "blue")
        late.remove()


def small(host: Host) -> Volume:
    return Volume(host, host.dir / "netplug")


@contextmanager
def running(host: Host, volume: Volume | Disk, netplug: Netplug) -> Iterator[Place]:
    """Two namespaces in a network; and at the end nothing is left of either."""
    place = Place(host, volume, netplug)
    netplug.cli("network", "create", "blue", "--subnet", "10.97.0.0/24")
    for name in ("one", "two"):
        it = Namespace(host)
        it.attach(netplug, "blue", "--name", name, "--publish", f"127.0.0.1:80{len(name)}{len(place.running)}:80")
        place.running.append(it)
    yield place
    for it in place.running:
        it.detach(netplug, "blue")
        it.remove()
    netplug.cli("network", "rm", "blue")
    assert netplug.json("ps") == []
    assert netplug.json("ipam", "ls") == []
    links_are_gone(host)


def test_a_start_on_a_full_disk_says_so_and_leaves_nothing_in_the_way(new_host: NewHost) -> None:
    host = new_host()
    volume = small(host)
    volume.fill()
    with pytest.raises(RuntimeError, match=FULL) as caught:
        Netplug(host)
    assert "Traceback" not in str(caught.value)
    volume.empty()
    with running(host, volume, Netplug(host)) as place:
        place.all_well()


def test_on_a_full_disk_what_runs_goes_on_and_can_be_ended(new_host: NewHost) -> None:
    host = new_host()
    volume = small(host)
    with running(host, volume, Netplug(host)) as place:
        netplug = place.netplug
        others = [Namespace(host) for _ in range(8)]
        for it in others:
            it.attach(netplug, "blue")
        one, two = place.running
        with Stream(one, two, two.addresses[0]) as stream:
            volume.fill()
            new = Namespace(host)
            for args in (
                ("network", "create", "red"),
                ("attach", "blue", "--netns", new.name),
                ("attach", "blue", "--netns", new.name, "--publish", "99:99"),
            ):
                assert FULL in place.refusal(*args)
            assert place.serves()
            for it in others:
                it.detach(netplug, "blue")
            assert FULL in place.refusal("attach", "blue", "--netns", new.name)
            wait_until(lambda: FULL in place.faults, HEAL_S, "diff says so")
            assert "store" in netplug.cli("events")
            # It starts again, also after a crash; and what is new is refused all the same.
            for end in (netplug.kill, netplug.stop):
                end()
                volume.fill()
                netplug.start()
                assert place.serves()
                assert FULL in place.refusal("attach", "blue", "--netns", new.name)
            assert new.exec("ip", "-o", "link").count("\n") == 0
            volume.empty()
            place.all_well()
            new.remove()
        assert (stream.lost, stream.sent > 100) == ([], True)


def test_a_disk_that_can_only_be_read_is_read_and_later_written(new_host: NewHost) -> None:
    host = new_host()
    volume = small(host)
    with running(host, volume, Netplug(host)) as place:
        netplug = place.netplug
        one, two = place.running
        with Stream(one, two, two.addresses[0]) as stream:
            for end, lost in ((netplug.stop, ""), (netplug.kill, ""), (netplug.kill, "netplug.db-shm")):
                end()
                if lost:
                    (volume.seen / lost).unlink()
                volume.read_only()
                netplug.start()
                assert place.serves()
                assert len(netplug.json("ps")) == 2
                new = Namespace(host)
                for args in (("network", "create", "red"), ("attach", "blue", "--netns", new.name)):
                    assert "cannot be written" in place.refusal(*args)
                new.remove()
                wait_until(lambda: "netplug.db can" in place.faults, HEAL_S, "diff says so")
                volume.read_only(is_so=False)
                place.all_well()
        assert (stream.lost, stream.sent > 100) == ([], True)


@pytest.mark.skipif(
    not (Path("/dev/loop-control").exists() and which("mkfs.ext4")), reason="needs loop devices and mkfs.ext4"
)
def test_a_disk_that_fails_under_the_daemon_takes_nothing_from_what_runs(new_host: NewHost) -> None:
    host = new_host()
    disk = Disk(host, host.dir / "netplug")
    with running(host, disk, Netplug(host)) as place:
        netplug = place.netplug
        one, two = place.running
        with Stream(one, two, two.addresses[0]) as stream:
            disk.fail()
            new = Namespace(host)
            assert "netplug.db cannot be" in place.refusal("attach", "blue", "--netns", new.name)
            assert place.serves()
            wait_until(lambda: "netplug.db cannot be" in place.faults, HEAL_S, "diff says so")
            netplug.restart()
            assert place.serves()
            assert "cannot be written" in place.refusal("attach", "blue", "--netns", new.name)
            netplug.stop()
            disk.mend()
            netplug.start()
            # What had not come to the disk is lost with it, but runs: it stays until somebody asks.
            wait_until(lambda: "or their disk failed" in place.faults, HEAL_S, "diff says so")
            netplug.restart()
            assert one.pings(two.addresses[0])
        assert (stream.lost, stream.sent > 100) == ([], True)
        known = {it["sandbox"].rpartition("/")[2] for it in netplug.json("ps")}
        for it in (new, *(it for it in place.running if it.name not in known)):
            it.remove()
        place.running = [it for it in place.running if it.name in known]
        netplug.cli("repair")
        wait_until(lambda: place.faults == "[]", HEAL_S, "no difference")
        late = Namespace(host)
        late.attach(netplug, "blue")
        assert late.pings("10.97.0.1")
        late.detach(netplug, "blue")
        late.remove()


class LogOnVolume(Netplug):
    """A daemon whose log is on the small disk too."""

    def command(self) -> list[str]:
        log = self.state_dir / "netplug.log"
        return ["sh", "-c", f'exec "$@" 2>>{log}', "sh", *super().command()]


def test_a_log_that_cannot_be_written_stops_nothing(new_host: NewHost) -> None:
    host = new_host()
    volume = small(host)
    with running(host, volume, LogOnVolume(host)) as place:
        extra = Namespace(host)
        extra.attach(place.netplug, "blue")
        volume.fill()
        (volume.seen / "netplug.log").write_text("")  # the block that it had is another's
        extra.detach(place.netplug, "blue")
        assert FULL in place.refusal("attach", "blue", "--netns", extra.name)
        assert place.serves()
        place.netplug.restart()
        assert place.serves()
        volume.empty()
        place.all_well()
        extra.remove()


def test_resolv_conf_on_a_full_disk_stays_as_it_is(new_host: NewHost) -> None:
    """It is a mount, as in a container: it cannot be replaced, only written."""
    host = new_host()
    disk = Volume(host, host.dir / "etc", size_kb=16)
    netplug = Netplug(host)
    text = "nameserver 10.255.255.53\n" + "# as it was\n" * 335  # nearly a page
    conf = disk.folder / "resolv.conf"
    host.path(conf).write_text(text)
    disk.fill()
    host.run(["mount", "--bind", str(conf), str(Path("/etc/resolv.conf").resolve())])
    with pytest.raises(CommandError, match="no space left on device"):
        netplug.cli("dns", "host", "on")
    assert host.path("/etc/resolv.conf").read_text() == text
    disk.empty()
    netplug.cli("dns", "host", "on")
    assert "netplug" in host.path("/etc/resolv.conf").read_text()
    netplug.cli("dns", "host", "off")
    assert host.path("/etc/resolv.conf").read_text() == text
    with suppress(CommandError):
        netplug.stop()
