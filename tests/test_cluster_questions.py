"""Daemons ask each other by the store: who answers, who does not and why, and what is left of it: nothing."""

import asyncio
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from clustered import Hosts
from etcd_server import Member, needs_etcd
from living import Living, until

from netplug.cluster.answer_size import fit
from netplug.cluster.cluster import Cluster
from netplug.cluster.questions import MOST_AT_ONCE, MOST_BYTES, Handler, Reason, Unanswered
from netplug.daemon.life import Daemon
from netplug.drivers.codec import JsonObject
from netplug.errors import NetplugError
from netplug.store.api import Unreachable

pytestmark = needs_etcd


def cluster(daemon: Daemon) -> Cluster:
    assert daemon.cluster
    return daemon.cluster


def ask(host: Living, other: str, kind: str = "clock", body: JsonObject | None = None, within_s: float = 5) -> Any:
    return host.wait_for(lambda daemon: cluster(daemon).questions.ask(other, kind, body or {}, within_s))


def why(host: Living, other: str, kind: str = "clock", within_s: float = 5) -> tuple[Reason, str]:
    with pytest.raises(Unanswered) as caught:
        ask(host, other, kind, within_s=within_s)
    return caught.value.reason, str(caught.value)


def answers(host: Living, kind: str, handler: Handler) -> None:
    host.do_and_get(lambda daemon: cluster(daemon).questions.answer(kind, handler))


def meet(*hosts: Living) -> None:
    """Let all know of each other."""

    def known(daemon: Daemon) -> int:
        view = cluster(daemon).view
        return sum(view.alive(host) for host in view.hosts())

    for host in hosts:
        until(lambda host=host: host.do_and_get(known) == len(hosts), "all know each other")


def id_of(host: Living) -> str:
    return host.do_and_get(lambda daemon: cluster(daemon).me)


def nothing_is_left(etcd: Member) -> None:
    until(lambda: etcd.records("questions/") == {}, "no question and no answer is left")


@pytest.fixture
def two(hosts: Hosts) -> tuple[Living, Living]:
    one, other = hosts.start(1), hosts.start(2)
    meet(one, other)
    return one, other


# Answers


def test_other_host_tells_its_clock_and_its_facts(two: tuple[Living, Living], etcd: Member) -> None:
    before = time.time()
    said = ask(two[0], "host-2")
    assert before <= said["time"] <= time.time()
    facts = ask(two[1], id_of(two[0]), "facts")
    assert (facts["name"], facts["vtep"], facts["facts"]["uplink"]) == ("host-1", "192.0.2.1", "eth0")
    nothing_is_left(etcd)


def test_round_trip_takes_less_than_30_ms(two: tuple[Living, Living]) -> None:
    async def measure(daemon: Daemon) -> list[float]:
        taken = []
        for _ in range(20):
            started = time.perf_counter()
            await cluster(daemon).questions.ask("host-2", "clock", {}, 5)
            taken.append((time.perf_counter() - started) * 1000)
        return taken

    taken = two[0].wait_for(measure)
    assert statistics.median(taken) < 30, f"ms: {sorted(taken)}"


def test_many_questions_at_once_have_their_own_answers(two: tuple[Living, Living], etcd: Member) -> None:
    async def echo(body: JsonObject) -> JsonObject:
        return body

    answers(two[1], "echo", echo)

    async def many(daemon: Daemon) -> list[JsonObject]:
        questions = cluster(daemon).questions
        asked = [questions.ask("host-2", "echo", {"number": number}, 5) for number in range(MOST_AT_ONCE)]
        return await asyncio.gather(*asked)

    assert two[0].wait_for(many) == [{"number": number} for number in range(MOST_AT_ONCE)]
    nothing_is_left(etcd)


def test_more_than_a_host_answers_at_once_are_told_so(two: tuple[Living, Living], etcd: Member) -> None:
    go_on = two[1].do_and_get(lambda _: asyncio.Event())

    async def slow(body: JsonObject) -> JsonObject:
        await go_on.wait()
        return body

    answers(two[1], "slow", slow)

    async def many(daemon: Daemon) -> list[Any]:
        asked = [cluster(daemon).questions.ask("host-2", "slow", {}, 10) for _ in range(MOST_AT_ONCE + 3)]
        work = [asyncio.ensure_future(it) for it in asked]
        refused = [task.exception() for task in (await asyncio.wait(work, return_when="FIRST_EXCEPTION"))[0]]
        two[1].do(lambda _: go_on.set())
        return refused + await asyncio.gather(*work, return_exceptions=True)

    found = two[0].wait_for(many)
    refused = [it for it in found if isinstance(it, Unanswered)]
    assert {it.reason for it in refused} == {Reason.REFUSED}
    assert "answers 16 questions already" in str(refused[0])
    assert len([it for it in found if it == {}]) == MOST_AT_ONCE
    assert ask(two[0], "host-2")["time"]
    nothing_is_left(etcd)


