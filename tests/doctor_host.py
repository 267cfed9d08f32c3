"""A host on a fake kernel that the doctor examines. For tests."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine_host import Host
from living import settings_in

from netplug.insight.doctor import api
from netplug.insight.doctor.findings import Finding
from netplug.insight.doctor.report import FindingOut, Report
from netplug.insight.doctor.subject import HostSubject, OneLook
from netplug.insight.insight import Subject


def subject_of(host: Host, folder: Path, **flags: Any) -> Subject:
    names: Any = None
    return Subject(settings_in(folder, **flags), host.engine, host.reconciler, names, None)


def host_subject(host: Host, folder: Path, *, root: Path | None = None, **flags: Any) -> HostSubject:
    networks = [record.network for record in host.networks()]
    subject = HostSubject(settings_in(folder, **flags), OneLook(host.kernel), networks, len(host.endpoints()))
    return replace(subject, root=root) if root else subject


async def report(host: Host, folder: Path, **flags: Any) -> Report:
    return await api.examined(subject_of(host, folder, **flags))


def wrong(found: Report) -> list[FindingOut]:
    """Return what should be mended."""
    return [it for it in found.findings if it.verdict in {"warning", "failure"}]


def bad(findings: Any) -> list[Finding]:
    """Return what is not well."""
    return [it for it in findings if it.verdict != "ok"]


@contextmanager
def name_server() -> Iterator[str]:
    """Run a name server that answers anything, and yield its address and port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                data, peer = sock.recvfrom(512)
                if peer == sock.getsockname():
                    return
                sock.sendto(data, peer)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1#{sock.getsockname()[1]}"
        sock.sendto(b"end", sock.getsockname())
        thread.join()
