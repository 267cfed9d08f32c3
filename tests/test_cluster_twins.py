"""A host whose disk was copied: the copy is not admitted, says so, changes nothing, and has a way out."""

import asyncio
from concurrent.futures import Future
from pathlib import Path

import pytest
from clustered import Hosts, address_of, attach, create, detach, has, reaches
from etcd_server import Member, needs_etcd
from living import Living, until
from test_cli import Cli

from netplug.cli import NO, UNREACHABLE
from netplug.cluster.identity import Identity, Machine
from netplug.cluster.membership import Membership
from netplug.daemon.life import Daemon
from netplug.store.api import Put
from netplug.store.etcd import EtcdStore
from netplug.store.sqlite import SqliteStore

pytestmark = needs_etcd

LOST = 4711
"""A lease that the store does not know."""
HERE, THERE = {"machine-id": "aa", "product": "p"}, {"machine-id": "bb", "product": "p"}


def notes(host: Living) -> dict[str, list[str]]:
    return {one["name"]: one["notes"] for one in host.client.get("hosts")["hosts"]}


def whats(host: Living) -> list[str]:
    return [it["what"] for it in host.client.get("diff")["differences"]]


def shared(etcd: Member) -> dict[str, object]:
    """What the store has, less what only says who lives."""
    passing = ("cluster/alive/", "cluster/twins/", "cluster/stopped/", "cluster/marks/", "confirmed/", "fences/")
    return {key: value for key, value in etcd.records("").items() if not key.startswith(passing)}


@pytest.fixture
def two(hosts: Hosts) -> tuple[Living, Living]:
    one, other = hosts.start(1, marks=HERE), hosts.start(2)
    create(one)
    has(other)
    return one, other


@pytest.mark.parametrize("marks", [HERE, THERE], ids=["same-machine-id", "other-machine-id"])
def test_a_copy_is_refused_on_both_and_changes_nothing(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, marks: dict[str, str]
) -> None:
    one, other = two
    here = attach(one, name="web")
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    hosts.copy(1, 3)
    before = shared(etcd)
    copy = hosts.start(3, marks=marks, host_name="host-1")
    until(lambda: "a copy of this host runs at host-1 (192.0.2.3), and is not admitted" in whats(one), "said here")
    until(lambda: any("netplug host rebind" in it for it in whats(copy)), "it is said there, with a way out")
    for host in (one, other, copy):
        assert "a copy of this host runs at host-1 (192.0.2.3), and is not admitted" in notes(host)["host-1"]
    with pytest.raises(Exception, match="this host is not admitted to the cluster") as caught:
        attach(copy, "lab7")
    assert getattr(caught.value, "code", None) == UNREACHABLE
    with pytest.raises(Exception, match="this host is not admitted to the cluster"):
        create(copy, "red")
    hosts.look_again(copy)
    copy.client.post("repair")
    # What is its own alone works.
    copy.client.post("networks", body={"name": "own"})
    attach(copy, "lab8", "own")
    assert shared(etcd) == before
    reaches(other, f"{address_of(here)} at 192.0.2.1")
    # Nor does it slip in while the original's daemon is restarted.
    one.stop()
    hosts.look_again(copy)
    until(lambda: etcd.records("cluster/alive/").keys() == {f"cluster/alive/{ident(other)}"}, "one is away")
    copy.stop()
    copy = hosts.start(3, marks=marks, host_name="host-1")
    until(lambda: whats(copy), "it is still not admitted")
    assert shared(etcd) == before
    one = hosts.start(1, marks=HERE)
    late = attach(one, "lab2")
    reaches(other, f"{address_of(here)} at 192.0.2.1", f"{address_of(late)} at 192.0.2.1")
    copy.stop()
    until(lambda: whats(one) == [] and notes(one)["host-1"] == [], "it is over")


def ident(host: Living) -> str:
    return next(one["id"] for one in host.client.get("hosts")["hosts"] if one["me"])


def test_a_copy_without_its_state_is_a_host_of_its_own(
    two: tuple[Living, Living], hosts: Hosts, tmp_path: Path
) -> None:
    """The documented way out."""
    one, other = two
    here = attach(one)
    hosts.copy(1, 3)
    copy = hosts.start(3)
    until(lambda: whats(copy), "it is not admitted")
    copy.stop()
    for file in (tmp_path / "3" / "state").glob("netplug.db*"):
        file.unlink()
    copy = hosts.start(3)
    has(copy)
    until(lambda: set(notes(one)) == {"host-1", "host-2", "host-3"}, "it is a third")
    there = attach(copy)
    reaches(other, f"{address_of(here)} at 192.0.2.1", f"{address_of(there)} at 192.0.2.3")
    reaches(one, f"{address_of(there)} at 192.0.2.3")
    for host in (one, other, copy):
        until(lambda host=host: whats(host) == [], "no difference")  # type: ignore[misc]


