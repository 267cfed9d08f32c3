"""The doctor when no daemon answers: that is when people need one most.

The checks of the host are made as the daemon would make them. Its records are read from the file, if no process has it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from netplug.config import Settings
from netplug.drivers.api import Network
from netplug.drivers.codec import JsonObject, decode_known
from netplug.engine.records import ENDPOINTS, NETWORKS
from netplug.insight.doctor.checks import HOST
from netplug.insight.doctor.daemons import command, serving
from netplug.insight.doctor.doctor import examine
from netplug.insight.doctor.findings import Finding, failure, note, ok
from netplug.insight.doctor.report import Report
from netplug.insight.doctor.subject import HostSubject, KernelView, OneLook
from netplug.kernel.host.api import Program
from netplug.store import reading
from netplug.store.api import StoreError
from netplug.tasks.apart import apart

_UNITS = ("etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_START = "systemctl start netplug (journalctl -u netplug says why it ended), or netplug serve"
_INSTALL = "netplug install-service, which has systemd start it now and at each boot; or netplug serve"


@dataclass(frozen=True, slots=True)
class Absence:
    """Why no daemon answers. `why`, `hint`: as the command says. `settings`: why they are refused; empty if not."""

    why: str
    hint: str = ""
    settings: str = ""


@dataclass(slots=True)
class _Records:
    networks: list[Network] = field(default_factory=list)
    endpoints: int = 0
    findings: list[Finding] = field(default_factory=list)


async def examined(settings: Settings, kernel: KernelView, absence: Absence) -> Report:
    """Make the checks that need no daemon; the first finding is that none answers."""
    look = OneLook(kernel)
    daemons = await serving(look)
    found = [_daemon(absence, daemons, settings.restart_hint)]
    if absence.settings:
        mend = "correct it: netplug serve --help lists the settings"
        found.append(failure(f"the daemon cannot start: {absence.settings}", mend))
    records = await apart(partial(_read, settings.database)) if not daemons else _Records()
    host = HostSubject(settings, look, records.networks, records.endpoints, daemon=False)
    checks = await examine(HOST, host)
    named = _named("daemon", found) + _named("store.local", records.findings)
    return Report.of(settings.host_name, "", [*named, *checks])


def has_service(root: Path = Path("/")) -> bool:
    """Return whether this host has a service of systemd for the daemon."""
    return any((root / folder / "netplug.service").exists() for folder in _UNITS)


def _daemon(absence: Absence, daemons: Sequence[Program], restart: str) -> Finding:
    if "permission" in absence.why:
        return failure(absence.why, absence.hint)
    if "does not start" in absence.why:
        return failure(absence.why, absence.hint)
    if "did not answer" in absence.why and (absence.settings or not daemons):
        words = f"{absence.why}: it does not start, and systemd holds its socket"
        return failure(words, "correct what keeps it from starting: systemctl status netplug (journalctl -u netplug)")
    if not daemons:
        return failure(absence.why, _START if has_service() else _INSTALL)
    which = ", ".join(f"process {it.pid} ({command(it)})" for it in daemons)
    if "did not answer" in absence.why:
        return failure(f"{absence.why}; {which} hangs", restart)
    return failure(f"{absence.why}, but {which} runs", "give its --run-dir to this command")


def _read(path: Path) -> _Records:
    try:
        path.open("rb").close()
    except PermissionError:
        return _Records(findings=[note(f"{path} is root's: its records are not read", "sudo netplug doctor")])
    except OSError:
        pass  # its cause is found below
    if not path.parent.exists():
        return _Records(findings=[note(f"{path.parent} does not exist: no daemon has run with it")])
    try:
        stored = reading.records(path)
    except StoreError as exc:
        if not path.exists():
            return _Records(findings=[note(f"{exc}: no daemon has run with it")])
        return _Records(findings=[failure(str(exc), f"cp -a {path.parent} {path.parent}.saved before you do so")])
    networks = [
        it for record in stored if record.key.startswith(NETWORKS) if (it := _network(record.value)) is not None
    ]
    endpoints = sum(record.key.startswith(ENDPOINTS) for record in stored)
    words = f"{path} is undamaged: {len(networks)} networks, {endpoints} endpoints"
    return _Records(networks, endpoints, [ok(words)])


def _network(value: JsonObject) -> Network | None:
    return decode_known(Network, value.get("network"))


def _named(check: str, findings: Iterable[Finding]) -> list[Finding]:
    return [replace(it, check=check) for it in findings]
