"""A host that lost power, and a database that is damaged: it starts, or says how; what runs keeps its network.

`NETPLUG_POWER_CUTS=50 pytest integration/test_store_damage.py` copies the state at more moments.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from harness import CommandError, Host, Namespace, Netplug, Stream, wait_until

NewHost = Callable[..., Host]
POWER_CUTS = int(os.environ.get("NETPLUG_POWER_CUTS", "4"))
HEAL_S = 30
FILES = ("netplug.db", "netplug.db-wal", "netplug.db-copy", "netplug.db-shm")


def store(host: Host, netplug_dir: Path, command: str) -> str:
    """Run `netplug store` while no daemon runs; return what it printed."""
    return host.run([str(Netplug.executable), "store", command], env={"NETPLUG_STATE_DIR": str(netplug_dir)}).stdout


def started(host: Host) -> tuple[Netplug, str]:
    """Start a daemon on the state that there is; restore it where that is what the daemon says. Say which it was."""
    try:
        return Netplug(host), "opened"
    except RuntimeError as exc:
        if "'netplug store restore'" not in str(exc) or "Traceback" in str(exc):
            raise
    store(host, host.dir / "netplug", "restore")
    return Netplug(host), "restored"


@contextmanager
def churn(netplug: Netplug) -> Iterator[None]:
    """Attach and detach namespaces all the time."""
    over = Event()

    def work(_: int) -> None:
        place = Namespace(netplug.host)
        while not over.is_set():
            place.attach(netplug, "blue")
            place.detach(netplug, "blue")
        place.remove()

    with ThreadPoolExecutor(2) as pool:
        done = pool.map(work, range(2))
        try:
            yield
        finally:
            over.set()
        assert list(done) == [None, None]


@pytest.mark.timeout(120 + 20 * POWER_CUTS)
def test_a_host_that_lost_power_has_its_networks_and_nothing_half_done(new_host: NewHost) -> None:
    netplug = Netplug(new_host())
    netplug.cli("network", "create", "blue", "--subnet", "10.96.0.0/24")
    rand, copies = random.Random(os.environ.get("NETPLUG_TORN_SEED", "5")), []  # noqa: S311
    with churn(netplug):
        wait_until((netplug.state_dir / "netplug.db-copy").exists, HEAL_S, "the copy")
        for number in range(POWER_CUTS):
            folder = netplug.host.dir / f"cut{number}"
            folder.mkdir()
            names = list(FILES[: 4 - number % 2])  # a power cut leaves no index of the log; a backup may
            rand.shuffle(names)
            time.sleep(rand.random())  # the moment is random; nothing is waited for
            for name in names:
                if (file := netplug.state_dir / name).exists():
                    shutil.copyfile(file, folder / name)
            copies.append(folder)
    outcomes = []
    for folder in copies:
        with Host("booted") as host:
            shutil.copytree(folder, host.dir / "netplug")
            late, how = started(host)
            outcomes.append(how)
            late.cli("repair")
            wait_until(lambda late=late: late.json("ps") == [], HEAL_S, "the former endpoints are gone")  # type: ignore[misc]
            assert [net["name"] for net in late.json("network", "ls")] == ["blue"]
            place = Namespace(host)
            place.attach(late, "blue")
            assert place.pings("10.96.0.1")
            place.detach(late, "blue")
            assert (late.drift(), late.json("ipam", "audit")) == ("", [])
    assert len(outcomes) == POWER_CUTS
    print(f"{outcomes.count('opened')} opened, {outcomes.count('restored')} restored of {POWER_CUTS}")


def overwrite(path: Path) -> None:
    """Overwrite the pages behind the first one, as a failing disk may."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(max(path.stat().st_size - 2 * 4096, 4096)))


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [overwrite, empty])
def test_what_runs_keeps_its_network_while_a_damaged_database_is_restored(
    new_host: NewHost, damage: Callable[[Path], None]
) -> None:
    host = new_host()
    netplug = Netplug(host)
    netplug.cli("network", "create", "blue", "--subnet", "10.96.0.0/24")
    one, two, late = Namespace(host), Namespace(host), Namespace(host)
    for it in (one, two):
        it.attach(netplug, "blue", "--name", "one" if it is one else "two")
    database = netplug.state_dir / "netplug.db"
    names = {it["name"] for it in netplug.json("ps")}
    # The daemon copies what changed at its next look; the last endpoint is not in the copy.
    netplug.restart()
    wait_until(lambda: "2 endpoints" in store(host, netplug.state_dir, "check").splitlines()[1], HEAL_S, "the copy")
    late.attach(netplug, "blue", "--name", "late")
    with Stream(one, two, two.addresses[0]) as stream, Stream(one, late, late.addresses[0], port=7001) as other:
        netplug.stop()
        damage(database)
        with pytest.raises(RuntimeError, match=r"netplug\.db is damaged.*'netplug store restore'") as caught:
            netplug.start()
        assert "Traceback" not in str(caught.value)
        with pytest.raises(CommandError, match="netplug store restore") as told:
            store(host, netplug.state_dir, "check")
        assert told.value.code == 1
        said = store(host, netplug.state_dir, "restore")
        assert "1 network and 2 endpoints" in said
        netplug.start()
        assert {it["name"] for it in netplug.json("ps")} == names
        # Of the last one there is no record, but it runs: it stays, and is shown, until somebody says otherwise.
        wait_until(lambda: "belongs to no record" in netplug.drift(), HEAL_S, "it is shown")
        assert "the records were restored, or their disk failed, at" in netplug.drift()
        netplug.restart()
        assert late.pings(one.addresses[0])
    assert (stream.lost, stream.sent > 100) == ([], True)
    assert (other.lost, other.sent > 100) == ([], True)
    late.remove()
    netplug.cli("repair")
    assert netplug.drift() == ""
    for it in (one, two):
        it.detach(netplug, "blue")
        it.remove()
    netplug.cli("network", "rm", "blue")
    assert netplug.json("ipam", "ls") == []
