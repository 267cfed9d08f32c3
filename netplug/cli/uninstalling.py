"""`netplug uninstall`: the service, its files, and all that netplug made in the kernel of this host go."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import typer

from netplug.cli import NO, OK, UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.cli.output import emit
from netplug.cli.service import DEADLINE_S, answering, need_root, own_settings
from netplug.config import Settings, settings_file
from netplug.daemon.host_files import NOTE, PACKAGED, UNITS, remove, remove_empty
from netplug.daemon.service_installation import SERVICE, SOCKET
from netplug.daemon.uninstallation import Removal, Uninstallation, refusal
from netplug.errors import NetplugError
from netplug.kernel.host.services import Services, end
from netplug.store.api import StoreError

_ROOT = Path("/")


def uninstall(*, force: bool, purge: bool) -> None:
    """Remove netplug from this host."""
    need_root("uninstall")
    settings, services = own_settings(), Services()
    try:
        _stop(settings, services, force=force)
        removal = asyncio.run(Uninstallation(settings, force=force).run())
        removed, changed = remove(settings.state_dir / NOTE)
        for path in removed:
            emit(f"removed {path}")
        _reload(services, removed)
    except NetplugError as exc:
        raise CliError(NO, exc.message, hint=exc.hint) from None
    except StoreError as exc:
        hint = f"move {settings.database} away: what has marks is found without it"
        raise CliError(NO, f"the records cannot be read: {exc}", hint=hint) from None
    _remove_sockets(settings)
    kept = [
        *_kept_files(changed, purge=purge),
        *_kept_records(settings, removal, purge=purge),
        *_kept_elsewhere(settings),
    ]
    for line in kept:
        emit(f"kept {line}")
    if removal.left:
        raise CliError(NO, f"could not be removed: {', '.join(removal.left)}")
    raise typer.Exit(OK)


def _stop(settings: Settings, services: Services, *, force: bool) -> None:
    _, process = answering(settings, services)
    if process and not force:
        names = _attached(settings)
        if names:
            raise refusal(names)
    if services.active(SOCKET) or services.active(SERVICE):
        services.systemctl("stop", SOCKET, SERVICE)
        emit(f"stopped {SERVICE}")
    elif process:
        with suppress(ProcessLookupError):
            end(process)
        emit(f"stopped the daemon (process {process})")
    if services.has_systemd and (_ROOT / UNITS / SERVICE).exists():
        services.systemctl("disable", SOCKET, SERVICE)


def _attached(settings: Settings) -> list[str]:
    """Return the names of the containers that are attached on this host, as the daemon knows them."""
    client = Client(settings.run_dir, DEADLINE_S)
    try:
        host = client.get("version")["host"]
        found = client.get("endpoints")["endpoints"]
    except CliError as exc:
        if exc.code == UNREACHABLE:
            return []
        raise
    return [it["name"] or it["id"][:12] for it in found if it["host"] == host]


def _reload(services: Services, removed: Sequence[Path]) -> None:
    if services.systemd_runs and any(path.parent == _ROOT / UNITS for path in removed):
        services.systemctl("daemon-reload")
        services.call("systemctl", "reset-failed", SERVICE, SOCKET)
    for command in services.readers() if removed else ():
        services.call(*command)


def _remove_sockets(settings: Settings) -> None:
    for path in (settings.plugin_socket, settings.api_socket, settings.cni_socket):
        path.unlink(missing_ok=True)
    shutil.rmtree(settings.run_dir / "namespaces", ignore_errors=True)
    for folder in (settings.run_dir, settings.plugin_dir, settings.plugin_dir.parent):
        remove_empty(folder)


def _kept_files(changed: Sequence[Path], *, purge: bool) -> Iterator[str]:
    for path in changed:
        if purge and path == settings_file():
            path.unlink()
            remove_empty(path.parent)
        else:
            yield f"{path}: it was changed since netplug wrote it"


def _kept_records(settings: Settings, removal: Removal, *, purge: bool) -> Iterator[str]:
    folder = settings.state_dir
    if purge or not settings.database.exists():
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        names = ", ".join(removal.networks) or "none"
        yield f"{folder}: records, of networks: {names} (--purge removes them)"
    if removal.of_docker:
        words = "'docker network rm' needs the daemon, so remove them before"
        yield f"networks of Docker: {', '.join(removal.of_docker)} ({words})"


def _kept_elsewhere(settings: Settings) -> Iterator[str]:
    if settings.store != "sqlite":
        yield f"the cluster's knowledge of host {settings.host_name}: netplug host forget, on another host"
    for unit in (_ROOT / folder / SERVICE for folder in PACKAGED):
        if unit.exists():
            yield f"{unit} and other files of a package of this system: remove the package"
            return
    yield "this command: remove it as you installed it, such as by pipx uninstall netplug"