def test_a_host_that_was_moved_is_bound_anew(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = two
    me, here = ident(one), attach(one)
    hosts.copy(1, 3)
    hosts.kernels[3] = hosts.kernels[1]
    one.stop()
    moved = hosts.start(3, marks=THERE, host_name="host-1", vtep="192.0.2.1")
    until(lambda: any("made on another machine" in it for it in whats(moved)), "it is not admitted")
    Cli(moved.settings.run_dir, capsys)("host", "rebind")
    until(lambda: whats(moved) == [], "it is")
    assert ident(moved) == me
    detach(moved)
    there = attach(moved, "lab2")
    reaches(other, f"{address_of(there)} at 192.0.2.1")
    assert here != there
    # The next life needs no word.
    moved.stop()
    moved = hosts.start(3, marks=THERE, host_name="host-1", vtep="192.0.2.1")
    attach(moved, "lab3")
    # And the original, should it come back, is the copy now.
    back = hosts.start(1, marks=HERE)
    until(lambda: whats(back), "it is not admitted")
    words = "this host is alive on another machine, or was less than 15 s ago (stop the daemon there first)"
    assert words in Cli(back.settings.run_dir, capsys)("host", "rebind", code=NO)


def test_a_life_that_has_just_ended_elsewhere_is_waited_for(
    two: tuple[Living, Living], hosts: Hosts, etcd: Member
) -> None:
    """A machine that lost power and boots quickly: its lease has not ended."""
    one, other = two
    key = f"cluster/alive/{ident(one)}"
    one.stop()
    etcd.write(key, {"place": "another boot", "refuses": []})
    one = hosts.start(1, marks=HERE)
    until(lambda: any("or did some seconds ago" in it for it in whats(one)), "it waits")
    etcd.delete(key)
    until(lambda: whats(one) == [], "it is let in")
    there = attach(one)
    reaches(other, f"{address_of(there)} at 192.0.2.1")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_life_that_ends_or_begins_while_the_next_begins_is_what_it_is(
    hosts: Hosts, etcd: Member, monkeypatch: pytest.MonkeyPatch, *, elsewhere: bool
) -> None:
    """A daemon is started some seconds after it died: the lease of the dead one ends. Or, a copy begins."""
    one = hosts.start(1)
    key = f"cluster/alive/{ident(one)}"
    left = etcd.records(key)[key]
    one.stop()
    etcd.write(key, left)
    grant, refuse, refused = EtcdStore.lease, Membership._report_refusal, list[str]()

    async def ends_first(store: EtcdStore, ttl_s: float) -> int:
        if etcd.records(key) == {key: left}:
            etcd.delete(key)
            if elsewhere:
                etcd.write(key, {"place": "another", "refuses": []})
        return await grant(store, ttl_s)

    async def noted(membership: Membership, why: str) -> None:
        refused.append(why)
        await refuse(membership, why)

    monkeypatch.setattr(EtcdStore, "lease", ends_first)
    monkeypatch.setattr(Membership, "_report_refusal", noted)
    one = hosts.start(1)
    if elsewhere:
        until(lambda: any("another daemon runs as this host" in it for it in refused), "it waits")
    else:
        assert one.do_and_get(lambda daemon: daemon.cluster.membership.admitted)
        assert refused == []


async def test_an_id_of_an_older_version_is_bound_where_it_is(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "netplug.db")
    await store.txn((), [Put("meta/host", {"id": "ab" * 16})])
    one = await Identity.load(store, Machine("here", HERE))
    assert (one.id, one.why) == ("ab" * 16, "")
    assert (await Identity.load(store, Machine("there", {**HERE, "later": "x"}))).why == ""
    assert "another machine" in (await Identity.load(store, Machine("here", THERE))).why
    # What cannot be read says nothing.
    assert (await Identity.load(store, Machine("here"))).why == ""
    await store.close()


def test_a_machine_is_the_same_at_each_look() -> None:
    assert Machine.read() == Machine.read()


def test_host_that_begins_anew_in_two_places_is_not_its_own_copy(hosts: Hosts, etcd: Member) -> None:
    """As after the store lost its data: who mends that and the beat find the lease gone at the same moment."""
    one = hosts.start(1)
    epoch = one.do_and_get(lambda daemon: daemon.cluster.membership.epoch)
    ended: list[Future[None]] = []

    def begin(daemon: Daemon) -> None:
        membership = daemon.cluster.membership
        membership._lease = LOST  # the store forgot it
        works = (membership.register(), membership.heartbeat(), membership.register())
        ended.extend(asyncio.run_coroutine_threadsafe(work, asyncio.get_running_loop()) for work in works)

    one.do_and_get(begin)
    for it in ended:
        it.result(10)
    assert one.do_and_get(lambda daemon: daemon.cluster.membership.admitted)
    assert one.do_and_get(lambda daemon: daemon.cluster.membership.epoch) == epoch + 2
    assert whats(one) == []
