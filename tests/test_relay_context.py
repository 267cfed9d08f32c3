"""What a relayed port does is done for nobody: the request that asked for it is over."""

import asyncio
import socket

from netplug.kernel.host.relays import _Port
from netplug.tasks import request


async def test_port_is_read_outside_of_the_request_that_asked_for_it() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    seen: asyncio.Future[request.Request] = loop.create_future()

    def read() -> None:
        here.recv(1)
        seen.set_result(request.current())

    with here, there:
        with request.working_for("docker", "EndpointOperInfo"):
            port = _Port(here, read)
        there.send(b"x")
        try:
            assert (await asyncio.wait_for(seen, 20)).asker == request.ITSELF
        finally:
            port.close()
