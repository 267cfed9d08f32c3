"""`netplug version`: of this command and of the daemon."""

from netplug import __version__
from netplug.cli import UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json


def version(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Print the version of this command and of the daemon."""
    mine = __version__
    try:
        daemon = Client(run_dir.absolute()).get("version")["version"]
    except CliError as exc:
        if exc.code != UNREACHABLE:
            raise
        daemon = None
    if as_json:
        emit_json({"version": mine, "daemon": daemon})
        return
    emit(f"netplug {mine}" + (f"\ndaemon {daemon}" if daemon else ""))
