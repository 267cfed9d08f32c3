"""`netplug dns host`: the host itself resolves the names of containers."""

import socket
from pathlib import Path
from typing import Any

import typer

from netplug.cli import NO, OK
from netplug.cli.client import Client
from netplug.cli.options import RUN_DIR, AsJson, RunDir
from netplug.cli.output import emit, emit_json, note_line

app = typer.Typer(help="Let the host itself resolve the names of containers.")


@app.command("on")
def on(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Let programs of this host resolve names of containers.

    The names are full ones, such as web.blue.netplug.internal. systemd-resolved, resolvconf or resolv.conf is told who
    answers, and told again when it forgets. This survives restarts. Programs of the host see the names of all networks.
    Single labels, and names of other domains, mean what they meant before.
    """
    found = _client(run_dir).post("dns", "host")
    if as_json:
        emit_json(found)
        return
    emit(_shown(found))
    if found["hint"]:
        note_line(found["hint"])


@app.command("off")
def off(run_dir: RunDir = RUN_DIR) -> None:
    """Take back what 'on' did.

    The host's files and settings are as before.
    """
    _client(run_dir).delete("dns", "host")


@app.command("status")
def status(as_json: AsJson = False, run_dir: RunDir = RUN_DIR) -> None:
    """Show whether a name resolves on the host.

    It also shows in which way the host asks. The name is that of an endpoint, or else host.netplug.internal. Exit code
    0: it resolves; 1: it does not, or the host does not ask.
    """
    found = _client(run_dir).get("dns", "host")
    answer = _resolved(found["example"]) if found["on"] and found["example"] else []
    found["resolves"] = answer
    if as_json:
        emit_json(found)
    else:
        emit(_shown(found))
        if found["on"]:
            emit(_tried(found["example"], answer))
            if found["hint"] and not answer:
                note_line(found["hint"])
    raise typer.Exit(OK if answer else NO)


def _shown(found: dict[str, Any]) -> str:
    if not found["on"]:
        return "off: this host does not ask for names of containers"
    return f"on: this host asks {found['server']} for names below {found['domain']}, by {found['way']}"


def _tried(name: str, answer: list[str]) -> str:
    if not name:
        return "there is no name to try: no network has names"
    return f"{name} resolves to {', '.join(answer)}" if answer else f"{name} does not resolve"


def _resolved(name: str) -> list[str]:
    """Resolve a name as every program of the host does."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(it[4][0]) for it in found))


def _client(run_dir: Path) -> Client:
    return Client(run_dir.absolute())
