"""The shared store keeps the promises of all stores, on a real etcd."""

import asyncio
import base64
import itertools
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from etcd_server import Member, needs_etcd, running, until

pytest.register_assert_rewrite("store_suite")

from store_suite import DEADLINE_S, Advance, Forget, Reopen, SharedStoreSuite, keys, put, take  # noqa: E402

from netplug.store.access import EtcdAccess  # noqa: E402
from netplug.store.api import Compare, Delete, Put, SharedStore, StoreError  # noqa: E402
from netplug.store.etcd import MAX_OPS, EtcdStore  # noqa: E402
from netplug.store.etcd_records import Message, b64  # noqa: E402

pytestmark = needs_etcd
PAGE = 20
_roots = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with running(tmp_path_factory.mktemp("etcd")) as (member,):
        yield member


class Holder:
    """The open stores of a test, below a root of their own."""

    def __init__(self, member: Member) -> None:
        self.access = EtcdAccess((member.host,))
        self.root = f"/test/{next(_roots)}/"
        self.stores: list[EtcdStore] = []

    async def open(self) -> EtcdStore:
        self.stores.append(await EtcdStore.open(self.access, root=self.root, page=PAGE))
        return self.stores[-1]

    async def reopen(self) -> SharedStore:
        await self.stores[-1].close()
        return await self.open()

    async def forget(self) -> None:
        revision = await put(self.stores[-1], "~forget")
        await self.stores[-1]._call("/v3/kv/compaction", {"revision": str(revision), "physical": True})

    async def end(self) -> None:
        """Delete all, so that no lease which ends later counts as a change in another test."""
        store = await self.open()
        start, end = store._records.span("")
        await store._call("/v3/kv/deleterange", {"key": b64(start), "range_end": b64(end)})
        for each in self.stores:
            await each.close()

    async def raw_put(self, key: bytes, value: bytes) -> None:
        """Write as another program would."""
        await self.stores[0]._call("/v3/kv/put", {"key": b64(self.root.encode() + key), "value": b64(value)})


@pytest_asyncio.fixture
async def holder(etcd: Member) -> AsyncIterator[Holder]:
    holder = Holder(etcd)
    await holder.open()
    yield holder
    await holder.end()


@pytest.fixture
def store(holder: Holder) -> SharedStore:
    return holder.stores[0]


@pytest.fixture
def reopen(holder: Holder) -> Reopen:
    return holder.reopen


@pytest.fixture
def advance() -> Advance:
    return asyncio.sleep  # etcd has no clock but the real one


@pytest.fixture
def forget(holder: Holder) -> Forget:
    return holder.forget


class TestEtcd(SharedStoreSuite):
    pass


async def test_four_stores_claim_fifty_keys_and_each_key_is_won_once(holder: Holder) -> None:
    stores = [await holder.open() for _ in range(4)]

    async def claim(n: int, store: EtcdStore) -> int | None:
        return await store.txn([Compare(f"ip/{n}", 0)], [Put(f"ip/{n}", {"by": stores.index(store)})])

    results = await asyncio.gather(*(claim(n, store) for n in range(50) for store in stores))
    won = [result for result in results if result is not None]
    assert len(won) == len(set(won)) == 50
    assert len(await keys(stores[0], "ip/")) == 50


async def test_a_range_of_several_pages_is_as_of_one_revision(holder: Holder) -> None:
    store = holder.stores[0]
    before = [f"a/{n:03}" for n in range(3 * PAGE + 1)]
    await store.txn([], [Put(key, {}) for key in before])
    call, seen = store._call, []

    async def writing_between(path: str, body: Message) -> Message:
        answer = await call(path, body)
        if path.endswith("range"):
            seen.append(answer)
            await call("/v3/kv/deleterange", {"key": b64(f"{holder.root}a/060".encode())})
        return answer

    store._call = writing_between  # type: ignore[method-assign]
    records, revision = await store.range("a/")
    assert len(seen) == 4
    assert ([record.key for record in records], revision) == (before, records[0].revision)


async def test_a_range_over_a_compaction_begins_anew(holder: Holder) -> None:
    store = holder.stores[0]
    await store.txn([], [Put(f"a/{n:03}", {}) for n in range(2 * PAGE)])
    call, compactions = store._call, itertools.count()

    async def compacting(path: str, body: Message) -> Message:
        answer = await call(path, body)
        if path.endswith("range") and next(compactions) < 2:
            store._call = call  # type: ignore[method-assign]
            await holder.forget()
            store._call = compacting  # type: ignore[method-assign]
        return answer

    store._call = compacting  # type: ignore[method-assign]
    records, _ = await store.range("a/")
    assert [record.key for record in records] == [f"a/{n:03}" for n in range(2 * PAGE)]
    assert next(compactions) > 2