def test_long_answer_comes_whole_and_a_longer_one_is_cut_with_a_note(two: tuple[Living, Living], etcd: Member) -> None:
    async def packets(body: JsonObject) -> JsonObject:
        count = body["count"]
        assert isinstance(count, int)
        return {"packets": [f"packet {number:06}" for number in range(count)]}

    answers(two[1], "packets", packets)
    assert len(ask(two[0], "host-2", "packets", {"count": 25_000})["packets"]) == 25_000
    said = ask(two[0], "host-2", "packets", {"count": 100_000})
    assert len(json.dumps(said)) <= MOST_BYTES
    assert 30_000 < len(said["packets"]) < 31_000
    assert said["packets"][0] == "packet 000000"
    assert f"{100_000 - len(said['packets'])} of 100000 in packets are left out" in said["cut"]
    nothing_is_left(etcd)


def test_cut_takes_from_the_longest_and_leaves_the_rest() -> None:
    body: JsonObject = {"few": [1, 2], "parts": [{"text": "a" * 9000, "list": [*range(3000)]}], "name": "web"}
    cut = fit(body, 4000)
    assert len(json.dumps(cut)) <= 4000
    assert (cut["few"], cut["name"]) == ([1, 2], "web")
    assert "in parts.0.text" in str(cut["cut"])
    assert fit({f"key{number}": 1 for number in range(1000)}, 600).keys() == {"cut"}


# No answers


def test_host_that_is_not_there(two: tuple[Living, Living]) -> None:
    reason, words = why(two[0], "host-9")
    assert reason is Reason.NO_HOST
    assert words == "there is no host 'host-9' (there are host-1, host-2)"


def test_a_host_does_not_ask_itself(two: tuple[Living, Living]) -> None:
    with pytest.raises(NetplugError, match="host host-1 is this host"):
        ask(two[0], "host-1")


def test_host_whose_daemon_was_stopped(two: tuple[Living, Living], etcd: Member) -> None:
    two[1].stop()
    started = time.monotonic()
    reason, words = why(two[0], "host-2")
    assert reason is Reason.NOT_ALIVE
    assert "host host-2 is not alive" in words
    assert time.monotonic() - started < 4, "it was waited for"
    nothing_is_left(etcd)


def test_daemon_that_hangs_does_not_answer_and_later_not_what_nobody_waits_for(
    two: tuple[Living, Living], etcd: Member
) -> None:
    asked: list[JsonObject] = []

    async def note(body: JsonObject) -> JsonObject:
        asked.append(body)
        return body

    answers(two[1], "note", note)
    with two[1].held():
        started = time.monotonic()
        reason, words = why(two[0], "host-2", "note", within_s=0.5)
        assert 0.5 <= time.monotonic() - started < 5
    assert reason is Reason.SILENT
    assert "host host-2 did not answer within 0.5 s" in words
    assert ask(two[0], "host-2", "note", {"number": 2}) == {"number": 2}
    assert asked == [{"number": 2}]
    nothing_is_left(etcd)


def test_older_daemon_that_knows_no_questions(two: tuple[Living, Living], etcd: Member) -> None:
    key = f"cluster/hosts/{id_of(two[1])}"
    record = etcd.records(key)[key]
    del record["answers"]
    etcd.write(key, record)
    until(lambda: not _answered(two[0], "host-2"), "it is known to be older")
    assert why(two[0], "host-2")[0] is Reason.UNKNOWN_KIND
    assert "update netplug there" in why(two[0], "host-2")[1]
    nothing_is_left(etcd)


def test_kind_that_the_other_daemon_does_not_know(two: tuple[Living, Living], etcd: Member) -> None:
    reason, words = why(two[0], "host-2", "weather")
    assert reason is Reason.UNKNOWN_KIND
    assert "host host-2 cannot answer a question of kind 'weather': netplug " in words
    nothing_is_left(etcd)


@pytest.mark.own_etcd
def test_store_that_hangs_is_told_from_a_host_that_does_not_answer(two: tuple[Living, Living], etcd: Member) -> None:
    etcd.pause()
    try:
        reason, words = why(two[0], "host-2", within_s=0.5)
    finally:
        etcd.resume()
    assert reason is Reason.STORE
    assert "questions go by the shared store" in words
    nothing_is_left(etcd)
    until(lambda: _answered(two[0], "host-2"), "it answers again")
    nothing_is_left(etcd)


def test_store_that_fails_for_a_moment_is_asked_again(two: tuple[Living, Living]) -> None:
    async def lost_and_asked(daemon: Daemon) -> JsonObject:
        with suppress(Unreachable), cluster(daemon).questions._breaker.request():
            raise Unreachable("a request that began before")
        return await cluster(daemon).questions.ask("host-2", "clock", {}, 5)

    assert two[0].wait_for(lost_and_asked)["time"]


