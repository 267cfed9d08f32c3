"""The server on real sockets of the loopback link: datagrams one by one and in batches, and TCP as people misuse it."""

import asyncio
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio
from dns_packets import opt, query, read, view, zones
from engine_host import until

from netplug.dns import batch, tcp, wire
from netplug.dns.pending import Client
from netplug.dns.server import Listener, Tally, open_sockets
from netplug.dns.slow_path import reply
from netplug.dns.zone import Entry, View

DEADLINE_S = 20
ME, OTHER, STRANGER = "127.0.9.2", "127.0.9.3", "127.0.9.4"


class Served:
    """A listener on an address, and who asks it."""

    def __init__(self, *, batched: bool = True, address: str = "127.0.9.1") -> None:
        self.zones = zones()
        self.outward: list[Client] = []
        udp, tcp = open_sockets(address, 0)
        self.at = udp.getsockname()[:2]
        self.listener = Listener(udp, tcp, "blue", self._outward, batched=batched)
        self.socks: list[socket.socket] = []
        for client in (ME, OTHER, "::1"):
            self.listener.admit(ip_address(client), view(self.zones, "blue"))

    def _outward(self, _: View, client: Client) -> None:
        self.outward.append(client)

    def client(self, address: str = ME, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        self.socks.append(sock)
        sock.setblocking(False)
        sock.bind((address, 0))
        return sock

    async def udp(self, *messages: bytes, address: str = ME) -> list[bytes]:
        """Send messages at once and return as many answers."""
        sock, loop = self.client(address), asyncio.get_running_loop()
        for message in messages:
            sock.sendto(message, self.at)
        async with asyncio.timeout(DEADLINE_S):
            return [await loop.sock_recv(sock, 4096) for _ in messages]

    async def tcp(self, address: str = ME) -> socket.socket:
        sock = self.client(address, socket.SOCK_STREAM)
        await asyncio.get_running_loop().sock_connect(sock, self.at)
        return sock


async def hear(sock: socket.socket, count: int = 1) -> list[bytes]:
    """Read so many messages of a connection."""
    loop, data, found = asyncio.get_running_loop(), b"", []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            more = await loop.sock_recv(sock, 65536)
            assert more, "closed"
            data += more
            while len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2]):
                size = int.from_bytes(data[:2])
                found.append(data[2 : 2 + size])
                data = data[2 + size :]
    return found


async def closed(sock: socket.socket) -> bool:
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 4096) == b""
        except ConnectionError:
            return True


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2) + message for message in messages)


@pytest_asyncio.fixture(params=[True, False], ids=["batches", "one by one"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    if request.param and not batch.available():
        pytest.skip("no recvmmsg here")
    it = Served(batched=request.param)
    yield it
    it.listener.close()
    for sock in it.socks:
        sock.close()


async def test_questions_are_answered_each_to_its_asker(served: Served) -> None:
    names = ["web", "app1", "app2", "nosuch", "www"] * 40
    messages = [query(name, ident=number) for number, name in enumerate(names)]
    mine, others = await asyncio.gather(served.udp(*messages), served.udp(*messages[:50], address=OTHER))
    assert sorted(int.from_bytes(message[:2]) for message in mine) == list(range(200))
    assert len(others) == 50
    by_id = {int.from_bytes(message[:2]): read(message) for message in mine}
    codes = Counter(message[3] & 0xF for message in (*mine, *others))
    assert dict(enumerate(served.listener.counts.codes)) == {code: codes[code] for code in range(16)}
    assert [by_id[number].data for number in range(5)] == [["10.1.0.2"], ["10.1.0.3"], ["10.1.0.4"], [], ["10.1.0.2"]]


async def test_what_is_dropped_leaves_no_trace_among_the_others(served: Served) -> None:
    sock = served.client()
    junk = [b"", b"x", query("web", flags=0x8180), b"\0" * 11]
    for number in range(32):
        sock.sendto(junk[number % 4] if number % 3 else query("web", ident=number), served.at)
    found = [await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4096), DEADLINE_S) for _ in range(11)]
    assert sorted(int.from_bytes(message[:2]) for message in found) == list(range(0, 32, 3))
    assert (await served.udp(query("web", ident=99)))[0][:2] == b"\0\x63"
    with pytest.raises(BlockingIOError):
        sock.recv(4096)
    assert served.listener.counts.dropped == 21


