"""Who connects while no file descriptor is left waits, and is answered when there is one again."""

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest

from netplug.frontends.accept import RETRY_S, accept


class Full(socket.socket):
    """As where no descriptor is left."""

    full = True
    asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if self.full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_who_connects_without_a_descriptor_waits_and_nobody_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("netplug.frontends.accept.log.warning", lambda event, **_: said.append(event))
    path = str(tmp_path / "sock")
    with Full(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)
        taken: list[socket.socket] = []

        async def take(connection: socket.socket) -> None:
            taken.append(connection)

        task = asyncio.ensure_future(accept(sock, take))
        try:
            with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as other:
                client.connect(path)
                other.connect(path)
                await asyncio.sleep(2.5 * RETRY_S)
                assert (taken, sock.asked <= 4, said) == ([], True, ["connections.waiting"])
                sock.full = False
                async with asyncio.timeout(5):
                    while len(taken) < 2:  # noqa: ASYNC110 - a task tells no event
                        await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for connection in taken:
                connection.close()
