"""`netplug doctor`: what is wrong with this host, why, and what mends it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from netplug import __version__
from netplug.cli import NO, OK, UNREACHABLE, CliError
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import counted, emit, emit_json, table

_DEADLINE_S = 3.0
"""A daemon that has not answered by then hangs; its checks take at most 1.5 s."""
_ORDER = ("failure", "warning", "note", "not checked", "ok")
_WRONG = {"failure", "warning"}

_All = Annotated[bool, typer.Option("--all", help="Show also what is well.")]
_Support = Annotated[
    bool, typer.Option("--support", help="Write also an archive for a bug report, without secrets, into this folder.")
]


def doctor(
    show_all: _All = False, support: _Support = False, as_json: AsJson = False, run_dir: RunDir = RUN_DIR
) -> None:
    """Say what is wrong with this host, why, and what mends it.

    Kernel, firewalls, links, stores, disk, limits, records and other hosts are looked at, and nothing is changed.
    Without a daemon, the checks that need none are made.

    --support writes netplug-support-HOST-TIME.tar.gz: versions, settings, networks, endpoints, differences, firewall,
    the doctor's findings, links, addresses, routes and rules of the host, events, and the last lines of the log. The
    archive has no passwords, keys, tokens, environment variables or labels.

    Exit code 0: nothing is wrong; 1: something is; 3: no daemon answers.
    """
    run_dir = run_dir.absolute()
    report, code = _asked(run_dir)
    archive = _archive(run_dir, report) if support else None
    if as_json:
        emit_json(report | ({"archive": archive} if archive else {}))
    else:
        emit(_shown(report["findings"], show_all=show_all))
        if archive:
            emit(_told(archive))
    raise typer.Exit(code)


def _asked(run_dir: Path) -> tuple[dict[str, Any], int]:
    """Return the daemon's report, or one made without it, and the exit code."""
    try:
        report: dict[str, Any] = Client(run_dir, _DEADLINE_S).get("doctor")
    except CliError as exc:
        from netplug.cli.daemonless_doctor import examine_host  # noqa: PLC0415 - a daemon that answers spares its imports

        report = examine_host(run_dir, exc)
        if exc.code == UNREACHABLE:
            return report, UNREACHABLE
    else:
        report["findings"].insert(0, _version(report["version"]))
    return report, NO if any(it["verdict"] in _WRONG for it in report["findings"]) else OK


def _version(daemon: str) -> dict[str, str]:
    """Return the finding about the daemon's version. It may run on from before an upgrade."""
    found = {"check": "daemon.version", "verdict": "ok", "why": f"command and daemon are netplug {daemon}", "mend": ""}
    if daemon != __version__:
        found |= {"verdict": "warning", "why": f"the daemon is netplug {daemon}, this command {__version__}"}
        found |= {"mend": "systemctl restart netplug; containers stay connected"}
    return found


def _archive(run_dir: Path, report: dict[str, Any]) -> dict[str, Any]:
    from netplug.cli.support import write  # noqa: PLC0415 - imports what the other commands do not need

    path, files = write(run_dir, report, Path.cwd())
    return {"path": str(path), "files": [{"name": name, "bytes": size} for name, size in files]}


def _told(archive: dict[str, Any]) -> str:
    rows = [(it["name"], str(it["bytes"])) for it in archive["files"]]
    words = (
        "It has no passwords, keys, tokens, environment variables and labels, but names and addresses: read it first."
    )
    return f"\n{table(('file', 'bytes'), rows)}\nwritten to {archive['path']}\n{words}"


def _shown(findings: Iterable[dict[str, str]], *, show_all: bool) -> str:
    ordered = sorted(findings, key=lambda it: _ORDER.index(it["verdict"]))
    rows = [it for it in ordered if show_all or it["verdict"] != "ok"]
    well = len({it["check"] for it in ordered} - {it["check"] for it in ordered if it["verdict"] != "ok"})
    parts = []
    if rows:
        columns = ("verdict", "check", "why", "mend")
        parts.append(table(columns, [tuple(it[name] for name in columns) for it in rows]))
    counts = Counter(it["verdict"] for it in ordered)
    said = [counted(counts[word], word) for word in _ORDER[:3] if counts[word]]
    if unknown := counts["not checked"]:
        said.append(f"{unknown} not checked")
    parts.append(", ".join([*said, f"{counted(well, 'check')} well{'' if show_all else ' (--all shows them)'}"]))
    return "\n".join(parts)
