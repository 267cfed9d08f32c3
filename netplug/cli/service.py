"""`netplug install-service`: the daemon as a service of this host, for an installation by pip or pipx."""

import os
import sys
from functools import cache
from pathlib import Path

from netplug import __version__
from netplug.cli import NO, UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.cli.cni_executable import executable
from netplug.cli.output import emit
from netplug.config import Settings, load
from netplug.daemon.host_files import NOTE, wanted
from netplug.daemon.service_installation import SERVICE, SOCKET, ServiceInstallation
from netplug.errors import NetplugError
from netplug.kernel.host.services import Services

_ROOT = Path("/")
DEADLINE_S = 30.0


def install(*, dry_run: bool) -> None:
    """Install and start the service."""
    need_root("install-service")
    settings, services = own_settings(), Services()
    content = cache(lambda: executable(settings.run_dir))
    files = wanted(_ROOT, own_command(), content, settings, units=services.has_systemd)
    installation = ServiceInstallation(tuple(files), settings.state_dir / NOTE, services, emit, dry_run=dry_run)
    try:
        version, process = answering(settings, services)
        installation.refuse(process)
        changed = installation.write()
        installation.start(changed=changed, outdated=version not in {"", __version__})
    except NetplugError as exc:
        raise CliError(NO, exc.message, hint=exc.hint) from None
    if dry_run:
        emit("nothing was changed (--dry-run)")
    elif services.systemd_runs:
        found = Client(settings.run_dir, DEADLINE_S).get("version")
        emit(f"netplug {found['version']} runs as {SERVICE}")
    else:
        emit(f"systemd does not run here: have {own_command()} serve started at boot, before dockerd")


def answering(settings: Settings, services: Services) -> tuple[str, int]:
    """Return version and process of the daemon that answers; nothing if none does.

    A socket of systemd that waits is not asked: that would start the service.
    """
    if services.active(SOCKET) and not services.active(SERVICE):
        return "", 0
    try:
        found = Client(settings.run_dir, DEADLINE_S).get("version")
    except CliError as exc:
        if exc.code == UNREACHABLE:
            return "", 0
        raise
    return str(found["version"]), int(found["pid"])


def own_command() -> Path:
    """Return the path of `netplug` in the environment of this process."""
    beside = Path(sys.executable).with_name("netplug")
    return beside if beside.exists() else Path(sys.argv[0]).absolute()


def own_settings() -> Settings:
    """Return the settings that the daemon has."""
    try:
        return load()
    except NetplugError as exc:
        raise CliError(NO, exc.message, hint=exc.hint) from None


def need_root(command: str) -> None:
    """Refuse other users."""
    if os.geteuid():
        raise CliError(NO, f"netplug {command} needs root", hint=f"sudo netplug {command}")
