"""Sockets that accept packets only from links with a route to their peer, on the real kernel."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from linux_host import wait_until_passing

from netplug.kernel.host.upstream_sockets import links_to, open_filtered
from netplug.kernel.sandbox.netns import open_netns, run_in, temporary_netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

UPSTREAM, FORGER, HOST = "192.0.2.53", "10.9.0.2", "192.0.2.1"
TIMEOUT_S = 20
TO_CONTAINER = f"""
table ip published {{
    chain output {{
        type nat hook output priority -100; policy accept;
        ip daddr {HOST} udp dport 53 dnat to {FORGER}
    }}
}}
"""


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


class Places:
    """A host between an upstream and somebody who has the upstream's address as well."""

    def __init__(self) -> None:
        stem = uuid4().hex[:6]
        self.names = {"wan": f"np-up-{stem}", "lan": f"np-fg-{stem}"}
        for name in self.names.values():
            ip("netns", "add", name)
        ip("link", "set", "lo", "up")
        for link, inner, own in (("wan", UPSTREAM, HOST), ("lan", FORGER, "10.9.0.1")):
            name = self.names[link]
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("address", "add", f"{own}/24", "dev", link)
            ip("link", "set", link, "up")
            ip("-n", name, "address", "add", f"{inner}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            wait_until_passing(link)
        ip("-n", self.names["lan"], "address", "add", f"{UPSTREAM}/32", "dev", "lo")
        ip("-n", self.names["lan"], "route", "add", f"{HOST}/32", "via", "10.9.0.1", "src", UPSTREAM)
        for link in ("all", "wan", "lan"):
            Path(f"/proc/sys/net/ipv4/conf/{link}/rp_filter").write_text("0")

    def sock(self, place: str, kind: socket.SocketKind = socket.SOCK_DGRAM, address: str = UPSTREAM) -> socket.socket:
        """Return a socket with the upstream's address, or another, there or at the forger's."""
        fd = open_netns(self.names[place])
        try:
            sock = run_in(fd, lambda: socket.socket(socket.AF_INET, kind))
        finally:
            os.close(fd)
        sock.settimeout(TIMEOUT_S)
        sock.bind((address, 53))
        return sock

    def close(self) -> None:
        for name in self.names.values():
            ip("netns", "del", name)


@pytest.fixture
def places() -> Iterator[Places]:
    with temporary_netns():
        made = Places()
        yield made
        made.close()


@pytest.mark.parametrize("careful", [False, True])
def test_answer_by_another_link_is_not_heard(places: Places, careful: bool) -> None:
    with places.sock("wan") as upstream, places.sock("lan") as forger:
        if careful:
            sock = open_filtered(socket.AF_INET, socket.SOCK_DGRAM, (UPSTREAM, 53))
        else:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.connect((UPSTREAM, 53))
            sock.settimeout(TIMEOUT_S)
            sock.send(b"question")
            data, peer = upstream.recvfrom(100)
            assert data == b"question"
            forger.sendto(b"forged", sock.getsockname())
            upstream.sendto(b"genuine", peer)
            # One that is not careful hears both.
            heard = {sock.recv(100) for _ in range(1 if careful else 2)}
            upstream.sendto(b"more", peer)
            assert heard | {sock.recv(100)} == {b"genuine", b"more"} | (set() if careful else {b"forged"})


def test_tcp_works_by_the_right_link(places: Places) -> None:
    with (
        places.sock("wan", socket.SOCK_STREAM) as upstream,
        open_filtered(socket.AF_INET, socket.SOCK_STREAM, (UPSTREAM, 53)) as sock,
    ):
        upstream.listen()
        sock.settimeout(TIMEOUT_S)
        sock.connect((UPSTREAM, 53))
        connection, _ = upstream.accept()
        with connection:
            connection.sendall(b"answer")
            assert sock.recv(100) == b"answer"


def test_an_address_of_the_host_that_leads_to_a_container_is_heard(places: Places) -> None:
    """As of a name server whose port 53 is published; its answers come by its own link."""
    subprocess.run(["nft", "-f", "-"], input=TO_CONTAINER, text=True, check=True, capture_output=True)
    with (
        places.sock("lan", address=FORGER) as server,
        open_filtered(socket.AF_INET, socket.SOCK_DGRAM, (HOST, 53)) as sock,
    ):
        sock.connect((HOST, 53))
        sock.settimeout(TIMEOUT_S)
        sock.send(b"question")
        data, peer = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", peer)
        assert sock.recv(100) == b"answer"


def test_links_are_all_that_a_route_has(places: Places) -> None:
    def toward(address: str) -> set[str] | None:
        found = links_to(socket.AF_INET, socket.SOCK_DGRAM, (address, 53))
        return found and {socket.if_indextoname(index) for index in found}

    assert toward(UPSTREAM) == {"wan"}
    # The host's own address, and a stub resolver's.
    assert toward(HOST) is toward("127.0.0.53") is None
    hops = ("nexthop", "via", UPSTREAM, "dev", "wan", "nexthop", "via", FORGER, "dev", "lan")
    ip("route", "add", "198.51.100.0/24", *hops)
    assert toward("198.51.100.1") == {"wan", "lan"}
    with pytest.raises(OSError, match="unreachable"):
        toward("203.0.113.1")


def test_ipv6_and_link_local(places: Places) -> None:
    ip("address", "add", "2001:db8::1/64", "dev", "wan", "nodad")
    with open_filtered(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::53", 53)) as sock:
        sock.connect(("2001:db8::53", 53))
    assert links_to(socket.AF_INET6, socket.SOCK_DGRAM, ("2001:db8::53", 53)) == {socket.if_nametoindex("wan")}
    index = socket.if_nametoindex("wan")
    open_filtered(socket.AF_INET6, socket.SOCK_DGRAM, ("fe80::1", 53, 0, index)).close()