async def test_strangers_are_refused(served: Served) -> None:
    for name in ("web", "example.com"):
        (message,) = await served.udp(query(name), address=STRANGER)
        assert read(message).rcode == wire.REFUSED
    sock = await served.tcp(STRANGER)
    await asyncio.get_running_loop().sock_sendall(sock, framed(query("web")))
    assert read((await hear(sock))[0]).rcode == wire.REFUSED
    assert served.listener.counts.strangers == 3
    assert served.listener.counts.codes[wire.REFUSED] == 3
    assert not served.outward
    served.listener.admit(ip_address(STRANGER), view(served.zones, "blue"))
    assert read((await served.udp(query("web"), address=STRANGER))[0]).data == ["10.1.0.2"]
    for _ in range(2):
        served.listener.dismiss(ip_address(STRANGER))
    assert read((await served.udp(query("web"), address=STRANGER))[0]).rcode == wire.REFUSED


async def test_queries_are_counted_by_client(served: Served) -> None:
    mine, others = Tally(), Tally()
    blue = view(served.zones, "blue")
    served.listener.admit(ip_address(ME), blue, tally=mine)
    served.listener.admit(ip_address(OTHER), blue, tally=others)
    served.listener.admit_all(None, strangers := Tally())
    queries = [query(name, ident=number) for number, name in enumerate(("web", "nosuch", "app1") * 20)]
    await asyncio.gather(served.udp(*queries), served.udp(*queries[:30], address=OTHER))
    await asyncio.gather(*(served.udp(query("web"), address=f"127.0.8.{number}") for number in range(1, 41)))
    sock = await served.tcp(OTHER)
    await asyncio.get_running_loop().sock_sendall(sock, framed(*queries[:3]))
    await hear(sock, 3)
    assert (mine, others, strangers) == (Tally(60), Tally(33), Tally(40))
    assert len(served.listener._clients) == len(served.listener._packed) == 3
    served.client().sendto(b"junk", served.at)
    served.client().sendto(query("example.com"), served.at)
    await until(lambda: served.outward)
    assert mine == Tally(62, 1)
    served.outward[0].answer(reply(served.outward[0].question, wire.SERVFAIL))
    assert mine == Tally(62, 2)


async def test_questions_for_others_go_outward_and_come_back(served: Served) -> None:
    sock = served.client()
    for ident in (7, 7, 8):
        sock.sendto(query("example.com", ident=ident), served.at)
    await until(lambda: len(served.outward) == 3)
    assert [client.retry_key == served.outward[0].retry_key for client in served.outward] == [True, True, False]
    assert served.outward[0].source == ("blue", ip_address(ME).packed)
    served.outward[2].answer(reply(served.outward[2].question, wire.SERVFAIL))
    async with asyncio.timeout(DEADLINE_S):
        message = await asyncio.get_running_loop().sock_recv(sock, 4096)
    assert message[:2] == b"\0\x08"
    counts = served.listener.counts
    assert (counts.outward, counts.codes[wire.SERVFAIL], sum(counts.codes)) == (3, 1, 1)


async def test_own_faults_cost_one_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, faults = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def break_down(view: View, client: Client) -> None:
        raise RuntimeError(view)

    served.listener._forward = break_down
    sock = served.client()
    for data in (query("web"), query("example.com"), query("app1")):
        sock.sendto(data, served.at)
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            assert read(await loop.sock_recv(sock, 4096)).rcode == 0
    assert [type(fault) for fault in faults] == [RuntimeError]
    assert served.listener.counts.faults == 1


@pytest.mark.parametrize("batched", [True, False])
async def test_ipv6(batched: bool) -> None:
    it = Served(batched=batched, address="::1")
    try:
        answers = await it.udp(query("web"), query("example.com", flags=0), address="::1")
        assert [read(message).rcode for message in answers] == [0, wire.REFUSED]
    finally:
        it.listener.close()
        for sock in it.socks:
            sock.close()


# TCP


