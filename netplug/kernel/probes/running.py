"""Runs jobs: opens all that watches, sends, waits, and puts the report together."""

import threading
from collections.abc import Callable

from netplug.kernel.probes.api import Job, Report
from netplug.kernel.probes.errors import ProbeError


def run(job: Job) -> Report:
    """Send, watch, and return what was seen."""
    raise ProbeError(f"no {job.flow.kind} probe can be sent yet")


def watch(job: Job, ready: Callable[[], None], end: threading.Event) -> Report:
    """Watch until told to end."""
    del ready, end
    raise ProbeError(f"no {job.flow.kind} probe can be watched yet")
