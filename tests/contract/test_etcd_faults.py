"""What a cluster's store does when servers die, hang, forget or lose their data; on real etcd processes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio
from etcd_server import Member, free_ports, needs_etcd, running, until

pytest.register_assert_rewrite("store_suite")

from store_suite import keys, put, take  # noqa: E402

from netplug.store.access import EtcdAccess  # noqa: E402
from netplug.store.api import Compacted, Compare, Delete, Put, Unreachable  # noqa: E402
from netplug.store.etcd import EtcdStore  # noqa: E402
from netplug.store.etcd_fences import FENCES, LEASE_S  # noqa: E402

pytestmark = needs_etcd
FAST = ("--heartbeat-interval", "50", "--election-timeout", "500")
ATTEMPT_S = 0.4
TTL_S = 30


class Stores:
    """Opens stores and closes them at the end."""

    def __init__(self) -> None:
        self._open: list[EtcdStore] = []

    async def open(self, *members: Member | str, **limits: float) -> EtcdStore:
        hosts = tuple(member if isinstance(member, str) else member.host for member in members)
        defaults = {"attempt_s": ATTEMPT_S, "progress_s": 0.2}
        self._open.append(await EtcdStore.open(EtcdAccess(hosts), **(defaults | limits)))  # type: ignore[arg-type]
        return self._open[-1]

    async def close(self) -> None:
        for store in self._open:
            await store.close()


@pytest_asyncio.fixture
async def stores() -> AsyncIterator[Stores]:
    stores = Stores()
    yield stores
    await stores.close()


@pytest.fixture
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    with running(tmp_path_factory.mktemp("etcd"), *FAST) as (member,):
        yield member


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    with running(tmp_path_factory.mktemp("etcd"), *FAST, members=3) as members:
        yield members


async def names(store: EtcdStore) -> list[str]:
    """Return all keys but those of fences."""
    return [key for key in await keys(store, "") if not key.startswith(FENCES)]


def nobody() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


async def test_an_endpoint_where_nobody_listens_is_passed_over(etcd: Member, stores: Stores) -> None:
    store = await stores.open(nobody(), etcd)
    await put(store, "a")
    assert await keys(store, "") == ["a"]
    _, start = await store.range("")
    watch = store.watch("", start)
    await put(store, "b")
    assert [event.key for event in await take(watch, 1)] == ["b"]


async def test_when_the_used_member_dies_the_next_one_serves(three: list[Member], stores: Stores) -> None:
    store = await stores.open(*three)
    start = await put(store, "a/0")
    watch = store.watch("a/", start)
    await put(store, "a/1")
    events = await take(watch, 1)
    three[0].stop()
    await put(store, "a/2")
    await put(store, "a/3")
    events += await take(watch, 2)
    assert [event.key for event in events] == ["a/1", "a/2", "a/3"]
    assert await keys(store, "a/") == ["a/0", "a/1", "a/2", "a/3"]


async def test_a_hung_member_is_noticed_by_calls_and_by_an_idle_watch(three: list[Member], stores: Stores) -> None:
    store, other = await stores.open(*three), await stores.open(*three[1:])
    start = await put(store, "a/0")
    watch = store.watch("a/", start)
    await put(store, "a/1")
    assert [event.key for event in await take(watch, 1)] == ["a/1"]
    three[0].pause()
    reading = asyncio.ensure_future(take(watch, 2))
    await put(other, "a/2")
    began = time.monotonic()
    assert await store.get("a/2")
    assert time.monotonic() - began < 3
    await put(store, "a/3")
    assert [event.key for event in await reading] == ["a/2", "a/3"]
    three[0].resume()


async def test_when_all_hang_a_call_ends_at_its_deadline(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd, deadline_s=1.0)
    await put(store, "a")
    etcd.pause()
    began = time.monotonic()
    calls = (
        store.get("a"),
        store.range(""),
        store.txn([], [Delete("a")]),
        store.lease(TTL_S),
        store.keep_alive(1),
        store.revoke(1),
        store.check(),
    )
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert 0.9 < time.monotonic() - began < 2.5
    assert [type(result) for result in results] == [Unreachable] * len(calls)
    assert f"{etcd.url}: no answer in 0.4 s (check that etcd runs there" in str(results[0])
    assert "whether the change was made is not known" in str(results[2])
    etcd.resume()
    await store.check()


async def test_when_nobody_listens_a_call_says_where_and_why(stores: Stores) -> None:
    one, two = nobody(), nobody()
    store = await stores.open(one, two, deadline_s=0.3)
    with pytest.raises(Unreachable) as caught:
        await store.txn([], [Put("a", {})])
    text = str(caught.value)
    assert text.startswith(f"etcd store etcd://{one},{two} cannot be reached: http://{one}: ")
    assert text.count("refused") == 2
    assert "not known" not in text


async def test_what_is_no_etcd_is_said_so_at_once(stores: Stores) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nNot Found")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    store = await stores.open(f"{host}:{port}")
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"HTTP 404 'Not Found': this is not etcd 3\.4 or later"):
        await store.check()
    assert time.monotonic() - began < 2
    server.close()
    await server.wait_closed()


async def test_a_member_without_quorum_refuses_and_serves_again_later(three: list[Member], stores: Stores) -> None:
    alone, *others = three
    store = await stores.open(alone, deadline_s=1.5)
    start = await put(store, "a/0")
    watch = store.watch("a/", start)
    await put(store, "a/1")
    await take(watch, 1)
    for member in others:
        member.stop()
    for call in (store.get("a/0"), store.txn([], [Put("b", {})])):
        with pytest.raises(Unreachable, match="has a quorum"):
            await call
    reading = asyncio.ensure_future(take(watch, 1))
    await asyncio.to_thread(others[0].start)
    await put(await stores.open(others[0]), "a/2")
    assert [event.key for event in await reading] == ["a/2"]


async def test_a_call_waits_for_a_restart_within_its_deadline(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    await put(store, "a")
    etcd.stop()
    writing = asyncio.ensure_future(put(store, "b"))
    await asyncio.to_thread(etcd.start)
    await writing
    assert await names(store) == ["a", "b"]


async def test_a_watch_over_restarts_loses_and_repeats_no_event(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    _, start = await store.range("")
    watch = store.watch("a/", start)
    seen: list[str] = []

    async def read() -> None:
        async for event in watch:
            seen.append(event.key)  # noqa: PERF401 - it goes on for ever, and is looked at meanwhile

    reading = asyncio.ensure_future(read())
    for n in range(30):
        if n in {10, 20}:
            await asyncio.to_thread(etcd.restart)
        await put(store, f"a/{n}")
    await until(lambda: len(seen) >= 30)
    assert seen == [f"a/{n}" for n in range(30)]
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_a_compaction_while_the_watch_is_away_is_told(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    start = await put(store, "a/0")
    watch = store.watch("a/", start)
    await put(store, "a/1")
    await take(watch, 1)
    await asyncio.to_thread(etcd.restart)
    other = await stores.open(etcd)
    for n in range(2, 5):
        revision = await put(other, f"a/{n}")
    await other._call("/v3/kv/compaction", {"revision": str(revision), "physical": True})
    for _ in range(2):  # also who asks again
        with pytest.raises(Compacted, match=f"after revision {start + 1} are compacted up to {revision}"):
            await take(watch, 1)
    assert [event.key for event in await take(other.watch("a/", revision - 1), 1)] == ["a/4"]


async def test_a_compaction_does_not_end_a_watch_that_has_read_all(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    start = await put(store, "a/0")
    watch = store.watch("a/", start)
    for n in range(1, 4):
        revision = await put(store, f"a/{n}")
    await take(watch, 3)
    await store._call("/v3/kv/compaction", {"revision": str(revision), "physical": True})
    await put(store, "a/4")
    assert [event.key for event in await take(watch, 1)] == ["a/4"]


async def test_a_watch_notices_that_etcd_has_lost_its_data(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    for n in range(10):
        revision = await put(store, f"a/{n}")
    watch = store.watch("a/", revision)
    reading = asyncio.ensure_future(take(watch, 1))
    await asyncio.to_thread(etcd.wipe)
    await asyncio.to_thread(etcd.start)
    with pytest.raises(Compacted, match="lost its data"):
        await reading
    assert await store.range("a/") == ([], 1)


async def test_leases_outlive_a_restart_of_etcd(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    lease = await store.lease(TTL_S)
    await put(store, "alive", lease=lease)
    await asyncio.to_thread(etcd.restart)
    assert await store.keep_alive(lease) is True
    assert await keys(store, "") == ["alive"]
    await store.revoke(lease)
    assert await keys(store, "") == []


async def test_closing_does_not_wait_for_a_watch_that_waits_for_etcd(etcd: Member, stores: Stores) -> None:
    store = await stores.open(etcd)
    watch = store.watch("", await put(store, "a"))
    etcd.stop()
    reading = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)  # it has begun, and waits
    began = time.monotonic()
    await store.close()
    with pytest.raises(StopAsyncIteration):
        await reading
    assert time.monotonic() - began < 1


class Proxy:
    """Passes bytes on to a member.

    `lose_answer`: closes the next connection instead of passing an answer back, after `meanwhile`. `hold`: keeps the
    requests, as a kernel does whose cable is pulled, and passes them on at `deliver`, whoever has given up meanwhile.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self.lose_answer = False
        self.lost = 0
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.hold = False
        self._held: list[bytes] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def deliver(self) -> int:
        """Let the member do what was held, and return how much that was."""
        held, self._held = self._held, []
        for data in held:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._member.client_port)
            writer.write(data)
            assert b" 200 OK" in await reader.readuntil(b"\r\n")
            writer.close()
        return len(held)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._member.client_port)

        async def requests() -> None:
            try:
                while data := await reader.read(65536):
                    if self.hold:
                        self._held.append(data)
                        while more := await reader.read(65536):
                            self._held[-1] += more
                        break
                    up_writer.write(data)
            finally:
                up_writer.close()

        async def answers() -> None:
            while data := await up_reader.read(65536):
                if self.lose_answer:
                    self.lose_answer = False
                    self.lost += 1
                    if self.meanwhile:
                        await self.meanwhile()
                    break
                writer.write(data)
            writer.close()
            up_writer.close()

        await asyncio.gather(requests(), answers(), return_exceptions=True)


