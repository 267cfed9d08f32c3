"""`netplug store`: whether this host's database is whole, and its recovery."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from netplug.cli import NO, OK, CliError
from netplug.cli.output import counted, emit

if TYPE_CHECKING:
    from netplug.store.restoring import Found

app = typer.Typer(help="Check and restore the database of this host.")

_PATIENCE_S = 5.0
"""Commands that work without a daemon have the state directory for a second or two."""


@app.command("check")
def check() -> None:
    """Check that the database of this host is whole.

    It reads the database in the state directory, and the copy beside it, and changes nothing. A daemon may run.

    Exit code 0: the database is whole; 1: it is not.
    """
    from netplug.store import copies, restoring  # noqa: PLC0415 - help does not need it

    path = _database()
    try:
        found, copy = restoring.examine(path), restoring.examine(copies.copy_of(path))
    except PermissionError as exc:
        raise CliError(
            NO, f"{exc.filename} cannot be read: permission denied", hint="sudo netplug store check"
        ) from None
    emit(f"{path}: {_words(found)}")
    emit(f"{copies.copy_of(path)}: {_words(copy)}")
    if found.fault:
        hint = "stop netplug, run 'netplug store restore', start it; containers stay connected"
        raise CliError(NO, f"{path} is damaged: {found.fault}", hint=hint)
    raise typer.Exit(OK)


@app.command("restore")
def restore() -> None:
    """Restore the database of this host from what can be read.

    The daemon must not run; containers stay connected meanwhile. What can be read of the damaged database, and what
    its copy has beside, is put into a new one. The damaged files are kept. The daemon writes the copy some seconds
    after a change. Start the daemon afterwards: it ends what no longer exists, and keeps what belongs to no record
    until 'netplug repair'.

    Exit code 0: done; 1: a daemon runs, or nothing can be read.
    """
    from netplug.store import restoring  # noqa: PLC0415 - help does not need it
    from netplug.store.api import StoreError  # noqa: PLC0415

    path = _database()
    with _alone(path.parent):
        try:
            done = restoring.restore(path)
        except (StoreError, OSError) as exc:
            raise CliError(NO, str(exc)) from None
    emit(f"{path}: {_words(done.records)}, {counted(done.from_copy, 'record')} of all from the copy")
    emit(f"the damaged files are kept: {done.kept}*")
    emit("start netplug now, and compare 'netplug ps' with the containers that run")


def _database() -> Path:
    from netplug.cli.service import own_settings  # noqa: PLC0415

    return own_settings().database


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have the state directory, as a daemon has it."""
    from netplug.daemon.lock import DAEMONLESS_LOCK, exclusive, lock_file  # noqa: PLC0415
    from netplug.errors import NetplugError  # noqa: PLC0415

    try:
        with exclusive(folder / DAEMONLESS_LOCK, _PATIENCE_S), lock_file(folder / "lock"):
            yield
    except NetplugError as exc:
        raise CliError(NO, exc.message, hint=exc.hint) from None


def _words(found: "Found") -> str:
    parts = f"{counted(found.networks(), 'network')} and {counted(found.endpoints(), 'endpoint')}"
    return f"{parts} can be read: {found.fault}" if found.fault else parts
