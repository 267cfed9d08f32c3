"""A host on a fake kernel that the doctor examines. For tests."""

from pathlib import Path
from typing import Any

from engine_host import Host
from living import settings_in

from netplug.insight.doctor import api
from netplug.insight.doctor.findings import Check, Finding
from netplug.insight.doctor.report import FindingOut, Report
from netplug.insight.doctor.subject import HostSubject, OneLook
from netplug.insight.insight import Subject

Said = list[tuple[str, str]]
"""Verdict and reason."""


def subject_of(host: Host, folder: Path) -> Subject:
    names: Any = None
    return Subject(settings_in(folder), host.engine, host.reconciler, names, None)


def host_subject(host: Host, folder: Path) -> HostSubject:
    networks = [record.network for record in host.networks()]
    return HostSubject(settings_in(folder), OneLook(host.kernel), networks, len(host.endpoints()))


async def report(host: Host, folder: Path) -> Report:
    return await api.examined(subject_of(host, folder))


def wrong(found: Report) -> list[FindingOut]:
    """Return what should be mended."""
    return [it for it in found.findings if it.verdict in {"warning", "failure"}]


async def found_by(check: Check[HostSubject], host: Host, folder: Path) -> list[Finding]:
    """Return what one check of the host finds, but for what is well."""
    return [it for it in await check.look(host_subject(host, folder)) if it.verdict != "ok"]
