"""What every store promises, and what one that hosts share promises beside that; subclassed once a store.

A subclass's module provides fixtures: `store` (empty, open); `reopen`, an async callable that closes the store and
opens it on the same data. For `SharedStoreSuite` also `advance`, an async callable that lets so many seconds pass for
leases; and `forget`, an async callable that makes the store forget all events up to now.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from netplug.store.api import Compacted, Compare, Delete, Event, Put, SharedStore, Store, StoreError

Reopen = Callable[[], Awaitable[Any]]
Advance = Callable[[float], Awaitable[None]]
Forget = Callable[[], Awaitable[None]]
DEADLINE_S = 20


async def take(watch: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(watch) for _ in range(count)]


async def put(store: Store, key: str, value: object = None, lease: int | None = None) -> int:
    revision = await store.txn([], [Put(key, {"v": value}, lease)])
    assert revision is not None
    return revision


async def keys(store: Store, prefix: str) -> list[str]:
    records, _ = await store.range(prefix)
    return [record.key for record in records]


class StoreSuite:
    async def test_an_absent_key_has_no_record(self, store: Store) -> None:
        assert await store.get("a") is None

    async def test_a_record_is_read_as_it_was_put(self, store: Store) -> None:
        value = {
            "n": None,
            "t": True,
            "i": 2**53 - 1,
            "f": 0.5,
            "s": "ü\x00\n\U0001f600",
            "l": [1, [], {}],
            "o": {"": ""},
        }
        revision = await store.txn([], [Put("a", value)])
        record = await store.get("a")
        assert record is not None
        assert (record.key, record.value, record.revision) == ("a", value, revision)

    async def test_a_value_is_copied_before_the_transaction_waits(self, store: Store) -> None:
        value = {"v": [1]}
        task = asyncio.ensure_future(store.txn([], [Put("a", value)]))
        await asyncio.sleep(0)  # it has begun, and waits
        value["v"].append(2)
        await task
        record = await store.get("a")
        assert record is not None
        assert record.value == {"v": [1]}
        record.value["v"] = 3
        again = await store.get("a")
        assert again is not None
        assert again.value == {"v": [1]}

    async def test_a_value_of_one_megabyte_is_kept(self, store: Store) -> None:
        await put(store, "big", "x" * 1_000_000)
        record = await store.get("big")
        assert record is not None
        assert record.value == {"v": "x" * 1_000_000}

    async def test_a_value_that_is_not_json_is_refused(self, store: Store) -> None:
        for bad in (object(), float("nan"), b"x"):
            with pytest.raises(StoreError, match="'a'"):
                await put(store, "a", bad)
        assert await store.get("a") is None

    async def test_an_empty_or_broken_key_is_refused(self, store: Store) -> None:
        for bad in ("", "\ud800"):
            with pytest.raises(StoreError):
                await put(store, bad)
            with pytest.raises(StoreError):
                await store.get(bad)

    async def test_a_range_ends_where_its_prefix_ends(self, store: Store) -> None:
        for key in ("a", "a/", "a/1", "a/2", "a/\U0010ffff", "a0", "b", "A"):
            await put(store, key)
        assert await keys(store, "a/") == ["a/", "a/1", "a/2", "a/\U0010ffff"]
        assert await keys(store, "a") == ["a", "a/", "a/1", "a/2", "a/\U0010ffff", "a0"]
        assert await keys(store, "c") == []

    async def test_an_empty_prefix_is_all_in_the_order_of_bytes(self, store: Store) -> None:
        every = ["\x01", "\t", " ", "%", "'", "*", "A", "_", "a", "a\x00", "a\x00b", "é", "ÿ", "\ue000", "\U0001f600"]
        for key in reversed(every):
            await put(store, key)
        assert await keys(store, "") == sorted(every, key=str.encode)
        for key in every:
            assert key in await keys(store, key)
        assert await keys(store, "ÿ") == ["ÿ"]
        assert await keys(store, "%") == ["%"]

    async def test_a_range_tells_the_revision_it_is_as_of(self, store: Store) -> None:
        await put(store, "a/1")
        last = await put(store, "b")
        records, revision = await store.range("a/")
        assert len(records) == 1
        assert revision == last

    async def test_each_transaction_that_changes_something_raises_the_revision_by_one(self, store: Store) -> None:
        revisions = [await put(store, "a", n) for n in range(5)]
        assert all(after == before + 1 for before, after in pairwise(revisions))
        both = await store.txn([], [Put("a", {}), Put("b", {})])
        records, revision = await store.range("")
        assert both == revision == revisions[-1] + 1
        assert {record.revision for record in records} == {both}

    async def test_a_transaction_that_changes_nothing_leaves_the_revision(self, store: Store) -> None:
        revision = await put(store, "a")
        assert await store.txn([], [Delete("absent")]) == revision
        assert await store.txn([Compare("a", revision)], []) == revision
        assert await store.range("") == ([await store.get("a")], revision)

    async def test_a_deleted_key_is_gone(self, store: Store) -> None:
        revision = await put(store, "a")
        assert await store.txn([], [Delete("a")]) == revision + 1
        assert await store.get("a") is None
        assert await store.txn([Compare("a", 0)], [Put("a", {})]) == revision + 2

    async def test_one_failed_comparison_stops_all_operations(self, store: Store) -> None:
        first = await put(store, "a", 1)
        second = await put(store, "b", 2)
        ops = [Put("a", {"v": 3}), Delete("b"), Put("c", {})]
        for compares in (
            [Compare("a", first), Compare("b", first)],
            [Compare("a", 0)],
            [Compare("absent", 1)],
            [Compare("a", first), Compare("b", 0)],
        ):
            assert await store.txn(compares, ops) is None
        records, revision = await store.range("")
        assert [record.value for record in records] == [{"v": 1}, {"v": 2}]
        assert revision == second
        assert await store.txn([Compare("a", first), Compare("b", second), Compare("c", 0)], ops) == second + 1
        assert await keys(store, "") == ["a", "c"]

    async def test_a_comparison_holds_for_later_revisions_too_if_asked_so(self, store: Store) -> None:
        first = await put(store, "a")
        second = await put(store, "a")
        assert second > first
        for revision, holds in ((first, True), (second, True), (second + 1, False)):
            done = await store.txn([Compare("a", revision, at_least=True)], [Put("b", {})])
            assert (done is not None) is holds
        assert await store.txn([Compare("absent", 1, at_least=True)], [Put("b", {})]) is None

    async def test_two_operations_on_one_key_are_refused(self, store: Store) -> None:
        for ops in ([Put("a", {}), Put("a", {"v": 1})], [Put("a", {}), Delete("a")], [Delete("a"), Put("a", {})]):
            with pytest.raises(StoreError, match="one key"):
                await store.txn([], [Put("b", {}), *ops])
        assert await keys(store, "") == []

    async def test_of_fifty_who_create_a_key_one_wins(self, store: Store) -> None:
        results = await asyncio.gather(*(store.txn([Compare("claim", 0)], [Put("claim", {"v": n})]) for n in range(50)))
        winners = [n for n, result in enumerate(results) if result is not None]
        record = await store.get("claim")
        assert record is not None
        assert [record.value] == [{"v": n} for n in winners]

    async def test_concurrent_counting_loses_nothing(self, store: Store) -> None:
        async def count() -> None:
            done = None
            while done is None:
                record = await store.get("n")
                value, revision = (record.value["v"], record.revision) if record else (0, 0)
                assert isinstance(value, int)
                done = await store.txn([Compare("n", revision)], [Put("n", {"v": value + 1})])

        await asyncio.gather(*(count() for _ in range(8)))
        record = await store.get("n")
        assert record is not None
        assert record.value == {"v": 8}

    async def test_durable_transactions_do_the_same(self, store: Store) -> None:
        assert await store.txn([Compare("a", 0)], [Put("a", {})], durable=True) is not None
        assert await store.txn([Compare("a", 0)], [Put("a", {})], durable=True) is None

    async def test_records_and_revisions_outlive_a_restart(self, store: Store, reopen: Reopen) -> None:
        await store.txn([], [Put("a", {"v": 1})], durable=True)
        last = await put(store, "b", 2)
        before = await store.range("")
        store = await reopen()
        assert await store.range("") == before
        assert await put(store, "c") == last + 1

    async def test_a_cancelled_transaction_is_whole_and_the_next_one_works(self, store: Store) -> None:
        for n in range(20):
            task = asyncio.ensure_future(store.txn([], [Put(f"a/{n}", {}), Put(f"b/{n}", {})]))
            for _ in range(n % 4):  # at which turn it is cancelled is the subject
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await put(store, "c")
        assert [key[2:] for key in await keys(store, "a/")] == [key[2:] for key in await keys(store, "b/")]

    async def test_a_closed_store_refuses_everything(self, store: Store) -> None:
        await store.close()
        for call in (lambda: store.get("a"), lambda: store.range(""), lambda: store.txn([], [])):
            with pytest.raises(StoreError, match="closed"):
                await call()

    async def test_closing_finishes_what_was_begun(self, store: Store, reopen: Reopen) -> None:
        writing = [asyncio.ensure_future(put(store, f"a/{n}")) for n in range(10)]
        await asyncio.sleep(0)  # they have begun
        await store.close()
        await asyncio.gather(*writing)
        store = await reopen()
        assert len(await keys(store, "a/")) == 10


class SharedStoreSuite(StoreSuite):
    """What a store that hosts share promises beside that."""

    ttl_s = 2.0
    """Of leases; an etcd counts whole seconds."""

    async def test_a_watch_from_the_past_yields_what_was_in_order(self, store: SharedStore) -> None:
        start = await put(store, "a/0")
        second = await store.txn([], [Put("a/2", {"v": 2}), Put("a/1", {"v": 1}), Put("b", {})])
        third = await store.txn([], [Delete("a/2"), Delete("absent")])
        events = await take(store.watch("a/", start), 3)
        assert {(event.key, event.revision) for event in events[:2]} == {("a/1", second), ("a/2", second)}
        assert all(event.record and event.record.revision == second for event in events[:2])
        assert events[2] == Event("a/2", None, third or 0)
        assert await take(store.watch("a/", second or 0), 1) == events[2:]

    async def test_a_watch_goes_on_live_without_gap(self, store: SharedStore) -> None:
        _, start = await store.range("")
        await asyncio.gather(*(put(store, f"a/{n}", n) for n in range(10)))
        watch = store.watch("a/", start)
        writing = asyncio.gather(*(put(store, f"{'ab'[n % 2]}/{n}", n) for n in range(10, 60)))
        events = await take(watch, 35)
        await writing
        assert [event.revision for event in events] == sorted({event.revision for event in events})
        assert {event.key for event in events} == set(await keys(store, "a/"))
        assert all(event.record and event.record.key == event.key for event in events)

    async def test_several_watches_see_the_same(self, store: SharedStore) -> None:
        _, start = await store.range("")
        watches = [store.watch("", start) for _ in range(5)]
        taking = [asyncio.ensure_future(take(watch, 20)) for watch in watches]
        for n in range(20):
            await put(store, f"k{n % 3}", n)
        first, *others = await asyncio.gather(*taking)
        assert all(other == first for other in others)

    async def test_a_watch_sees_only_its_prefix(self, store: SharedStore) -> None:
        start = await put(store, "a")
        watch = store.watch("a/", start)
        for key in ("a", "a0", "A/", "a/x"):
            await put(store, key)
        assert [event.key for event in await take(watch, 1)] == ["a/x"]

    async def test_an_event_cannot_be_changed_for_another_watch(self, store: SharedStore) -> None:
        _, start = await store.range("")
        await put(store, "a", 1)
        (event,) = await take(store.watch("a", start), 1)
        assert event.record is not None
        event.record.value["v"] = 2
        (other,) = await take(store.watch("a", start), 1)
        assert other.record is not None
        assert other.record.value == {"v": 1}

    async def test_a_watch_resumes_after_a_restart(self, store: SharedStore, reopen: Reopen) -> None:
        start = await put(store, "a/0")
        await put(store, "a/1")
        store = await reopen()
        await put(store, "a/2")
        assert [event.key for event in await take(store.watch("a/", start), 2)] == ["a/1", "a/2"]

    async def test_a_watch_from_what_is_forgotten_is_compacted(self, store: SharedStore, forget: Forget) -> None:
        start = await put(store, "a", 1)
        await put(store, "a", 2)
        await forget()
        with pytest.raises(Compacted):
            await take(store.watch("a", start), 1)
        _, now = await store.range("")
        watch = store.watch("a", now)
        await put(store, "a", 3)
        (event,) = await take(watch, 1)
        assert event.record is not None
        assert event.record.value == {"v": 3}

    async def test_an_idle_watch_is_not_compacted_by_others_changes(self, store: SharedStore, forget: Forget) -> None:
        _, start = await store.range("")
        watch = store.watch("mine/", start)
        taking = asyncio.ensure_future(take(watch, 1))
        await asyncio.sleep(0)  # it has begun; so below
        await put(store, "mine/1")
        assert [event.key for event in await taking] == ["mine/1"]
        taking = asyncio.ensure_future(take(watch, 1))
        await asyncio.sleep(0)
        await forget()
        await put(store, "mine/2")
        assert [event.key for event in await taking] == ["mine/2"]

    async def test_a_lease_that_ends_deletes_its_records(self, store: SharedStore, advance: Advance) -> None:
        lease = await store.lease(self.ttl_s)
        await put(store, "a/1", lease=lease)
        await put(store, "a/2", lease=lease)
        start = await put(store, "a/3")
        watch = store.watch("a/", start)
        assert await keys(store, "a/") == ["a/1", "a/2", "a/3"]
        await advance(self.ttl_s * 2)
        events = await take(watch, 2)
        assert {(event.key, event.record) for event in events} == {("a/1", None), ("a/2", None)}
        assert await keys(store, "a/") == ["a/3"]

    async def test_a_lease_that_is_kept_alive_stays(self, store: SharedStore, advance: Advance) -> None:
        lease = await store.lease(self.ttl_s)
        await put(store, "a", lease=lease)
        for _ in range(3):
            await advance(self.ttl_s * 0.6)
            assert await store.keep_alive(lease) is True
        assert await keys(store, "") == ["a"]

    async def test_an_ended_lease_cannot_be_kept_alive_or_used(self, store: SharedStore, advance: Advance) -> None:
        lease = await store.lease(self.ttl_s)
        await advance(self.ttl_s * 2)
        assert await store.keep_alive(lease) is False
        with pytest.raises(StoreError):
            await store.txn([], [Put("b", {}), Put("a", {}, lease)])
        assert await keys(store, "") == []
        assert await store.keep_alive(lease + 1) is False

    async def test_a_revoked_lease_deletes_its_records(self, store: SharedStore) -> None:
        lease = await store.lease(self.ttl_s)
        start = await put(store, "a", lease=lease)
        await store.revoke(lease)
        assert await take(store.watch("a", start), 1) == [Event("a", None, start + 1)]
        await store.revoke(lease)
        assert await store.keep_alive(lease) is False
        assert await keys(store, "") == []

    async def test_a_put_without_lease_frees_the_record(self, store: SharedStore) -> None:
        lease = await store.lease(self.ttl_s)
        await put(store, "a", 1, lease)
        await put(store, "a", 2)
        await store.revoke(lease)
        assert await keys(store, "") == ["a"]

    async def test_a_record_moves_to_another_lease(self, store: SharedStore) -> None:
        old, new = await store.lease(self.ttl_s), await store.lease(self.ttl_s)
        assert old != new
        await put(store, "a", 1, old)
        await put(store, "a", 2, new)
        await store.revoke(old)
        assert await keys(store, "") == ["a"]
        await store.revoke(new)
        assert await keys(store, "") == []

    async def test_a_lease_outlives_a_restart_and_then_ends(
        self, store: SharedStore, reopen: Reopen, advance: Advance
    ) -> None:
        lease = await store.lease(self.ttl_s)
        await put(store, "a", lease=lease)
        store = await reopen()
        assert await store.keep_alive(lease) is True
        assert await keys(store, "") == ["a"]
        await advance(self.ttl_s * 2)
        assert await keys(store, "") == []

    async def test_a_lease_without_time_is_refused(self, store: SharedStore) -> None:
        for ttl_s in (0, -1, float("nan")):
            with pytest.raises(StoreError):
                await store.lease(ttl_s)

    async def test_closing_ends_the_watches(self, store: SharedStore) -> None:
        start = await put(store, "a")

        async def collect() -> list[str]:
            return [event.key async for event in store.watch("", start)]

        tasks = [asyncio.ensure_future(collect()) for _ in range(3)]
        await asyncio.sleep(0)  # they have begun
        await store.close()
        async with asyncio.timeout(DEADLINE_S):
            assert await asyncio.gather(*tasks) == [[], [], []]

    async def test_a_closed_store_refuses_leases_and_watches(self, store: SharedStore) -> None:
        await store.close()
        for call in (
            lambda: store.lease(1),
            lambda: store.keep_alive(1),
            lambda: store.revoke(1),
            lambda: anext(store.watch("", 0)),
        ):
            with pytest.raises(StoreError, match="closed"):
                await call()
