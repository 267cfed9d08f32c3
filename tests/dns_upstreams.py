"""Scripted upstreams on the loopback link, and a forwarder that asks them."""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address

import dnslib
from dns_packets import query, read, view, zones

from netplug.dns.forward_rules import Rules, Server
from netplug.dns.pending import Client
from netplug.dns.question import Question
from netplug.dns.slow_path import respond
from netplug.dns.upstream import Forwarder

DEADLINE_S = 20
Script = Callable[[bytes], "bytes | list[bytes] | None"]


def reply_to(data: bytes, *lines: str, code: int = 0, tc: bool = False, soa_s: int = 0) -> bytes:
    """Return an answer with records as of a zone file."""
    packet = dnslib.DNSRecord.parse(data).reply()
    packet.ar.clear()
    for line in lines:
        packet.add_answer(*dnslib.RR.fromZone(line))
    if soa_s:
        packet.add_auth(*dnslib.RR.fromZone(f"example. {soa_s} IN SOA ns.example. x.example. 1 2 3 4 {soa_s}"))
    packet.header.rcode, packet.header.tc = code, tc
    return bytes(packet.pack())


def address_of(data: bytes) -> bytes:
    return reply_to(data, f"{dnslib.DNSRecord.parse(data).q.qname} 60 IN A 192.0.2.7")


class Upstream:
    """A server that does as its script says; `seen` are the messages that came."""

    def __init__(self, script: Script, number: int) -> None:
        self.script = script
        self.seen: list[bytes] = []
        self.by_tcp: list[bytes] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind((f"127.0.9.{number}", 0))
        self.server = Server(ip_address(f"127.0.9.{number}"), self.sock.getsockname()[1])
        self.tcp: asyncio.Server | None = None
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._read)

    def _read(self) -> None:
        data, peer = self.sock.recvfrom(4096)
        self.seen.append(data)
        said = self.script(data)
        for message in said if isinstance(said, list) else [said] if said is not None else []:
            self.sock.sendto(message, peer)

    async def listen(self, script: Script) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            self.by_tcp.append(data)
            said = script(data)
            if isinstance(said, bytes):
                writer.write(len(said).to_bytes(2) + said)
            writer.close()

        self.tcp = await asyncio.start_server(serve, str(self.server.address), self.server.port)

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()
        if self.tcp:
            self.tcp.close()
            await self.tcp.wait_closed()


class Bench:
    """A forwarder and its upstreams."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.forwarder = Forwarder(clock=lambda: self.now + asyncio.get_running_loop().time())
        self.upstreams: list[Upstream] = []

    def upstream(self, script: Script) -> Upstream:
        made = Upstream(script, len(self.upstreams) + 1)
        self.upstreams.append(made)
        return made

    def rules(self, *upstreams: Upstream) -> Rules:
        return Rules.of((), [it.server for it in upstreams])

    def ask(
        self,
        rules: Rules,
        name: str = "example.com",
        *,
        source: str = "10.1.0.2",
        retry_key: object = None,
        **more: object,
    ) -> "asyncio.Future[bytes]":
        told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        found = respond(view(zones(), "blue"), query(name, **more))  # type: ignore[arg-type]
        assert isinstance(found, Question)
        self.forwarder.ask(rules, Client(found, source, "blue", told.set_result, retry_key))
        return told

    async def reply(self, rules: Rules, name: str = "example.com", **more: object) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.ask(rules, name, **more)  # type: ignore[arg-type]

    async def data(self, rules: Rules, name: str = "example.com", **more: object) -> list[str]:
        return read(await self.reply(rules, name, **more)).data
