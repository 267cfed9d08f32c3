"""`netplug cni`: the executable for runtimes, and configurations that join netplug's networks."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from netplug.cli import NO, UNREACHABLE, USAGE, CliError
from netplug.cli.client import Client
from netplug.cli.cni_executable import executable
from netplug.cli.options import RUN_DIR, NetworkRef, RunDir
from netplug.cli.output import emit, emit_json
from netplug.frontends.cni import shim

CAPABILITIES = ("aliases", "bandwidth", "dns", "ipRanges", "ips", "mac", "portMappings")
DEFAULT_VERSION = "1.0.0"
"""The newest version that libcni of Debian 12 (podman 4.3) supports."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

app = typer.Typer(help="Install the CNI plugin, and print configurations.")


@app.command()
def install(
    bin_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the runtime's plugins (CNI_PATH), such as /opt/cni/bin.")
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the executable: the 'type' in configurations.")
    ] = "pynet",
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Write the plugin's executable and print its path.

    An existing executable of this name is replaced.
    """
    if not _NAME.fullmatch(name):
        raise CliError(USAGE, f"--name {name!r} is not a file name of letters, digits, '_', '.' and '-'")
    path = bin_dir.absolute() / name
    try:
        bin_dir.mkdir(parents=True, exist_ok=True)
        _replace(path, executable(run_dir.absolute()), 0o755)
    except OSError as exc:
        raise CliError(NO, f"{path} cannot be written: {(exc.strerror or str(exc)).lower()}") from None
    emit(str(path))


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically: a concurrent reader gets the old content or the new."""
    import tempfile  # noqa: PLC0415 - takes 4 ms, which other commands need not spend

    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@app.command()
def config(
    network: NetworkRef,
    cni_version: Annotated[
        str,
        typer.Option(metavar="V", help=f"Version of the specification: one of {', '.join(shim.SPEC_VERSIONS)}."),
    ] = DEFAULT_VERSION,
    name: Annotated[str, typer.Option("--type", metavar="NAME", help="Name of the installed executable.")] = "pynet",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write to this file atomically, and print its path; a missing folder is created."
        ),
    ] = None,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Print a conflist that lets CNI runtimes join a network.

    Without a running daemon, NETWORK must be a name. The first ADD creates the network if it does not exist.
    """
    if cni_version not in shim.SPEC_VERSIONS:
        spoken = ", ".join(shim.SPEC_VERSIONS)
        raise CliError(USAGE, f"--cni-version {cni_version!r} is not one of {spoken}")
    try:
        network = Client(run_dir.absolute()).get("networks", network)["name"]
    except CliError as exc:
        if exc.code != UNREACHABLE:
            raise
        if not _NAME.fullmatch(network):
            raise CliError(USAGE, f"{network!r} is not the name of a network") from None
    data = conflist(network, name, cni_version)
    if out is None:
        emit_json(data)
        return
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        _replace(out.absolute(), json.dumps(data, indent=2).encode() + b"\n", 0o644)
    except OSError as exc:
        raise CliError(NO, f"{out} cannot be written: {(exc.strerror or str(exc)).lower()}") from None
    emit(str(out.absolute()))


def conflist(network: str, kind: str, cni_version: str) -> dict[str, Any]:
    """Return a conflist that joins a network."""
    plugin = {"type": kind, "capabilities": dict.fromkeys(CAPABILITIES, True)}
    return {"cniVersion": cni_version, "name": network, "plugins": [plugin]}
