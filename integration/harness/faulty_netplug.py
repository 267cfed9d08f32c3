"""Run `netplug` with a fault in its Docker plugin: at one request, what is written in a file happens.

It is the real daemon in all else, so that dockerd speaks with it alone; but it waits less before it compares its
records with Docker's lists. A program of its own, see `faults.py`:
`python faulty_netplug.py serve …`, with the folder of its files in `FAULTS`.
"""

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from netplug.cli import main
from netplug.docker import garbage
from netplug.frontends.docker import network

FOLDER = Path(os.environ.get("FAULTS", "/nonexistent"))


class Faulty:
    """A plugin's app, whose requests are counted and noted."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        transport = send.__self__.transport
        calls = FOLDER / "calls"
        with calls.open("a") as file:
            file.write(scope["path"].removeprefix("/") + "\n")
        fault = _due(len(calls.read_text().splitlines()))
        if fault is None:
            await self._app(scope, receive, send)
            return
        messages: list[Any] = []

        async def keep(message: Any) -> None:
            messages.append(message)

        if fault["moment"] == "answered":
            await self._app(scope, receive, keep)
        _do(fault["what"], _caller(transport.get_extra_info("socket")))
        if fault["what"] != "containerd":
            transport.abort()
            return
        if fault["moment"] == "asked":
            await self._app(scope, receive, keep)
        for message in messages:
            await send(message)


def _due(number: int) -> dict[str, Any] | None:
    with suppress(FileNotFoundError):
        fault: dict[str, Any] = json.loads((FOLDER / "fault").read_text())
        if fault["number"] == number:
            (FOLDER / "fault").unlink()
            return fault
    return None


def _do(what: str, dockerd: int) -> None:
    if what == "netplug":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "dockerd":
        os.kill(dockerd, signal.SIGKILL)
    if what == "containerd":
        for pid in Path(f"/proc/{dockerd}/task/{dockerd}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "containerd\n":
                os.kill(int(pid), signal.SIGKILL)


def _caller(sock: Any) -> int:
    (pid, _, _) = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


garbage.REPEATS_S = 3.0  # a request that netplug answers is repeated at once
_docker_app = network.docker_app
network.docker_app = lambda *args, **options: Faulty(_docker_app(*args, **options))  # type: ignore[assignment]
sys.argv[0] = "netplug"
sys.exit(main())
