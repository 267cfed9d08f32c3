"""Events: folded, kept over restarts within bounds, listed and streamed."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_host import Host
from living import Living, living, until

from netplug.cli import NO, OK, USAGE, CliError, main
from netplug.engine.happenings import MEANING, Happening, Kind
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call
from netplug.insight.event_files import NAME, OLDER, EventFiles
from netplug.insight.event_folding import FOLD_S, MOST_OBJECTS, Folding, complete, to_json
from netplug.insight.event_log import EventLog, Wanted
from netplug.kernel.fake.kernel import FakeKernel
from netplug.times import point_in_time

FIELDS = [
    "id", "time", "first", "count", "kind", "object", "what", "cause", "by", "request", "network", "network_name",
    "endpoint", "name", "container", "host", "host_name",
]  # fmt: skip
HEAL = Happening(1000.0, Kind.DRIFT_HEALED, "host: table x", "missing", "another program", "netplug", "")


def at(seconds: float, happening: Happening = HEAL, **changes: Any) -> Happening:
    return replace(happening, time=1000.0 + seconds, **changes)


def test_equal_events_in_a_row_are_one_with_a_count() -> None:
    folding = Folding()
    first, written = folding.take(at(0))
    assert written == [first]
    for second in range(1, 59):
        event, written = folding.take(at(second, request=str(second)))
        assert written == []
        assert (event.id, event.count, event.happening.time) == (first.id, second + 1, 1000.0 + second)
    (grown,) = folding.grown()
    assert grown.count == 59
    assert list(folding.grown()) == []


def test_a_storm_writes_its_count_once_a_minute() -> None:
    folding = Folding()
    lines = [line for second in range(600) for line in folding.take(at(second))[1]]
    assert len(lines) == 10
    assert {line.id for line in lines} == {lines[0].id}
    assert lines[-1].count == 541


def test_another_event_of_the_same_object_ends_the_row() -> None:
    folding = Folding()
    folding.take(at(0))
    folding.take(at(1))
    other, written = folding.take(at(2, kind=Kind.DRIFT_FOUND))
    assert [(it.count, it.happening.kind) for it in written] == [(2, Kind.DRIFT_HEALED), (1, Kind.DRIFT_FOUND)]
    again, written = folding.take(at(3))
    assert [it.count for it in written] == [1]
    assert again.id > other.id


def test_events_of_another_object_do_not_end_the_row() -> None:
    folding = Folding()
    for second in range(10):
        folding.take(at(second))
        folding.take(at(second, object="host: table y"))
    assert [it.count for it in folding.grown()] == [10, 10]


def test_equal_events_far_apart_are_two() -> None:
    folding = Folding()
    first, _ = folding.take(at(0))
    second, _ = folding.take(at(FOLD_S + 1))
    assert first.id < second.id
    assert second.count == 1


def test_ids_grow_even_if_the_clock_does_not() -> None:
    folding = Folding()
    ids = [folding.take(at(-number, object=str(number)))[0].id for number in range(5)]
    assert ids == sorted(set(ids))


def test_the_memory_of_objects_is_bounded_and_loses_no_count() -> None:
    folding = Folding()
    folding.take(at(0))
    folding.take(at(1))
    lines = [line for n in range(MOST_OBJECTS) for line in folding.take(at(2, object=str(n)))[1]]
    assert [line.count for line in lines if line.happening.object == HEAL.object] == [2]


def written(folder: Path, *happenings: Happening) -> EventFiles:
    folding, files = Folding(), EventFiles(folder)
    for one in happenings:
        files.append([to_json(event) for event in folding.take(one)[1]])
    return files


def test_a_torn_last_line_is_left_out_and_the_next_event_is_whole(tmp_path: Path) -> None:
    written(tmp_path, at(0), at(1, object="b"))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-20])
    files = written(tmp_path, at(2, object="c"))
    assert [it["object"] for it in files.newest_first()] == ["c", HEAL.object]


async def test_what_is_no_character_takes_no_event_with_it(tmp_path: Path) -> None:
    host = await Host.boot()
    kept = EventLog(EventFiles(tmp_path))
    host.engine.happenings.watchers.append(kept.take)
    follower = kept.follow()
    await CniService(host.engine).answer(Call("pynet", {"CNI_COMMAND": "A\udcff\u00e9"}, b"{}"))
    host.engine.happenings.tell(Kind.DRIFT_HEALED, "host")
    found, _ = await kept.newest(Wanted(), 10)
    assert [it["object"] for it in found] == ["request A\\udcff\u00e9", "host"]
    assert json.dumps(follower.get_nowait(), ensure_ascii=False).encode()
    await kept.close()
    await host.close()


@pytest.mark.parametrize(
    "line", [b"", b"\xff\xfe", b"null", b"[1]", b"{}", b'{"id":1,"time":"x","kind":"y"}', b"{" * 9]
)
def test_lines_of_nobody_s_are_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / NAME).write_bytes(line + b"\n")
    assert len(list(written(tmp_path, at(0)).newest_first())) == 1


def test_files_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    files = EventFiles(tmp_path, most_bytes=2_000)
    for number in range(100):
        files.append([{"id": number, "time": 1000.0 + number, "kind": "x", "object": "o" * 50}])
    sizes = [(tmp_path / name).stat().st_size for name in (NAME, OLDER)]
    assert max(sizes) <= 2_000
    ids = [it["id"] for it in files.newest_first()]
    assert ids == list(range(99, 99 - len(ids), -1))
    assert len(ids) > 20
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in (NAME, OLDER)} == {0o600}


async def test_a_full_disk_does_not_fail_what_happens(tmp_path: Path) -> None:
    kept = EventLog(EventFiles(tmp_path / "no-such-folder"))
    kept.take(at(0))
    await kept.close()
    assert await kept.newest(Wanted(), 10) == ([], False)


async def test_the_newest_come_in_order_and_a_folded_one_once(tmp_path: Path) -> None:
    kept = EventLog(EventFiles(tmp_path))
    for second in range(3):
        kept.take(at(second))
        kept.take(at(second, object=f"network {second}", network_name="blue", network="0a1b"))
        await kept.newest(Wanted(), 1)  # writes
    events, more = await kept.newest(Wanted(), 10)
    assert not more
    assert [(it["object"], it["count"]) for it in events] == [
        ("network 0", 1), ("network 1", 1), (HEAL.object, 3), ("network 2", 1),
    ]  # fmt: skip
    assert list(events[0]) == FIELDS
    events, more = await kept.newest(Wanted(), 2)
    assert ([it["object"] for it in events], more) == ([HEAL.object, "network 2"], True)
    assert len((await kept.newest(Wanted(since=1002.0), 10))[0]) == 2
    assert len((await kept.newest(Wanted(network="blue"), 10))[0]) == 3
    assert len((await kept.newest(Wanted(network="0a"), 10))[0]) == 3
    assert len((await kept.newest(Wanted(kind="drift"), 10))[0]) == 4
    assert (await kept.newest(Wanted(kind="dri"), 10))[0] == []
    await kept.close()


async def test_a_follower_that_does_not_read_is_let_go(tmp_path: Path) -> None:
    kept = EventLog(EventFiles(tmp_path))
    follower = kept.follow()
    for number in range(1_100):
        kept.take(at(number, object=str(number)))
    said = [follower.get_nowait() for _ in range(follower.qsize())]
    assert len(said) == 1_001
    assert said[-1] is None
    await kept.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10m", 9_400.0), ("2h", 2_800.0), ("1h30m", 4_600.0), ("90s", 9_910.0), ("1.5s", 9_998.5), ("1d", -76_400.0),
        ("1700000000", 1_700_000_000.0), ("1700000000.25", 1_700_000_000.25),
        ("1970-01-01T01:00:00Z", 3_600.0), ("1970-01-01T01:00:00+01:00", 0.0), ("1970-01-01T00:00:01.5Z", 1.5),
    ],
)  # fmt: skip
def test_since_is_read_as_docker_s(text: str, found: float) -> None:
    assert point_in_time(text, now=10_000.0) == found


@pytest.mark.parametrize("text", ["", "yesterday", "10x", "-5m", "m", "2026-13-01", "٣m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        point_in_time(text)


# A daemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Living]:
    with living(tmp_path) as daemon:
        yield daemon


def listed(daemon: Living, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.client.get("events", **query)["events"]
    return found


def _ask_in_vain(daemon: Living) -> None:
    """Ask for what is not there: it would change nothing, so it is no event."""
    for path, body in (
        ("trace", {"source": "nobody", "destination": "web"}),
        ("dns/query", {"network": "green", "name": "web"}),
        ("capture/ask", {"endpoint": "nobody"}),
    ):
        with pytest.raises(CliError):
            daemon.client.post(*path.split("/"), body=body)


def test_events_outlive_the_daemon_and_name_who_asked(tmp_path: Path) -> None:
    kernel = FakeKernel()
    with living(tmp_path, kernel) as daemon:
        daemon.client.post("networks", body={"name": "blue"})
        with pytest.raises(CliError):
            daemon.client.post("networks", body={"name": "blue"})
        _ask_in_vain(daemon)
    with living(tmp_path, kernel) as daemon:
        events = listed(daemon)
        assert [it["kind"] for it in events] == [
            "daemon.started", "network.created", "request.refused", "daemon.stopped", "daemon.started",
        ]  # fmt: skip
        created, refused = events[1:3]
        assert (created["by"], created["cause"], created["network_name"]) == ("cli", "POST /v1/networks", "blue")
        assert len(created["request"]) == 8
        assert refused["cause"] == "exists"
        assert "'blue' exists already" in refused["what"]
        assert list(created) == FIELDS
        assert [it["kind"] for it in listed(daemon, kind="network", network="blue")] == ["network.created"]
        assert listed(daemon, since="2100-01-01T00:00:00Z") == []
        assert daemon.client.get("events", limit="1")["more"] is True


def test_the_stream_tells_what_was_and_what_is_and_ends_with_the_daemon(daemon: Living) -> None:
    daemon.client.post("networks", body={"name": "blue"})
    said: list[dict[str, Any]] = []

    def read() -> None:
        lines = daemon.client.lines("events", "stream", since="1h", kind="network")
        said.extend(json.loads(line[5:]) for line in lines if line.startswith("data:"))

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: said or len(listed(daemon)) > 5 or _followed(daemon), "the stream is open")
    daemon.client.post("networks", body={"name": "red"})
    daemon.client.delete("networks", "red")
    daemon.stop()
    reader.join(5)
    assert not reader.is_alive()
    assert [(it["kind"], it["network_name"]) for it in said] == [
        ("network.created", "blue"), ("network.created", "red"), ("network.removed", "red"),
    ]  # fmt: skip


def _followed(daemon: Living) -> bool:
    return daemon.do_and_get(lambda it: bool(it._parts.events._followers))


def test_a_follower_that_goes_away_is_forgotten(daemon: Living) -> None:
    lines = daemon.client.lines("events", "stream")
    assert next(lines) == ": netplug"
    assert _followed(daemon)
    lines.close()
    until(lambda: not _followed(daemon), "the stream is closed")


def run(daemon: Living, capsys: pytest.CaptureFixture[str], *args: str, code: int = OK) -> str:
    capsys.readouterr()
    assert main(["events", *args, "--run-dir", str(daemon.settings.run_dir)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_the_command_prints_a_table_or_lines_of_json(daemon: Living, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.client.post("networks", body={"name": "blue"})
    head, *rows = run(daemon, capsys, "--network", "blue").splitlines()
    assert head.split() == ["TIME", "KIND", "OBJECT", "WHAT", "CAUSE", "BY", "REQUEST"]
    (row,) = rows
    assert "network.created" in row
    assert "network blue" in row
    assert " cli " in row
    (line,) = run(daemon, capsys, "--network", "blue", "--json", "--since", "1h").splitlines()
    assert list(json.loads(line)) == FIELDS
    assert run(daemon, capsys, "--kind", "host").split() == head.split()
    assert "is no time" in run(daemon, capsys, "--since", "yesterday", code=USAGE)


def test_a_wrong_since_or_kind_is_refused_by_the_api(daemon: Living) -> None:
    with pytest.raises(CliError) as caught:
        daemon.client.get("events", since="yesterday")
    assert caught.value.code == NO
    assert "is no time" in caught.value.message
    with pytest.raises(CliError, match="there is no kind 'heal' of events") as caught:
        daemon.client.get("events", kind="heal")
    assert "drift" in caught.value.hint


def test_an_unknown_network_is_refused_and_a_removed_one_is_not(
    daemon: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ((), ("--follow",)):
        assert "there is no network 'nope'" in run(daemon, capsys, "--network", "nope", *more, code=NO)
    daemon.client.post("networks", body={"name": "blue"})
    assert "network.created" in run(daemon, capsys, "--network", "blue")
    assert len(run(daemon, capsys, "--network", "blue", "--kind", "host").splitlines()) == 1
    daemon.client.delete("networks", "blue")
    assert "network.removed" in run(daemon, capsys, "--network", "blue")


def test_the_document_lists_the_kinds(request: pytest.FixtureRequest) -> None:
    path = Path(__file__).parent.parent / "docs" / "events.md"
    rows = ["| kind | when |", "|---|---|", *(f"| `{kind}` | {MEANING[kind]} |" for kind in Kind)]
    pattern = re.compile(r"(<!-- kinds:.*?-->\n)(.*?)(<!-- /kinds -->)", re.DOTALL)
    text = path.read_text()
    wanted, count = pattern.subn(lambda found: f"{found[1]}{chr(10).join(rows)}\n{found[3]}", text)
    assert count == 1
    if request.config.getoption("--update"):
        path.write_text(wanted)
    else:
        assert text == wanted


def test_completing_a_kept_event_changes_nothing_else() -> None:
    event, _ = Folding().take(at(0, network="n"))
    kept = to_json(event)
    assert "count" not in kept
    assert complete(kept) == complete(complete(kept))
