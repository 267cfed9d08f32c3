"""Power cuts and careless copies: a database copied while it is written opens whole, or says how to restore it.

A power cut leaves what was written in the order of the flushes; a copy of the files, one after the other, leaves worse.
So each copy is torn in one of several ways. Two records are always written by one transaction: one alone is half a
change.
`NETPLUG_TORN_COPIES=1000 pytest tests/test_store_torn.py` tries more of them.
"""

import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from netplug.store import copies, restoring
from netplug.store.api import StoreError
from netplug.store.database import Database, Write
from netplug.store.restoring import RESTORED

COPIES = int(os.environ.get("NETPLUG_TORN_COPIES", "28"))
STAY = {f"networks/{n}": {"text": f"{n}-" + "n" * 900 * n} for n in range(12)}
"""Records that nobody changes."""
FILES = ("netplug.db", "netplug.db-wal", "netplug.db-shm")
HINT = "'netplug store restore'"


def text(value: object) -> str:
    return f'{{"text":"{value}"}}'


class Churn:
    """Writes to a database in a thread, as attaching and detaching does, while used in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        database = Database(self.path)
        database.open()
        with closing(database):
            database.txn([], [Write(k.encode(), text(v["text"])) for k, v in STAY.items()], durable=True)
            rand, there, number = random.Random(1), list[int](), 0  # noqa: S311
            while not self._over.wait(0.0003):
                number += 1
                database.txn([], [Write(b"journal/1", text("i" * 2500))], durable=False)
                if len(there) > 40 or (there and rand.random() < 0.45):
                    gone = there.pop(rand.randrange(len(there)))
                    ops = [Write(b"endpoints/%d" % gone), Write(b"ipam/%d" % gone)]
                else:
                    there.append(number)
                    value = text(f"{number}-" + "e" * rand.randrange(600, 4000))
                    ops = [Write(b"endpoints/%d" % number, value), Write(b"ipam/%d" % number, value)]
                database.txn([], [*ops, Write(b"journal/1")], durable=number % 10 == 0)
                if number % 40 == 0:
                    copies.write(self.path)
                    self._written.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._written.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def in_order(folder: Path, _: random.Random) -> None:
    """Nothing beside what the copying itself does."""


def without_log(folder: Path, _: random.Random) -> None:
    (folder / FILES[1]).unlink(missing_ok=True)


def without_index(folder: Path, _: random.Random) -> None:
    (folder / FILES[2]).unlink(missing_ok=True)


def cut(name: str) -> Callable[[Path, random.Random], None]:
    def tear(folder: Path, rand: random.Random) -> None:
        if (path := folder / name).exists():
            os.truncate(path, rand.randrange(path.stat().st_size + 1))

    tear.__name__ = f"cut {name}"
    return tear


def overwritten(name: str) -> Callable[[Path, random.Random], None]:
    def tear(folder: Path, rand: random.Random) -> None:
        if (path := folder / name).exists() and (size := path.stat().st_size):
            data = bytearray(path.read_bytes())
            for _ in range(3):
                at = rand.randrange(size)
                data[at : at + 300] = rand.randbytes(len(data[at : at + 300]))
            path.write_bytes(data)

    tear.__name__ = f"overwritten {name}"
    return tear


TEARS = (
    in_order,
    without_log,
    without_index,
    cut(FILES[0]),
    cut(FILES[1]),
    overwritten(FILES[0]),
    overwritten(FILES[1]),
)


def copied(source: Path, folder: Path, rand: random.Random) -> None:
    """Copy the files in any order, with a pause or without one."""
    names = [*FILES, copies.copy_of(source).name]
    rand.shuffle(names)
    pause_s = rand.choice((0.0, 0.0, 0.005, 0.03))
    folder.mkdir()
    for name in names:
        for _ in range(9):  # the copy is replaced as a whole at any moment
            try:
                shutil.copyfile(source.with_name(name), folder / name)
                break
            except FileNotFoundError:
                continue
        time.sleep(pause_s)  # between two files is where a copy is torn


def read(path: Path) -> dict[str, object]:
    database = Database(path)
    with database.explained():
        database.open()
        with closing(database):
            return {it.key: it.value for it in database.range(b"")[0]}


@contextmanager
def churn(folder: Path) -> Iterator[Path]:
    with Churn(folder / "state" / FILES[0]) as it:
        yield it.path


def test_torn_copies_open_whole_or_say_how_to_restore_them(tmp_path: Path) -> None:
    rand = random.Random(os.environ.get("NETPLUG_TORN_SEED", "3"))  # noqa: S311
    outcomes = Counter[str]()
    with churn(tmp_path) as source:
        for number in range(COPIES):
            folder, tear = tmp_path / f"copy{number}", TEARS[number % len(TEARS)]
            copied(source, folder, rand)
            tear(folder, rand)
            outcomes[f"{tear.__name__}: {outcome(folder / FILES[0])}"] += 1
            shutil.rmtree(folder)
    sys.stdout.write("".join(f"{count:5} {name}\n" for name, count in sorted(outcomes.items())))
    assert not [name for name in outcomes if "half" in name or "lost" in name], outcomes
    assert sum(outcomes.values()) == COPIES
    assert any("restored" in name for name in outcomes)


def outcome(path: Path) -> str:
    """Open a database, or restore it; say what came of it."""
    try:
        found, how = read(path), "opened"
        if any("text that is no object" in str(value)[:40] for value in found.values()):
            raise StoreError(f"a record is in quarantine; {HINT}")  # noqa: TRY301 - it is restored as well
    except StoreError as exc:
        if HINT not in str(exc):
            return f"lost for words: {exc}"
        restoring.restore(path)
        assert list(path.parent.glob("netplug.db-damaged-*")), "the damaged file is kept"
        found, how = read(path), "restored"
        assert found.pop(RESTORED)
    stay = {key: value for key, value in found.items() if key.startswith("networks/")}
    if stay != STAY:
        return f"{how}, lost {len(STAY) - len(stay)} of {len(STAY)}"
    pairs = {it.partition("/")[2] for it in found if it.startswith(("endpoints/", "ipam/"))}
    halves = [it for it in pairs if found.get(f"endpoints/{it}") != found.get(f"ipam/{it}")]
    return f"{how}, half {len(halves)} of {len(pairs)}" if halves and how == "opened" else f"{how}, all there"