@pytest_asyncio.fixture
async def proxy(etcd: Member) -> AsyncIterator[tuple[Proxy, str]]:
    proxy = Proxy(etcd)
    yield proxy, await proxy.start()
    await proxy.stop()


async def test_a_claim_whose_answer_is_lost_is_won_all_the_same(
    etcd: Member, stores: Stores, proxy: tuple[Proxy, str]
) -> None:
    lossy, host = proxy
    store = await stores.open(host)
    first = await put(store, "z")
    lossy.lose_answer = True
    assert await store.txn([Compare("a", 0)], [Put("a", {}), Delete("z")]) == first + 1
    assert lossy.lost == 1
    found = await store.get("a")
    assert found is not None
    assert found.revision == first + 1
    assert await names(store) == ["a"]
    lossy.lose_answer = True
    assert await store.txn([Compare("a", first + 1)], [Delete("a")]) is not None
    assert lossy.lost == 2
    assert await names(store) == []


async def test_a_change_whose_answer_is_lost_is_made_although_others_changed_a_part_of_it(
    etcd: Member, stores: Stores, proxy: tuple[Proxy, str]
) -> None:
    """As of two hosts that define networks at once, which both write one record beside their own."""
    lossy, host = proxy
    store, other = await stores.open(host), await stores.open(etcd)
    first = await put(store, "guard")
    lossy.lose_answer, lossy.meanwhile = True, lambda: put(other, "guard")
    assert await store.txn([Compare("guard", first)], [Put("guard", {}), Put("mine", {})]) == first + 1
    found = await store.get("mine")
    assert found is not None
    assert found.revision == first + 1
    lossy.lose_answer, lossy.meanwhile = True, lambda: other.txn([], [Delete("a")])
    for key in ("a", "b"):
        await put(other, key)
    # It was not made: somebody else has deleted a part.
    assert await store.txn([Compare("guard", first)], [Delete("a"), Delete("b")]) is None
    assert await names(store) == ["b", "guard", "mine"]
    assert lossy.lost == 2


