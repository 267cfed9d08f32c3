"""`netplug doctor --support`: an archive for a bug report, without secrets."""

import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netplug import __version__
from netplug.cli import NO, CliError
from netplug.cli.client import Client
from netplug.config import Settings, load
from netplug.errors import NetplugError
from netplug.insight.doctor.support import settings_of, written
from netplug.kernel.host.dump import dump

_DEADLINE_S = 5.0
_PARTS = {
    "networks": "networks",
    "endpoints": "endpoints",
    "pools": "ipam",
    "audit": "ipam/audit",
    "hosts": "hosts",
    "diff": "diff",
    "firewall": "firewall",
    "names": "dns/stats",
    "events": "events",
}
"""What the daemon tells, by name in the archive."""

File = tuple[str, int]
"""Name and size in bytes."""


def write(run_dir: Path, report: dict[str, Any], folder: Path) -> tuple[Path, Sequence[File]]:
    """Write the archive into a folder, and return its path and what is in it.

    Raises:
        CliError: it cannot be written.
    """
    name = f"netplug-support-{report['host'] or 'host'}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    path = folder / f"{name}.tar.gz"
    settings = _own_settings(run_dir)
    parts: dict[str, Any] = {"doctor": report, "versions": _versions(report), **_told(run_dir, settings)}
    parts |= {f"host/{name}": text for name, text in dump().items()}
    try:
        return path, written(path, name, parts, _secrets(settings))
    except OSError as exc:
        raise CliError(NO, f"{path} cannot be written: {(exc.strerror or str(exc)).lower()}") from None


def _versions(report: dict[str, Any]) -> dict[str, str]:
    return {
        "netplug": __version__,
        "daemon": report["version"],
        "python": sys.version.split()[0],
        "kernel": f"{os.uname().release} {os.uname().version}",
        "system": _distribution(),
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.platform()


def _told(run_dir: Path, settings: Settings | None) -> dict[str, Any]:
    """Return what the daemon tells; without one the settings that it would have."""
    client = Client(run_dir, _DEADLINE_S)
    try:
        found: dict[str, Any] = {"settings": client.get("settings")}
    except CliError as exc:
        return {"settings": settings_of(settings) if settings else str(exc)}
    for name, path in _PARTS.items():
        try:
            found[name] = client.get(*path.split("/"))
        except CliError as exc:
            found[name] = f"{exc}\n"
    return found


def _own_settings(run_dir: Path) -> Settings | None:
    try:
        return load(run_dir=run_dir)
    except NetplugError:
        return None


def _secrets(settings: Settings | None) -> list[str]:
    access = settings.etcd if settings else None
    return [access.password] if access and access.password else []