async def test_tcp_answers_several_in_a_row_and_what_is_too_long_for_udp(served: Served) -> None:
    for number in range(400):
        address = ip_address(f"10.1.{2 + number // 250}.{1 + number % 250}")
        served.zones.networks["b" * 64].add(_entry(number, address))
    assert read((await served.udp(query("many", edns=opt())))[0]).tc
    sock, loop = await served.tcp(), asyncio.get_running_loop()
    data = framed(query("web", ident=1), query("many", ident=2), query("app1", ident=3))
    await loop.sock_sendall(sock, data)
    first = await hear(sock, 3)
    # And once more, an octet at a time.
    for number in range(len(data)):
        await loop.sock_sendall(sock, data[number : number + 1])
        await asyncio.sleep(0)
    second = await hear(sock, 3)
    for found in (first, second):
        assert [int.from_bytes(message[:2]) for message in found] == [1, 2, 3]
        assert len(read(found[1]).answers) == 400


def _entry(number: int, address: object) -> Entry:
    return Entry(f"m{number}", ("many",), (address,))  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"\0\0", framed(b"12345"), b"\xff\xff" + b"x" * 65535, framed(query("web")[:11])])
async def test_tcp_of_rubbish_is_closed_or_answered(served: Served, data: bytes) -> None:
    sock = await served.tcp()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, data)
    if len(data) > 1000:
        assert (await hear(sock))[0][3] & 0xF in {wire.FORMERR, wire.NOTIMP}
    else:
        assert await closed(sock)


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0\x20half"])
async def test_tcp_silence_is_closed_and_others_are_served(
    served: Served, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "IDLE_S", 0.3)
    monkeypatch.setattr(tcp, "MESSAGE_S", 0.1)
    silent, loop = await served.tcp(), asyncio.get_running_loop()
    await loop.sock_sendall(silent, begun)
    busy = await served.tcp(OTHER)
    await loop.sock_sendall(busy, framed(query("web")))
    assert read((await hear(busy))[0]).data == ["10.1.0.2"]
    assert await closed(silent)