def _answered(host: Living, other: str) -> bool:
    try:
        return bool(ask(host, other)["time"])
    except Unanswered:
        return False


def test_error_of_the_handler_is_told_and_the_next_question_answered(two: tuple[Living, Living]) -> None:
    async def refuse(_: JsonObject) -> JsonObject:
        raise NetplugError("invalid", "no such link 'eth9'", hint="name another one")

    async def fail(_: JsonObject) -> JsonObject:
        raise ValueError("nonsense")

    answers(two[1], "refuse", refuse)
    answers(two[1], "fail", fail)
    assert why(two[0], "host-2", "refuse") == (
        Reason.REFUSED,
        "host host-2: no such link 'eth9' (name another one)",
    )
    reason, words = why(two[0], "host-2", "fail")
    assert reason is Reason.REFUSED
    assert "nonsense" in words
    assert ask(two[0], "host-2")["time"]


def test_work_ends_when_nobody_waits_any_more(two: tuple[Living, Living], etcd: Member) -> None:
    ended = []
    begun = asyncio.Event()

    async def long(_: JsonObject) -> JsonObject:
        two[0].do(lambda _: begun.set())
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)
        return {}

    answers(two[1], "long", long)

    async def give_up(daemon: Daemon) -> None:
        work = asyncio.ensure_future(cluster(daemon).questions.ask("host-2", "long", {}, 60))
        await begun.wait()
        work.cancel()

    two[0].wait_for(give_up)
    until(lambda: ended, "the work was cancelled")
    nothing_is_left(etcd)
    assert ask(two[0], "host-2")["time"]


def test_host_that_is_forgotten_or_unknown_is_not_answered(two: tuple[Living, Living], etcd: Member) -> None:
    question = {"kind": "clock", "body": {}, "deadline_s": 5, "lease": 1}
    me = id_of(two[1])
    etcd.write(f"questions/{me}/ask/stranger/1", question)
    assert ask(two[0], "host-2")["time"]
    only = [f"questions/{me}/ask/stranger/1"]
    until(lambda: [*etcd.records("questions/")] == only, "the stranger has no answer")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ask/{other}/1", {"kind": "clock"}),
        ("ask/{other}/1", {"kind": "clock", "body": {}, "deadline_s": "soon", "lease": 1}),
        ("ask/{other}/1", {"kind": ["clock"], "body": {}, "deadline_s": 1, "lease": 1}),
        ("ask/{other}/1", {"kind": "clock", "body": {}, "deadline_s": 1, "lease": 1}),
        ("ask/{other}/1", ["clock"]),
        ("what/{other}/1", {}),
        ("ask", {}),
        ("answer/{other}/1", {"body": {}}),
    ],
)
def test_nonsense_stops_nothing(two: tuple[Living, Living], etcd: Member, key: str, value: object) -> None:
    etcd.write(f"questions/{id_of(two[1])}/{key.format(other=id_of(two[0]))}", value)
    assert ask(two[0], "host-2")["time"]


def test_hosts_ask_each_other_at_once(hosts: Hosts, etcd: Member) -> None:
    living = [hosts.start(number) for number in (1, 2, 3)]
    meet(*living)
    pairs = [(one, f"host-{number}") for one in living for number in (1, 2, 3) if living[number - 1] is not one]
    with ThreadPoolExecutor() as pool:
        assert all(pool.map(lambda pair: ask(*pair)["time"], pairs * 5))
    nothing_is_left(etcd)


def test_copy_of_a_host_neither_asks_nor_answers(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    meet(one, other)
    other.stop()
    hosts.copy(2, to=3)
    hosts.start(2)
    copy = hosts.start(3, host_name="copy")
    until(lambda: "copy" in json.dumps(etcd.records("cluster/twins/")), "the copy is not admitted")
    until(lambda: _answered(one, "host-2"), "the original answers")
    for _ in range(10):
        assert ask(one, "host-2", "facts")["name"] == "host-2"
    assert why(copy, "host-1")[0] is Reason.STORE
    assert "not admitted" in why(copy, "host-1")[1]


def test_restarted_daemon_answers_what_is_still_asked(hosts: Hosts, etcd: Member) -> None:
    one, other = hosts.start(1), hosts.start(2)
    meet(one, other)

    async def wait(_: JsonObject) -> JsonObject:
        await asyncio.Event().wait()
        return {}

    answers(other, "clock", wait)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, one, "host-2", within_s=10)
        until(lambda: etcd.records("questions/"), "it is asked")
        other.stop()
        hosts.start(2)
        assert asked.result()["time"]
    nothing_is_left(etcd)
