"""The doctor of a daemon."""

import asyncio
from typing import TYPE_CHECKING

from netplug import __version__
from netplug.insight.doctor.checks import HOST, RECORDS
from netplug.insight.doctor.doctor import examine
from netplug.insight.doctor.report import Report
from netplug.insight.doctor.subject import HostSubject, OneLook

if TYPE_CHECKING:
    from netplug.insight.insight import Subject


async def examined(subject: "Subject") -> Report:
    """Make all checks."""
    registry = subject.engine.registry
    networks = [record.network for record in registry.networks()]
    host = HostSubject(
        subject.settings,
        OneLook(subject.engine.kernel),
        networks,
        len(registry.endpoints()),
        root=subject.settings.host_root,
    )
    of_host, of_records = await asyncio.gather(examine(HOST, host), examine(RECORDS, subject))
    return Report.of(subject.settings.host_name, __version__, [*of_host, *of_records])