async def test_tcp_drip_has_the_time_of_one_message(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MESSAGE_S", 0.2)
    sock, loop = await served.tcp(), asyncio.get_running_loop()
    started = loop.time()

    async def drip() -> None:
        for octet in framed(query("web")) * 100:
            await loop.sock_sendall(sock, bytes((octet,)))
            await asyncio.sleep(0.02)

    with pytest.raises(ConnectionError):
        await drip()
    assert loop.time() - started < 2


async def test_tcp_asker_that_goes_hears_no_more(served: Served) -> None:
    sock, loop = await served.tcp(), asyncio.get_running_loop()
    await loop.sock_sendall(sock, framed(query("example.com"), query("example.com")))
    await until(lambda: len(served.outward) == 2)
    sock.shutdown(socket.SHUT_WR)
    served.outward[0].answer(reply(served.outward[0].question, wire.SERVFAIL))
    assert len(await hear(sock)) == 1
    served.outward[1].answer(reply(served.outward[1].question, wire.SERVFAIL))
    assert len(await hear(sock)) == 1
    assert await closed(sock)
    other = await served.tcp()
    await loop.sock_sendall(other, framed(query("example.com")))
    await until(lambda: len(served.outward) == 3)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.close()
    await until(lambda: not served.listener._streams._connections)
    served.outward[2].answer(reply(served.outward[2].question, wire.SERVFAIL))


async def test_tcp_asker_that_does_not_read_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_MAX_UNREAD", 10_000)
    sock, loop = await served.tcp(), asyncio.get_running_loop()
    flood = framed(*[query("nosuch.blue.netplug.internal")] * 500)

    async def ask_on() -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await loop.sock_sendall(sock, flood)

    with pytest.raises(ConnectionError):
        await ask_on()


async def test_tcp_connections_of_one_asker_are_limited(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_PER_CLIENT", 3)
    kept = [await served.tcp() for _ in range(3)]
    await until(lambda: len(served.listener._streams._connections) == 3)
    assert await closed(await served.tcp())
    other, loop = await served.tcp(OTHER), asyncio.get_running_loop()
    await loop.sock_sendall(other, framed(query("web")))
    assert read((await hear(other))[0]).data == ["10.1.0.2"]
    kept[0].close()
    await until(lambda: len(served.listener._streams._connections) == 3)
    again = await served.tcp()
    await loop.sock_sendall(again, framed(query("web")))
    assert len(await hear(again)) == 1


async def test_tcp_connections_are_counted_by_who_asks_whichever_address_is_used(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "MAX_PER_CLIENT", 3)
    # In a sandbox of Docker all of 127.0.0.0/8 is the container's own.
    served.listener.admit_all(view(served.zones, "blue"))
    for address in (ME, OTHER):
        served.listener.dismiss(ip_address(address))
    kept = [await served.tcp(f"127.0.{number}.9") for number in range(3)]
    await until(lambda: len(served.listener._streams._connections) == 3)
    assert await closed(await served.tcp("127.0.77.9"))
    # At a gateway a sandbox has an address in each family, and in each of its networks.
    for address in (ME, OTHER):
        served.listener.admit(ip_address(address), view(served.zones, "blue"), "sandbox")
    kept += [await served.tcp(address) for address in (ME, OTHER, ME)]
    await until(lambda: len(served.listener._streams._connections) == 6)
    assert await closed(await served.tcp(OTHER))


async def test_tcp_connections_are_limited_in_total_and_who_has_most_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "MAX_CONNECTIONS", 4)
    connections = tcp.Connections()
    others = Served(address="127.0.9.7")
    for one in (served, others):
        one.listener._streams._all = connections
    first, *many = [await served.tcp() for _ in range(3)]
    await until(lambda: len(connections) == 3)
    one = await others.tcp(OTHER)
    await until(lambda: len(connections) == 4)
    another, loop = await others.tcp(STRANGER), asyncio.get_running_loop()
    assert await closed(first)
    for sock in (*many, one, another):
        await loop.sock_sendall(sock, framed(query("web")))
        assert len(await hear(sock)) == 1
    assert len(connections) == 4
    for sock in others.socks:
        sock.close()
    others.listener.close()
    await until(lambda: len(connections) == 2)


async def test_tcp_waits_where_no_descriptor_is_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "PAUSE_S", 0.05)
    accepted: list[None] = []
    accept = served.listener._streams._accept
    monkeypatch.setattr(served.listener._streams, "_accept", lambda: (accepted.append(None), accept()))
    served.listener._streams._listen()
    served.client()
    sock, loop = served.client(kind=socket.SOCK_STREAM), asyncio.get_running_loop()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(it.name) for it in Path("/proc/self/fd").iterdir()) + 1  # noqa: ASYNC240 - nobody else waits
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    held: list[int] = []
    try:
        with suppress(OSError):
            held.extend(os.dup(0) for _ in range(most))
        await loop.sock_connect(sock, served.at)
        await until(lambda: len(accepted) >= 3)
        # Not as often as the loop turns.
        assert served.listener._streams._pause is not None
        (message,) = await asyncio.wait_for(_asked(served), DEADLINE_S)
        assert read(message).data == ["10.1.0.2"]
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await loop.sock_sendall(sock, framed(query("web")))
    assert len(await hear(sock)) == 1


async def _asked(served: Served) -> list[bytes]:
    """Ask by a socket that is there already."""
    sock = next(it for it in served.socks if it.type == socket.SOCK_DGRAM)
    sock.sendto(query("web"), served.at)
    return [await asyncio.get_running_loop().sock_recv(sock, 4096)]


async def test_closing_leaves_no_socket(served: Served) -> None:
    sock = await served.tcp()
    await until(lambda: len(served.listener._streams._connections) == 1)
    served.listener.close()
    assert await closed(sock)
    udp, tcp = open_sockets(*served.at)
    served.listener = Listener(udp, tcp, "blue", served._outward)


async def test_everyone_who_reaches_the_sockets_may_be_one_asker() -> None:
    it = Served()
    it.listener.admit_all(view(it.zones, "red"))
    try:
        assert read((await it.udp(query("db"), address=STRANGER))[0]).data == ["10.2.0.2"]
    finally:
        it.listener.close()
        for sock in it.socks:
            sock.close()
