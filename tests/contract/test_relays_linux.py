"""What the kernel does not translate is relayed, and nothing is left of a connection however it ends."""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host")

from kernel_suite import NETWORKS_TABLE, gone  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, descriptors, run, wait_until_passing  # noqa: E402

from netplug.drivers.steps import Element, HostPort, Proto, Relay, Step  # noqa: E402
from netplug.drivers.tables import NETWORKS  # noqa: E402
from netplug.kernel.host import relays  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402
from netplug.kernel.sandbox.netns import open_netns, run_in  # noqa: E402

DEADLINE_S = 20
NOTHING_SENT = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close resets the connection."""
EVERYWHERE = {4: ip_address("0.0.0.0"), 6: ip_address("::")}
FAMILIES = [("::", "127.0.0.1"), ("0.0.0.0", "::1")]


def steps(proto: Proto, host: str, inside: str) -> tuple[HostPort, Relay]:
    return HostPort(proto, ip_address(host), 9000), Relay(proto, ip_address(host), 9000, ip_address(inside), 7000)


def add(address: str) -> None:
    prefix, *nodad = ("128", "nodad") if ":" in address else ("32",)
    run("ip", "address", "add", f"{address}/{prefix}", "dev", "lo", *nodad)


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, also to an address of IPv6 whose route the kernel makes a moment later."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await asyncio.open_connection(address, 9000)
            except OSError:
                await asyncio.sleep(0.01)


async def asked(client: socket.socket, address: str) -> tuple[bytes, str]:
    """Ask until there is an answer, and return it with the address that it came from."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with suppress(OSError):
                await loop.sock_sendto(client, address.encode(), (address, 9000))
                async with asyncio.timeout(0.5):
                    while True:
                        data, peer = await loop.sock_recvfrom(client, 4096)
                        if data == address.encode():  # else a late answer to what was asked before
                            return data, peer[0]


def readers() -> dict[Any, Any]:
    return dict(asyncio.get_running_loop()._selector.get_map())  # type: ignore[attr-defined]  # what may be left of them


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - polled until the deadline
            await asyncio.sleep(0.01)


async def until_as_before(before: tuple[set[str], int]) -> None:
    await until(lambda: (descriptors(), len(readers())) == before)


