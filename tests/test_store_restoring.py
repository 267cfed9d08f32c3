"""A database that is damaged is refused in words that say what to do, and is restored from itself and its copy."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from netplug.cli import NO, OK
from netplug.cli.app import app
from netplug.daemon.lock import lock_file
from netplug.store import copies, reading, restoring
from netplug.store.api import StoreError
from netplug.store.database import Database, Write
from netplug.store.restoring import RESTORED

RECORDS = {f"networks/{n}": {"n": "x" * 500 * n} for n in range(40)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with a copy; two records are newer than that, and one of the copy is deleted since."""
    found = tmp_path / "state" / "netplug.db"
    database = Database(found)
    database.open()
    with closing(database):
        put(database, **{"endpoints/gone": "{}", "endpoints/changed": '{"n":1}', "journal/old": "{}"})
        for key, value in RECORDS.items():
            put(database, **{key: f'{{"n":"{value["n"]}"}}'})
        database.copy()
        put(database, **{"endpoints/changed": '{"n":2}', "endpoints/new": "{}"})
        database.txn([], [Write(b"endpoints/gone"), Write(b"journal/old")], durable=True)
    return found


def put(database: Database, **texts: str) -> None:
    database.txn([], [Write(key.encode(), text) for key, text in texts.items()], durable=False)


def read(path: Path) -> dict[str, object]:
    database = Database(path)
    with database.explained():
        database.open()
        with closing(database):
            return {it.key: it.value for it in database.range(b"")[0]}


def damaged_middle(path: Path) -> None:
    """Overwrite pages in the middle, of which one is a leaf."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(3 * 4096))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def nonsense(path: Path) -> None:
    path.write_bytes(b"nonsense" * 1000)


def without_tables(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE record")


def older(path: Path) -> None:
    """Have what a backup has, beside the copy of now."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM record WHERE key = CAST('networks/3' AS BLOB)")
        db.execute("UPDATE state SET revision = 2")
        db.execute("UPDATE record SET revision = 1")
        db.commit()


def no_json(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE record SET value = '{' WHERE key = CAST('networks/3' AS BLOB)")
        db.commit()


def no_utf8(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            """UPDATE record SET value = CAST(X'7B226E223A22FF227D' AS TEXT) WHERE key = CAST('networks/3' AS BLOB)"""
        )
        db.commit()


DAMAGES = (damaged_middle, truncated, emptied, nonsense, without_tables, older)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_with_its_mend_which_helps(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    before = {file.name: file.read_bytes() for file in (path, copies.copy_of(path))}
    with pytest.raises(StoreError, match=r"netplug\.db is (damaged|not a database).*'netplug store restore'") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(StoreError, match="'netplug store restore'"):
        reading.records(path)
    assert (path.read_bytes(), copies.copy_of(path).read_bytes()) == tuple(before.values())
    done = restoring.restore(path)
    assert done.kept.read_bytes() == before["netplug.db"]
    found = read(path)
    assert found.pop(RESTORED)
    assert "journal/old" not in found, "what was under way when the copy was made"
    assert found.keys() - {"endpoints/gone", "endpoints/new"} == {*RECORDS, "endpoints/changed"}
    assert {key: found[key] for key in RECORDS} == RECORDS
    read(path)  # it is later than the copy


@pytest.mark.parametrize("damage", [no_json, no_utf8])
def test_a_damaged_record_stops_no_other_and_is_taken_from_the_copy(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    assert "networks/3" in read(path), "for quarantine"
    done = restoring.restore(path)
    assert done.from_copy >= 1
    found = read(path)
    assert {key: found[key] for key in RECORDS} == RECORDS
    assert found["endpoints/changed"] == {"n": 2}, "the newer one counts"
    assert "endpoints/new" in found


def test_whole_database_is_restored_as_it_is(path: Path) -> None:
    before = read(path)
    assert restoring.restore(path).from_copy == 0
    after = read(path)
    assert after.pop(RESTORED)
    assert after == before


def test_without_a_copy_the_rest_is_restored(path: Path) -> None:
    copies.copy_of(path).unlink()
    no_json(path)
    restoring.restore(path)
    assert read(path).keys() == {*RECORDS, "endpoints/changed", "endpoints/new", RESTORED} - {"networks/3"}


def test_nothing_to_restore_from_changes_nothing(path: Path) -> None:
    copies.copy_of(path).unlink()
    nonsense(path)
    with pytest.raises(StoreError, match="has nothing that can be read, and neither has"):
        restoring.restore(path)
    assert [file.name for file in path.parent.iterdir()] == ["netplug.db"]


def test_database_that_somebody_deleted_is_a_new_one_and_the_copy_is_kept(path: Path) -> None:
    path.unlink()
    assert read(path) == {}
    assert sorted(file.name for file in path.parent.iterdir()) == ["netplug.db", "netplug.db-copy-old"]


def test_damaged_database_does_not_replace_its_copy(path: Path) -> None:
    before = copies.copy_of(path).read_bytes()
    database = Database(path)
    database.open()
    with closing(database):
        no_json(path)
        with pytest.raises(StoreError, match="is damaged"), database.explained():
            database.copy()
    assert copies.copy_of(path).read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["netplug.db", "netplug.db-copy"]


def test_copy_is_for_its_owner_only(path: Path) -> None:
    assert copies.copy_of(path).stat().st_mode & 0o777 == 0o600


# The command


def command(path: Path, *args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["store", *args], env={"NETPLUG_STATE_DIR": str(path.parent)})
    said = f"{done.output}{done.exception}" if done.exception else done.output
    return getattr(done.exception, "code", done.exit_code) if done.exception else done.exit_code, said


def test_check_says_what_there_is(path: Path) -> None:
    code, said = command(path, "check")
    assert (code, said.count("40 networks and 2 endpoints")) == (OK, 2)
    no_json(path)
    code, said = command(path, "check")
    assert code == NO
    assert "'networks/3' is not JSON" in said


def test_restore_says_what_it_did(path: Path) -> None:
    damaged_middle(path)
    code, said = command(path, "restore")
    assert code == OK
    assert "40 networks and" in said
    assert f"are kept: {path}-damaged-" in said
    assert command(path, "check")[0] == OK


def test_restore_is_refused_while_a_daemon_runs(path: Path) -> None:
    before = path.read_bytes()
    with lock_file(path.parent / "lock"):
        code, said = command(path, "restore")
    assert code == NO
    assert "is in use by process" in said
    assert path.read_bytes() == before
