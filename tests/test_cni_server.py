"""The CNI socket: one call a connection, and an end in good order."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from engine_host import Host, until

from netplug.frontends.cni import shim
from netplug.frontends.cni.server import MOST_BYTES, serving_cni
from netplug.frontends.cni.service import CniService
from netplug.frontends.cni.wire import Call, Reply

STATUS = Call("pynet", {"CNI_COMMAND": "STATUS"}, b'{"cniVersion": "1.1.0", "name": "blue", "type": "pynet"}')


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[CniService]:
    host = await Host.boot()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.setblocking(False)
    service = CniService(host.engine)
    async with serving_cni(service, sock):
        yield service
    await host.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cni.sock"


async def test_calls_are_answered_as_the_executable_asks(path: Path) -> None:
    async with served(path):
        asked = [asyncio.to_thread(shim.ask, str(path), STATUS.render()) for _ in range(5)]
        assert [Reply.parse(said) for said in await asyncio.gather(*asked)] == [Reply(0)] * 5
        assert await asyncio.to_thread(shim.ask, str(path), b"") == b""
        said = Reply.parse(await asyncio.to_thread(shim.ask, str(path), b"garbage"))
        assert said is not None
        assert said.code == 1
        assert '"code": 4' in said.stdout


async def test_request_that_is_too_long_is_refused(path: Path) -> None:
    """No answer would mean that the daemon has died, and the executable would wait for its state."""
    more = b" " * (MOST_BYTES + 1_000_000)
    async with served(path):
        for head, answer in (
            (b"CNI_COMMAND=ADD", '"code": 6, "msg": "the'),
            (b"NETAVARK_COMMAND=create", '"error": "the'),
        ):
            said = Reply.parse(await asyncio.to_thread(shim.ask, str(path), b"pynet\0" + head + b"\0\0" + more))
            assert said is not None
            assert said.code == 1
            assert answer + " configuration is longer than 4194304 bytes" in said.stdout


async def test_nobody_there_is_no_answer(path: Path) -> None:
    assert await asyncio.to_thread(shim.ask, str(path), b"x") == b""


async def test_who_says_nothing_does_not_hold_up_the_end(path: Path) -> None:
    async with asyncio.timeout(20):
        async with served(path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"pynet\0")
            await writer.drain()
        assert await reader.read() == b""
        writer.close()


async def test_who_goes_away_is_served_all_the_same(path: Path) -> None:
    """A runtime that gave up on an ADD says DEL; both must not be half done."""
    began, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with served(path) as service:
        answer = service.answer

        async def slow(call: Call) -> Reply:
            began.set()
            await go_on.wait()
            reply = await answer(call)
            done.set()
            return reply

        service.answer = slow  # type: ignore[method-assign]
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(STATUS.render())
        writer.write_eof()
        await began.wait()
        writer.close()
        go_on.set()
        await until(done.is_set)
