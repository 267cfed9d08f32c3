"""The checks of `netplug doctor` in this process, when no daemon answers."""

import asyncio
import socket
from pathlib import Path
from typing import Any

from netplug.cli import UNREACHABLE, CliError
from netplug.config import Settings, load
from netplug.errors import NetplugError
from netplug.insight.doctor.report import Report
from netplug.insight.doctor.without_daemon import Absence, examined
from netplug.kernel.look import KernelLook


def examine_host(run_dir: Path, error: CliError) -> dict[str, Any]:
    """Return the report of this host. `error`: why the daemon has given none."""
    refused = ""
    try:
        settings = load(run_dir=run_dir)
    except NetplugError as exc:
        refused, settings = exc.message, Settings.model_construct(run_dir=run_dir, host_name=socket.gethostname())
    hint = error.hint
    why = (
        error.message if error.code == UNREACHABLE else f"the daemon is of a version without a doctor: {error.message}"
    )
    return asyncio.run(_examine(settings, Absence(why, hint, refused))).model_dump()


async def _examine(settings: Settings, absence: Absence) -> Report:
    with KernelLook() as kernel:
        return await examined(settings, kernel, absence)
