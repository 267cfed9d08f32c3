"""A client behind a bridge, a router (the host), a server: what probes are tried on."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

from linux_host import run, wait_until_passing

from netplug.kernel.probes.api import Flow, Job, Kind, Origin, Post, Report, Rule, What, new_mark

SERVER = """
import socket, sys
for family, address in ((socket.AF_INET, "10.0.1.2"), (socket.AF_INET6, "2001:db8:1::2")):
    tcp = socket.create_server((address, 80), family=family)
    globals()[f"tcp{family}"] = tcp
    udp = socket.socket(family, socket.SOCK_DGRAM); udp.bind((address, 80))
    globals()[f"udp{family}"] = udp
print(flush=True)
while True:
    data, sender = globals()["udp2"].recvfrom(2048)
    globals()["udp2"].sendto(b"pong", sender)
"""


class Hosts:
    """A client with an address on a bridge of the host, and a server with one behind another link."""

    def __init__(self) -> None:
        name = uuid4().hex[:8]
        self.client, self.server = f"np-c-{name}", f"np-s-{name}"
        run("ip", "link", "set", "lo", "up")
        at_once = ("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0")
        run(*at_once)
        for it in (self.client, self.server):
            run("ip", "netns", "add", it)
            self.inside(it, *at_once)
            run("ip", "-n", it, "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "up", "type", "bridge")
        self._cable("vc", self.client, "0")
        self._cable("vs", self.server, "1")
        run("ip", "link", "set", "vc", "master", "br0")
        for link, net in (("br0", "0"), ("vs", "1")):
            run("ip", "address", "add", f"10.0.{net}.1/24", "dev", link)
            run("ip", "address", "add", f"2001:db8:{net}::1/64", "dev", link, "nodad")
        for it, net in ((self.client, "0"), (self.server, "1")):
            run("ip", "-n", it, "route", "add", "default", "via", f"10.0.{net}.1")
            run("ip", "-n", it, "route", "add", "default", "via", f"2001:db8:{net}::1")
        wait_until_passing("vc", "vs", "br0")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        program = ["ip", "netns", "exec", self.server, sys.executable, "-c", SERVER]
        self._listening = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert self._listening.stdout
        self._listening.stdout.readline()

    @staticmethod
    def _cable(link: str, sandbox: str, net: str) -> None:
        run("ip", "link", "add", link, "up", "type", "veth", "peer", "name", "eth0", "netns", sandbox)
        run("ip", "-n", sandbox, "link", "set", "eth0", "up")
        run("ip", "-n", sandbox, "address", "add", f"10.0.{net}.2/24", "dev", "eth0")
        run("ip", "-n", sandbox, "address", "add", f"2001:db8:{net}::2/64", "dev", "eth0", "nodad")

    @property
    def listening(self) -> int:
        return self._listening.pid

    @property
    def posts(self) -> tuple[Post, ...]:
        inside = Post("client", self.client, "eth0"), Post("server", self.server, "eth0")
        return (inside[0], Post("bridge", "", "br0"), Post("cable", "", "vs"), inside[1])

    def inside(self, sandbox: str, *command: str) -> str:
        return run("ip", "netns", "exec", sandbox, *command)

    def close(self) -> None:
        self._listening.kill()
        self._listening.communicate()
        for it in (self.client, self.server):
            run("ip", "netns", "del", it)

    def job(self, kind: Kind = Kind.TCP, port: int = 80, to: str = "10.0.1.2", **fields: object) -> Job:
        size = int(str(fields.pop("size", 0)))
        given = {"traces": (self.client, "", self.server), "posts": self.posts, "origin": Origin(self.client)}
        return Job(Flow(ip_address(to), kind, port, size=size), new_mark(), **(given | fields))  # type: ignore[arg-type]

    @staticmethod
    def links() -> list[str]:
        return [line.split(":")[1] for line in run("ip", "-o", "link").splitlines()]

    @staticmethod
    def tables() -> str:
        return run("nft", "list", "tables")


async def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not await asyncio.to_thread(done):
        assert time.monotonic() < deadline


def seen(report: Report, what: What, *, back: bool = False) -> list[str]:
    return [it.post for it in report.sightings if it.what is what and it.back is back]


def dropping(report: Report) -> Rule:
    found = [it for it in report.rules if it.drops]
    assert len(found) == 1, report
    return found[0]


def dropped(report: Report) -> list[tuple[str, str]]:
    return [(it.reason, it.netns) for it in report.drops if not it.back]