@asynccontextmanager
async def echoing(inside: str, *, silent: bool = False) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Echo what comes; keep the connection open for as long as the client does, or `silent`ly."""
    open_: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.append(writer)
        while not silent and (data := await reader.read(4096)):
            writer.write(data)
        if not silent:
            writer.close()

    server = await asyncio.start_server(serve, inside, 7000)
    try:
        yield open_
    finally:
        for writer in open_:
            writer.close()
        server.close()


class Client:
    """A container in a network of ours, behind `link`; `asks` is where its gateway is asked."""

    def __init__(self, around: LinuxSurroundings, version: int, number: int, link: str, *, internal: bool) -> None:
        pool, prefix = (f"10.{number}.0.", 24) if version == 4 else (f"fd00:{number}::", 64)
        self.asks = f"{pool}1"
        self._family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._netns = around.sandbox()
        name, nodad = Path(self._netns).name, ["nodad"] * (version == 6)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{self.asks}/{prefix}", "dev", link, *nodad)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", name, "address", "add", f"{pool}2/{prefix}", "dev", "eth0", *nodad)
        run("ip", "-n", name, "link", "set", "eth0", "up")
        wait_until_passing(link)
        net = ip_network(f"{pool}0/{prefix}" if version == 4 else f"{pool}/{prefix}")
        elements = [("host", link, f"goto host_{'internal' if internal else 'open'}")]
        if not link.startswith("np-"):
            elements = [("host", link, "jump host_bridge"), ("bridges", link, ""), ("internal", link, "")]
        elements.append((f"home{version}", f"{net} . {link}", ""))
        self.steps: list[Step] = [Element(NETWORKS, *it) for it in elements]

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        fd = open_netns(self._netns)
        try:
            sock = run_in(fd, lambda: socket.socket(self._family, kind))
        finally:
            os.close(fd)
        sock.setblocking(False)
        return sock


class TestRelays(LinuxHost):
    @pytest.mark.parametrize("link", ["np-inside", "lent"])
    @pytest.mark.parametrize(("host", "inside"), FAMILIES)
    async def test_a_container_of_an_internal_network_is_refused(
        self, kernel: LinuxKernel, around: LinuxSurroundings, host: str, inside: str, link: str
    ) -> None:
        version = ip_address(host).version
        internal = Client(around, version, 7, link, internal=True)
        other = Client(around, version, 8, "np-other", internal=False)
        made = [*steps(Proto.TCP, host, inside), *steps(Proto.UDP, host, inside)]
        await kernel.ensure((NETWORKS_TABLE, *internal.steps, *other.steps, *made))
        loop = asyncio.get_running_loop()
        async with echoing(inside) as served, asyncio.timeout(DEADLINE_S):
            with internal.socket(socket.SOCK_STREAM) as sock:
                await loop.sock_connect(sock, (internal.asks, 9000))
                assert await loop.sock_recv(sock, 100) == b""
            with other.socket(socket.SOCK_STREAM) as sock:
                await loop.sock_connect(sock, (other.asks, 9000))
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(sock, 100) == b"hello"
            assert len(served) == 1
        access, index = kernel._relays._access, socket.if_nametoindex(link)
        local = "fe80::2" if version == 6 else "169.254.0.2"
        assert access.refuses(local, index), "of a link-local address nobody knows whose it is"
        stranger = "2001:db8::9" if version == 6 else "192.0.2.9"
        assert access.refuses(stranger, index) == (link != "lent"), "another host on a bridge that the user named"
        assert not access.refuses(stranger, socket.if_nametoindex("np-other"))
        assert not access.refuses(internal.asks, socket.if_nametoindex("lo")), "the host itself"
        run("nft", "flush", "ruleset")
        assert access.refuses(other.asks, socket.if_nametoindex("np-other")), "nobody knows"
        await kernel.ensure((NETWORKS_TABLE,))
        with socket.socket(socket.AF_INET6 if ":" in inside else socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((inside, 7000))
            server.setblocking(False)
            async with asyncio.timeout(DEADLINE_S):
                for client in (internal, other):
                    with client.socket(socket.SOCK_DGRAM) as sock:
                        await loop.sock_sendto(sock, client.asks.encode(), (client.asks, 9000))
                assert await loop.sock_recv(server, 100) == other.asks.encode(), "not what came first"
        await gone(kernel, *made[::-1])

    @pytest.mark.parametrize(("host", "inside"), FAMILIES)
    async def test_clients_of_the_other_ip_version_are_served(
        self, kernel: LinuxKernel, host: str, inside: str
    ) -> None:
        for address in ("fd00:5::1", "10.5.0.1"):
            add(address)
        made = steps(Proto.TCP, host, inside)
        await kernel.ensure(made)
        async with echoing(inside):
            for address in ("fd00:5::1", "::1") if host == "::" else ("10.5.0.1", "127.0.0.1"):
                reader, writer = await connected(address)
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"hello"
                writer.close()
        await gone(kernel, *made[::-1])

    @pytest.mark.parametrize(("host", "inside"), FAMILIES)
    async def test_datagrams_are_answered_from_the_address_that_was_asked(
        self, kernel: LinuxKernel, host: str, inside: str
    ) -> None:
        addresses = ["fd00:5::1", "fd00:5::2"] if host == "::" else ["10.5.0.1", "10.5.0.2"]
        for address in addresses:
            add(address)
        made = steps(Proto.UDP, host, inside)
        await kernel.ensure(made)
        family = socket.AF_INET6 if host == "::" else socket.AF_INET
        loop = asyncio.get_running_loop()
        with (
            socket.socket(socket.AF_INET if host == "::" else socket.AF_INET6, socket.SOCK_DGRAM) as server,
            socket.socket(family, socket.SOCK_DGRAM) as client,
        ):
            server.bind((inside, 7000))
            server.setblocking(False)
            client.setblocking(False)

            def echo() -> None:
                server.sendto(*server.recvfrom(4096))

            loop.add_reader(server, echo)
            for address in (*addresses, addresses[0]):
                assert await asked(client, address) == (address.encode(), address)
            loop.remove_reader(server)
        await gone(kernel, *made[::-1])

    async def test_an_answer_that_cannot_be_sent_does_not_end_its_flow(self, kernel: LinuxKernel) -> None:
        """A buffer is full, or a rule of the host drops it: the next answer to the same client arrives."""
        add("10.5.0.3")
        made = steps(Proto.UDP, "0.0.0.0", "::1")
        await kernel.ensure(made)
        loop, seen = asyncio.get_running_loop(), list[str]()
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            server.bind(("::1", 7000))
            server.setblocking(False)
            client.setblocking(False)

            def echo() -> None:
                data, peer = server.recvfrom(4096)
                seen.append(f"{data.decode()} {peer[1]}")
                server.sendto(data, peer)

            loop.add_reader(server, echo)
            assert await asked(client, "10.5.0.3") == (b"10.5.0.3", "10.5.0.3")
            (flow,) = kernel._relays._servers[made[1].key][1]._flows.values()  # type: ignore[attr-defined]
            run("nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }")
            run("nft", "add rule ip t c udp sport 9000 counter drop")
            await loop.sock_sendto(client, b"lost", ("10.5.0.3", 9000))
            await until(lambda: "packets 1" in run("nft", "list table ip t"))
            run("nft", "delete table ip t")
            await asyncio.sleep(0)
            assert await asked(client, "10.5.0.3") == (b"10.5.0.3", "10.5.0.3")
            loop.remove_reader(server)
            assert len({one.split()[1] for one in seen}) == 1, "the container sees one client"
            assert list(kernel._relays._servers[made[1].key][1]._flows.values()) == [flow]  # type: ignore[attr-defined]
        await gone(kernel, *made[::-1])

    @pytest.mark.parametrize("reset", ["client", "server"])
    async def test_a_reset_connection_leaves_nothing(self, kernel: LinuxKernel, reset: str) -> None:
        made = steps(Proto.TCP, "::", "127.0.0.1")
        await kernel.ensure(made)
        async with echoing("127.0.0.1", silent=True) as served:
            before = descriptors(), len(readers())
            for _ in range(3):
                loop = asyncio.get_running_loop()
                client = socket.socket(socket.AF_INET6)
                client.setblocking(False)
                await loop.sock_connect(client, ("::1", 9000))
                await loop.sock_sendall(client, b"hello")
                await until(lambda: served)
                writer = served.pop()
                first = client if reset == "client" else writer.get_extra_info("socket")
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOTHING_SENT)
                if reset == "client":
                    client.close()
                writer.transport.abort()
                client.close()
                await until_as_before(before)
        await gone(kernel, *made[::-1])

    async def test_one_end_that_is_reset_ends_both(self, kernel: LinuxKernel) -> None:
        """The container goes on for as long as it likes; it is told."""
        made = steps(Proto.TCP, "::", "127.0.0.1")
        await kernel.ensure(made)
        async with echoing("127.0.0.1", silent=True) as served:
            before = descriptors(), len(readers())
            loop = asyncio.get_running_loop()
            client = socket.socket(socket.AF_INET6)
            client.setblocking(False)
            await loop.sock_connect(client, ("::1", 9000))
            await until(lambda: served)
            during = descriptors()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOTHING_SENT)
            client.close()
            # The relay's two sockets go with the client's; the server's own stays until it is closed.
            await until(lambda: len(descriptors()) <= len(during) - 3)
            served.pop().close()
            await until_as_before(before)
        await gone(kernel, *made[::-1])

    async def test_a_lack_of_descriptors_is_waited_out(
        self, kernel: LinuxKernel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relays, "_PAUSE_S", 0.1)
        made = steps(Proto.TCP, "::", "127.0.0.1")
        await kernel.ensure(made)
        served = kernel._relays._servers[made[1].key][1]
        assert isinstance(served, relays._Streams)
        real, refused = served._port.socket, 0

        class Scarce:
            """A socket that may not accept at first."""

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def accept(self) -> Any:
                nonlocal refused
                refused += 1
                if refused <= 2:
                    raise OSError(errno.EMFILE, "Too many open files")
                return real.accept()

        served._port.socket = Scarce()  # type: ignore[assignment]
        async with echoing("127.0.0.1"), asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("::1", 9000)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
        assert refused == 3, "once a moment, not over and over"
        await gone(kernel, *made[::-1])