async def test_a_transaction_has_as_many_operations_as_etcd_takes(holder: Holder) -> None:
    store = holder.stores[0]
    ops = [Put(f"a/{n}", {}) for n in range(MAX_OPS + 1)]
    await store.txn([], ops[:MAX_OPS])
    with pytest.raises(StoreError, match="129 operations and 0 comparisons; etcd takes 128 and 127"):
        await store.txn([], ops)
    assert len(await keys(store, "a/")) == MAX_OPS


async def test_a_record_that_is_too_large_is_refused(holder: Holder) -> None:
    with pytest.raises(StoreError, match="too large"):
        await put(holder.stores[0], "a", "x" * 2_000_000)


async def test_what_others_wrote_is_left_out_and_does_not_stop_the_rest(holder: Holder) -> None:
    store = holder.stores[0]
    _, start = await store.range("")
    watch = store.watch("", start)
    for value in (b"", b"text", b"[1]", b'{"value": 7, "txn": "x"}', b'{"txn": "x"}', b"\xff"):
        await holder.raw_put(b"alien", value)
        with pytest.raises(StoreError, match=r"alien' in etcd is not a record of netplug; delete it with etcdctl"):
            await store.get("alien")
    await holder.raw_put(b"\xff\xfe", b"{}")
    await put(store, "mine")
    assert await keys(store, "") == ["mine"]
    await store.txn([], [Delete("alien")])
    assert [(event.key, event.record is None) for event in await take(watch, 2)] == [("mine", False), ("alien", True)]


async def test_stores_with_other_roots_do_not_see_each_other(holder: Holder) -> None:
    other = await EtcdStore.open(holder.access, root=f"{holder.root[:-1]}0/")
    await put(other, "a")
    assert await keys(holder.stores[0], "") == []
    await other.txn([], [Delete("a")])
    await other.close()


async def test_records_can_be_read_by_eye(holder: Holder) -> None:
    await put(holder.stores[0], "a/ü", 1)
    answer = await holder.stores[0]._call("/v3/kv/range", {"key": b64(f"{holder.root}a/ü".encode())})
    envelope = json.loads(base64.b64decode(answer["kvs"][0]["value"]))
    assert envelope["value"] == {"v": 1}
    assert envelope.keys() == {"txn", "value"}


def watchers(member: Member) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{member.health_port}/metrics", timeout=2) as response:
        text = response.read().decode()
    found = re.search(r"^etcd_debugging_mvcc_watcher_total (\d+)$", text, re.MULTILINE)
    assert found
    return int(found[1])


async def test_a_watch_that_is_dropped_or_closed_is_none_for_the_server(holder: Holder, etcd: Member) -> None:
    store = holder.stores[0]
    _, start = await store.range("")
    await put(store, "a")
    watches = [store.watch("", start) for _ in range(3)]
    for watch in watches:
        await take(watch, 1)
    assert watchers(etcd) == 3
    del watch, watches[1:]
    await until(lambda: watchers(etcd) == 1)
    await store.close()
    await until(lambda: watchers(etcd) == 0)


async def test_a_watch_survives_the_time_out_of_one_reading(holder: Holder) -> None:
    store = holder.stores[0]
    _, start = await store.range("")
    watch = store.watch("a/", start)
    for n in range(40):
        reading = asyncio.ensure_future(anext(watch))
        for _ in range(n):  # at which turn it is cancelled is the subject
            await asyncio.sleep(0)
        reading.cancel()
        done = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
    for n in range(3):
        await put(store, f"a/{n}")
    assert [event.key for event in await take(watch, 3)] == ["a/0", "a/1", "a/2"]


async def test_an_idle_watch_reads_on_after_its_progress_was_checked(holder: Holder) -> None:
    store = await EtcdStore.open(holder.access, root=holder.root, progress_s=0.02)
    _, start = await store.range("")
    watch = store.watch("", start)
    reading = asyncio.ensure_future(take(watch, 1))
    asked, once = asyncio.Semaphore(0), store._gateway.once

    async def counting(url: str, path: str, data: bytes, limit_s: float | None = None) -> Message:
        asked.release()
        return await once(url, path, data, limit_s)

    store._gateway.once = counting  # type: ignore[method-assign]
    for _ in range(3):
        async with asyncio.timeout(DEADLINE_S):
            await asked.acquire()
    await holder.stores[0].txn([], [Put("a", {})])
    assert [event.key for event in await reading] == ["a"]
    await store.close()