async def test_a_claim_that_somebody_else_has_is_lost_also_at_the_second_attempt(
    etcd: Member, stores: Stores, proxy: tuple[Proxy, str]
) -> None:
    lossy, host = proxy
    store, other = await stores.open(host), await stores.open(etcd)
    await store.check()
    await put(other, "a", 1)
    lossy.lose_answer = True
    assert await store.txn([Compare("a", 0)], [Put("a", {"v": 1})]) is None
    assert lossy.lost == 1


async def test_counting_over_lost_answers_loses_nothing(etcd: Member, stores: Stores, proxy: tuple[Proxy, str]) -> None:
    lossy, host = proxy
    store = await stores.open(host)
    revision = await put(store, "n", 0)
    for n in range(1, 21):
        lossy.lose_answer = n % 3 == 0
        done = await store.txn([Compare("n", revision)], [Put("n", {"v": n})])
        fences = n > 1 and (n - 1) % 3 == 0  # a lost answer costs one more
        assert done == revision + 1 + fences
        revision = done
    assert lossy.lost == 6


async def test_what_nobody_answered_is_not_done_later(etcd: Member, stores: Stores, proxy: tuple[Proxy, str]) -> None:
    slow, host = proxy
    store = await stores.open(host, deadline_s=0.5, attempt_s=0.2)
    slow.hold = True
    with pytest.raises(Unreachable, match="whether the change was made is not known"):
        await store.txn([Compare("a", 0)], [Put("a", {})])
    # Who asks meanwhile is not kept longer than one deadline.
    began = time.monotonic()
    asked = await asyncio.gather(*(store.get("a") for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in asked} == {Unreachable}
    assert time.monotonic() - began < 2
    slow.hold = False
    assert await store.get("a") is None
    assert await slow.deliver()
    assert await store.get("a") is None


async def test_an_attempt_of_which_another_was_answered_is_not_done_later(
    etcd: Member, stores: Stores, proxy: tuple[Proxy, str]
) -> None:
    """It would bring back what has been deleted since."""
    slow, host = proxy
    store = await stores.open(host, etcd)
    slow.hold = True
    assert await store.txn([], [Put("a", {})])
    await store.txn([], [Delete("a")])
    assert await slow.deliver() == 1
    assert await names(store) == []


async def test_what_was_cancelled_is_not_done_later(etcd: Member, stores: Stores, proxy: tuple[Proxy, str]) -> None:
    slow, host = proxy
    store = await stores.open(host)
    slow.hold = True
    writing = asyncio.ensure_future(put(store, "a"))
    await until(lambda: bool(slow._held))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    slow.hold = False
    assert await store.get("a") is None
    assert await slow.deliver() == 1
    assert await store.get("a") is None


async def test_fences_go_by_themselves(etcd: Member, stores: Stores, proxy: tuple[Proxy, str]) -> None:
    lossy, host = proxy
    store = await stores.open(host)
    await store.check()
    lossy.lose_answer = True
    await put(store, "a")
    (fence,) = (await store.range(FENCES))[0]
    (kv,) = (await store._call("/v3/kv/range", {"key": store._records.key(fence.key)}))["kvs"]
    granted = await store._call("/v3/lease/timetolive", {"ID": kv["lease"]})
    assert int(granted["grantedTTL"]) == LEASE_S
