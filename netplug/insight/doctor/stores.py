"""Checks of the stores: that of this host, and etcd, which hosts share."""

import asyncio
import re
import stat
import time
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from netplug.config import settings_file
from netplug.errors import NetplugError
from netplug.insight.doctor import certificates
from netplug.insight.doctor.findings import Finding, failure, note, ok, warning
from netplug.insight.doctor.subject import HostSubject
from netplug.store.access import EtcdAccess
from netplug.store.api import StoreError
from netplug.tasks.apart import apart

if TYPE_CHECKING:
    from netplug.insight.insight import Subject
    from netplug.store.etcd import EtcdStatus

OLDEST = (3, 4)
"""Of etcd."""
_ASKED = 3
_SLOW_S = 0.1
_DEADLINE_S = 1.2
"""For all questions to one endpoint; the check has 1.5 s."""
_LOCAL_SLOW_S = 0.1
_SOON = timedelta(days=14)


async def local(subject: "Subject") -> Iterable[Finding]:
    """Find that this host's store is slow."""
    store, times = subject.engine.store, []
    for _ in range(_ASKED):
        began = time.monotonic()
        await store.get("meta/base")
        times.append(time.monotonic() - began)
    path = subject.settings.database
    size = path.stat().st_size >> 10 if path.exists() else 0
    words = f"{path} ({size} kB) answers in {_ms(median(times))}"
    return [warning(f"{words}: the disk is slow", "iostat -x 1")] if median(times) > _LOCAL_SLOW_S else [ok(words)]


async def shared(host: HostSubject) -> Iterable[Finding]:
    """Find endpoints of etcd that do not answer, or slowly."""
    access = host.settings.etcd
    if access is None:
        return [ok("this host shares no store")]
    found = await asyncio.gather(*(_endpoint(access, endpoint) for endpoint in access.endpoints))
    if len(found) == 1 or not all(it.verdict.wrong for it in found):
        return found
    words = f"no endpoint of {access} answers: networks of the cluster cannot be changed"
    return [failure(words, "see docs/store.md, Failures of etcd"), *found]


async def _endpoint(access: EtcdAccess, endpoint: str) -> Finding:
    mend = f"etcdctl --endpoints={endpoint} endpoint health, on this host; systemctl status etcd, there"
    took_s: list[float] = []
    status = None
    try:
        async with asyncio.timeout(_DEADLINE_S):
            status = await _asked(replace(access, endpoints=(endpoint,)), took_s)
    except TimeoutError:
        if not took_s:
            return failure(f"etcd at {endpoint} does not answer within {_DEADLINE_S:g} s", mend)
    except StoreError as exc:
        return failure(f"etcd at {endpoint}: {exc}", mend)
    words = f"etcd at {endpoint} answers in {_ms(median(took_s))}"
    if status and status.errors:
        mend = f"etcdctl --endpoints={endpoint} compact and defrag, then alarm disarm (etcd's maintenance guide)"
        errors, size = ", ".join(status.errors), status.size_bytes >> 20
        return failure(f"etcd at {endpoint} ({size} MB) reports {errors}: it takes no changes", mend)
    if status and tuple(map(int, re.findall(r"\d+", status.version)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return warning(
            f"etcd at {endpoint} is of version {status.version}; netplug needs {oldest} or later", "upgrade etcd"
        )
    if median(took_s) > _SLOW_S:
        return warning(f"{words}: each start of a container in a cluster network waits for that", mend)
    return ok(words)


async def _asked(access: EtcdAccess, took_s: list[float]) -> "EtcdStatus":
    """Measure how long etcd takes for some reads, through the whole cluster (linearizable), and return its status."""
    await apart(partial(import_module, "netplug.store.etcd"))  # aiohttp takes 0.3 s, and few hosts need it
    from netplug.store.etcd import EtcdStore  # noqa: PLC0415

    store = await EtcdStore.open(access, deadline_s=_DEADLINE_S, attempt_s=_DEADLINE_S)
    try:
        await store.check()  # also connects
        for _ in range(_ASKED):
            began = time.monotonic()
            await store.check()
            took_s.append(time.monotonic() - began)
        return await store.status()
    finally:
        await store.close()


async def trust(host: HostSubject) -> Iterable[Finding]:
    """Find that everybody can change the shared store, or read what gives the right to; or that a certificate ends."""
    access = host.settings.etcd
    if access is None:
        return [ok("this host shares no store")]
    found: list[Finding] = []
    if access.user and not access.ca:
        found.append(
            warning("the password for etcd crosses the network in clear", "give etcd a certificate, and --etcd-ca")
        )
    if not access.authenticated:
        words = "every client that can connect to etcd can read and change all networks"
        found.append(note(words, "give etcd a user or client certificates, see docs/store.md"))
    found += await apart(partial(_exposed, access, settings_file()))
    for path in filter(None, (access.ca, access.cert)):
        end = await apart(partial(certificates.ends, path))
        now = datetime.now(UTC)
        if end is not None and end < now:
            found.append(failure(f"certificate {path} ended on {end:%Y-%m-%d}", f"renew {path}, and restart netplug"))
        elif end is not None and end < now + _SOON:
            found.append(warning(f"certificate {path} ends on {end:%Y-%m-%d}", f"renew {path}, and restart netplug"))
    return found


def _exposed(access: EtcdAccess, settings: Path) -> list[Finding]:
    """Find files with the password or the key for etcd that everybody can read."""
    secrets = [(access.key, "key")] if access.key else []
    if _has_password(settings):
        secrets.insert(0, (settings, "password"))
    found = []
    for path, what in secrets:
        with suppress(OSError):
            if path.stat().st_mode & stat.S_IROTH:
                words = f"everybody on this host can read the {what} for etcd in {path}"
                found.append(warning(words, f"chmod o= {path}"))
    return found


def _has_password(path: Path) -> bool:
    """Tell whether a file of settings has a password for etcd."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(given.get("etcd_password")) or "@" in str(given.get("store", ""))


async def vtep(host: HostSubject) -> Iterable[Finding]:
    """Find that this host has no address for tunnels."""
    from netplug.cluster.vtep import Finder  # noqa: PLC0415 - only hosts of a cluster need it

    access = host.settings.etcd
    if access is None:
        return [ok("this host is in no cluster")]
    try:
        found = await apart(partial(Finder(host.settings.vtep, access).find, await host.kernel.facts()))
    except NetplugError as exc:
        return [failure(exc.message, exc.hint or "give --vtep ADDRESS or --vtep LINK")]
    return [ok(f"the VTEP is {found}")]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
