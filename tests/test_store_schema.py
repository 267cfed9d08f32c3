"""A store says which schema wrote it. Records of an older one are migrated, and a newer one is used or refused."""

import copy
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from netplug import __version__
from netplug.store import schema
from netplug.store.api import Delete, Put, Record, StoreError
from netplug.store.schema import FIRST, OLDEST, STEPS, VERSION, Schema, migrated
from netplug.store.sqlite import SqliteStore

KEY = "networks/b2"
OLD: dict[str, Any] = {
    "network": {"id": "b2", "name": "red"},
    "plan": [
        {"step": "Bridge", "name": "np-b2", "mac": "06:6e:92:e1:81:30", "mtu": 1400, "adopt": False},
        {"step": "Resolver", "network": "b2", "link": "np-b2", "address": "10.2.0.1", "port": 5300},
    ],
    "used": [],
}
"""A network as the first releases wrote it."""
NEW = OLD | {"bridge": {"name": "np-b2", "mac": "06:6e:92:e1:81:30", "mtu": 1400}, "resolvers": ["10.2.0.1"]}


# Steps


def test_each_schema_after_the_first_has_a_step() -> None:
    assert list(STEPS) == list(range(FIRST.version + 1, VERSION + 1))
    assert FIRST.version <= OLDEST <= VERSION


def test_network_of_the_first_releases_gets_its_bridge_and_resolvers() -> None:
    before = copy.deepcopy(OLD)
    assert migrated(KEY, OLD, FIRST.version) == NEW
    assert before == OLD
    adopted = OLD | {"used": ["link/np-b2"]}
    assert migrated(KEY, adopted, 1)["bridge"] == {"name": "np-b2", "mac": "", "mtu": 0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (KEY, NEW),
        (KEY, OLD | {"resolvers": []}),
        (KEY, OLD | {"plan": [{"step": "Veth", "name": "a", "peer": "b"}]}),
        ("endpoints/b2/e1", OLD),
        ("meta/base", {"plan": OLD["plan"]}),
    ],
)
def test_record_that_is_new_already_or_of_another_kind_stays(key: str, value: dict[str, Any]) -> None:
    assert migrated(key, value, FIRST.version) == value


@pytest.mark.parametrize("plan", [None, 7, [7], [{"step": "Bridge"}], [{"step": "Resolver", "address": "nonsense"}]])
def test_record_that_no_step_can_read_stays_for_quarantine(plan: object) -> None:
    value = OLD | {"plan": plan}
    assert migrated(KEY, value, FIRST.version) == value


def test_record_of_this_schema_or_a_later_one_is_not_touched() -> None:
    for version in (VERSION, VERSION + 3):
        assert migrated(KEY, OLD, version) == OLD


# The file


def says(path: Path) -> tuple[int, int, str]:
    database = sqlite3.connect(path)
    found = database.execute("SELECT version, oldest, release FROM schema").fetchone()
    database.close()
    return tuple(found)  # type: ignore[return-value]


def execute(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    database = sqlite3.connect(path)
    with database:
        for statement in statements:
            database.execute(statement, values)
    database.close()


def write_as_former(path: Path, key: str, value: dict[str, Any]) -> None:
    """Do what a transaction of a release without schemas does."""
    text = "INSERT OR REPLACE INTO record (key, value, revision) SELECT ?, ?, revision + 1 FROM state"
    execute(path, text, values=(key.encode(), json.dumps(value)))
    execute(path, "UPDATE state SET revision = revision + 1, forgotten = revision + 1")


def content(path: Path) -> bytes:
    return path.read_bytes()


async def filled(path: Path, *puts: Put) -> None:
    store = await SqliteStore.open(path)
    await store.txn((), puts)
    await store.close()


async def records(path: Path) -> list[Record]:
    store = await SqliteStore.open(path)
    found, _ = await store.range("")
    await store.close()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netplug.db"


async def test_new_file_says_its_schema_and_release(path: Path) -> None:
    await filled(path)
    assert says(path) == (VERSION, OLDEST, __version__)


async def test_file_of_a_release_without_schemas_is_migrated_once(path: Path) -> None:
    await filled(path, Put(KEY, OLD), Put("networks/x", {"plan": 7}), Put("meta/host", {"id": "1"}))
    execute(path, "DROP TABLE schema")
    found = {it.key: it for it in await records(path)}
    assert {key: it.value for key, it in found.items()} == {
        KEY: NEW,
        "networks/x": {"plan": 7},
        "meta/host": {"id": "1"},
    }
    assert (found[KEY].revision, found["networks/x"].revision) == (2, 1)
    assert says(path) == (VERSION, OLDEST, __version__)
    assert await records(path) == list(found.values())


async def test_what_a_release_without_schemas_wrote_meanwhile_is_migrated_too(path: Path) -> None:
    """After a rollback and another upgrade; that release has left the file's word of its schema as it was."""
    await filled(path, Put(KEY, NEW))
    write_as_former(path, "networks/later", OLD)
    assert says(path)[0] == VERSION
    assert [it.value for it in await records(path)] == [NEW, NEW]
    store = await SqliteStore.open(path)
    await store.txn((), [Delete("networks/later")])
    await store.close()
    # Nobody else has written now. So what looks old is new, and stays.
    execute(path, "UPDATE record SET value = ?", values=(json.dumps(OLD),))
    assert [it.value for it in await records(path)] == [OLD]


async def test_file_of_a_newer_release_is_used_if_it_may_be(path: Path) -> None:
    later = {"network": {"id": "b2"}, "wormhole": True}
    await filled(path, Put(KEY, later))
    execute(path, "UPDATE schema SET version = ?, release = '9.0.0'", values=(VERSION + 2,))
    assert [it.value for it in await records(path)] == [later]
    # So that the newer release migrates what this one writes.
    assert says(path) == (VERSION, OLDEST, __version__)


async def test_file_of_a_newer_release_that_may_not_be_used_is_refused_and_kept(path: Path) -> None:
    await filled(path, Put(KEY, NEW))
    execute(path, "UPDATE schema SET version = 4, oldest = 3, release = '9.0.0'")
    before = content(path)
    with pytest.raises(StoreError) as caught:
        await SqliteStore.open(path)
    assert str(caught.value) == (
        f"store {path} has schema 4, which releases before schema 3 cannot use; this is netplug {__version__} with"
        " schema 2: install netplug 9.0.0 again, or a later release; or move the file away and create the networks anew"
    )
    assert content(path) == before
    # A release without schemas, which cannot know that, makes it no other.
    write_as_former(path, "networks/later", OLD)
    with pytest.raises(StoreError, match="which releases before schema 3 cannot use"):
        await SqliteStore.open(path)


async def test_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(path, Put(KEY, OLD), Put("networks/z", OLD | {"used": ["z"]}))
    execute(path, "DROP TABLE schema")

    def fails(key: str, value: dict[str, Any]) -> dict[str, Any]:
        if key == "networks/z":
            raise MemoryError
        return value | {"seen": True}

    with monkeypatch.context() as patch:
        patch.setattr(schema, "STEPS", {2: fails})
        with pytest.raises(MemoryError):
            await SqliteStore.open(path)
    assert [it.value.keys() - OLD.keys() for it in await records(path)] == [{"bridge", "resolvers"}] * 2


def test_older_word_of_who_may_use_it_stays_with_the_store() -> None:
    assert Schema(1, 1, "0.1.0").ours == Schema(VERSION, OLDEST, __version__)
    assert Schema(VERSION + 1, VERSION, "9.0.0").ours == Schema(VERSION, VERSION, __version__)
