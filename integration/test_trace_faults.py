"""`netplug trace` names what breaks a path on one host: each fault is injected, traced, and taken away again.

The containers live as long as the module. `trace_faults.py` has what is said of each fault, for the document too.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
from harness import CommandError, SeenServer, assert_same, snapshot, wait_until
from harness.dockerd import docker_command
from trace_faults import ROWS, in_document, markdown
from trace_scene import BROKEN_S, Faults, Scene, assert_named, leak_check, registering, scene, shown

from netplug.cli import CliError

__all__ = ("leak_check", "scene")

FOUGHT, FIGHT_S = frozenset({"flushed set", "hairpin", "hairpin, MAC known", "not enslaved"}), 20.0
"""What the daemon heals as fast as it is broken, so that a packet may come through."""
MENDED = frozenset(
    {
        "nft bridge",
        "nft netdev",
        "nft inet",
        "iptables-nft",
        "iptables-legacy",
        "reject",
        "policy",
        "host firewall",
        "way back",
        "DOCKER-USER",
        "firewall inside",
        "neighbour",
        "neighbour, way back",
        "neighbour of the host",
        "no default route",
        "no default route, IPv6",
        "route by another network",
        "bridge-nf-call-iptables",
        "forwarding",
        "link down",
        "destination paused",
        "source paused",
        "address lost",
        "MTU",
    }
)
"""Faults whose mend is a command that undoes them: the test runs it as it is printed, and traces again."""


FAULTS: Faults[Scene, tuple[str, str]] = {}
fault = registering(FAULTS)


@fault("nobody listens")
def nobody_listens(_: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", "web:81"


@fault("nobody listens, udp")
def nobody_listens_udp(_: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", "web:81/udp"


@fault("loopback")
def loopback(_: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", "web:82"


@contextmanager
def nft(it: Scene, *commands: str, table: str) -> Iterator[None]:
    it.host.run(["nft", "-f", "-"], stdin="\n".join((f"add table {table}", *commands)))
    yield
    it.run("nft", "delete", "table", *table.split())


def nft_of_bridges(it: Scene, match: str) -> AbstractContextManager[None]:
    chain = "add chain bridge foreign forward { type filter hook forward priority 0; }"
    return nft(it, chain, f"add rule bridge foreign forward {match} drop", table="bridge foreign")


@fault("nft bridge")
def nft_bridge(it: Scene) -> Iterator[tuple[str, str]]:
    with nft_of_bridges(it, f"ip daddr {it.address(it.web)} tcp dport 80"):
        yield "asker", "web:80"


@fault("nft netdev")
def nft_netdev(it: Scene) -> Iterator[tuple[str, str]]:
    hook = f"type filter hook ingress device {it.port(it.asker)} priority 0;"
    chain = f"add chain netdev foreign ingress {{ {hook} }}"
    with nft(it, chain, "add rule netdev foreign ingress tcp dport 80 drop", table="netdev foreign"):
        yield "asker", "web:80"


@fault("nft inet")
def nft_inet(it: Scene) -> Iterator[tuple[str, str]]:
    chain = "add chain inet foreign forward { type filter hook forward priority 0; }"
    with nft(it, chain, f"add rule inet foreign forward ip daddr {it.wire.right} drop", table="inet foreign"):
        yield "asker", f"outside={it.wire.right}"


@contextmanager
def iptables(it: Scene, program: str, chain: str, *rule: str) -> Iterator[None]:
    it.run(program, "-w", "-I", chain, *rule)
    yield
    it.undo(program, "-w", "-D", chain, *rule)


@fault("iptables-nft")
def iptables_nft(it: Scene) -> Iterator[tuple[str, str]]:
    with iptables(it, "iptables-nft", "FORWARD", "-d", it.wire.right, "-j", "DROP"):
        yield "asker", f"outside={it.wire.right}"


@fault("iptables-legacy")
def iptables_legacy(it: Scene) -> Iterator[tuple[str, str]]:
    with iptables(it, "iptables-legacy", "FORWARD", "-d", it.wire.right, "-j", "DROP"):
        yield "asker", f"outside={it.wire.right}"
    # netplug's gate was among these rules too, and goes after the last of others.
    it.netplug.client.post("repair")
    wait_until(lambda: "NETPLUG" not in it.run("iptables-legacy-save"), 40, "the gate goes")


@fault("reject")
def reject(it: Scene) -> Iterator[tuple[str, str]]:
    match = ("-d", it.wire.right, "-p", "tcp", "--dport", "443")
    refuse = ("-j", "REJECT", "--reject-with", "tcp-reset")
    with SeenServer(it.client, "tcp", 443), iptables(it, "iptables", "FORWARD", *match, *refuse):
        yield "asker", f"outside={it.wire.right}:443"


@fault("policy")
def policy(it: Scene) -> Iterator[tuple[str, str]]:
    chain = "add chain inet foreign forward { type filter hook forward priority 10; policy drop; }"
    with nft(it, chain, table="inet foreign"):
        yield "asker", f"outside={it.wire.right}"


@fault("host firewall")
def host_firewall(it: Scene) -> Iterator[tuple[str, str]]:
    with iptables(it, "iptables", "INPUT", "-p", "icmp", "-j", "DROP"):
        yield "asker", "host"


@fault("way back")
def back(it: Scene) -> Iterator[tuple[str, str]]:
    with nft_of_bridges(it, f"ip saddr {it.address(it.web)} tcp sport 80"):
        yield "asker", "web:80"


@fault("DOCKER-USER")
def docker_user(it: Scene) -> Iterator[tuple[str, str]]:
    with iptables(it, "iptables", "DOCKER-USER", "-d", it.wire.right, "-j", "DROP"):
        yield "asker", f"outside={it.wire.right}"


@fault("firewall inside")
def firewall_inside(it: Scene) -> Iterator[tuple[str, str]]:
    text = "table inet fw { chain input { type filter hook input priority 0; tcp dport 80 drop; }; }"
    it.inside(it.web, "nft", text)
    yield "asker", "web:80"
    it.inside(it.web, "nft", "delete table inet fw")


@fault("name unknown")
def name_unknown(_: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", "nobody:80"


@fault("name of another network")
def name_of_another_network(_: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", "lonely:80"


@fault("address used twice")
def address_used_twice(it: Scene) -> Iterator[tuple[str, str]]:
    """A virtual machine, say, whose tap somebody put into the bridge."""
    it.run("ip", "netns", "add", "twin")
    it.run("ip", "link", "add", "vm0", "type", "veth", "peer", "name", "eth0", "netns", "twin")
    it.run("ip", "link", "set", "vm0", "master", it.bridge("blue"), "up")
    it.run("ip", "-n", "twin", "addr", "add", f"{it.address(it.web)}/24", "dev", "eth0")
    it.run("ip", "-n", "twin", "link", "set", "eth0", "up")
    wait_until(lambda: "LOWER_UP" in it.run("ip", "link", "show", "vm0"))
    yield "asker", "web:80"
    it.run("ip", "link", "del", "vm0")
    it.run("ip", "netns", "del", "twin")
    # Else who asked for the MAC keeps that of the twin for up to 50 s.
    it.inside(it.asker, "ip", "neighbour", "flush", "to", it.address(it.web))
    it.run("ip", "neighbour", "flush", "to", it.address(it.web))


@contextmanager
def wrong_neighbour(inside: Callable[..., str], link: str, address: str) -> Iterator[None]:
    entry = ("ip", "neighbour", "replace", address, "lladdr", "02:00:00:00:00:98", "dev", link, "nud", "permanent")
    inside(*entry)
    yield
    inside("ip", "neighbour", "flush", "to", address)


@fault("neighbour")
def neighbour(it: Scene) -> Iterator[tuple[str, str]]:
    with wrong_neighbour(partial(it.inside, it.asker), "eth0", it.address(it.web)):
        yield "asker", f"{it.address(it.web)}:80"


@fault("neighbour, way back")
def neighbour_back(it: Scene) -> Iterator[tuple[str, str]]:
    with wrong_neighbour(partial(it.inside, it.web), "eth0", it.address(it.asker)):
        yield "asker", f"{it.address(it.web)}:80"


@fault("neighbour of the host")
def neighbour_of_the_host(it: Scene) -> Iterator[tuple[str, str]]:
    with wrong_neighbour(it.run, it.bridge("blue"), it.address(it.web)):
        yield "outside", "web:80"


@fault("no default route")
def no_default_route(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.asker, "ip", "route", "del", "default")
    yield "asker", f"outside={it.wire.right}"
    it.inside(it.asker, "ip", "route", "replace", "default", "via", it.gateway("blue"))


@contextmanager
def by_green(it: Scene) -> Iterator[None]:
    """Have `both` answer by green what it is asked by blue."""
    it.inside(it.both, "ip", "route", "replace", it.wire.right, "via", it.gateway("green"))
    yield
    it.inside(it.both, "ip", "route", "del", it.wire.right)


@fault("no default route, IPv6")
def no_default_route_6(it: Scene) -> Iterator[tuple[str, str]]:
    gateway = it.inside(it.asker, "ip", "-6", "route", "show", "default").split()[2]
    it.inside(it.asker, "ip", "-6", "route", "del", "default")
    yield "asker", f"outside={it.wire.right6}"
    it.inside(it.asker, "ip", "-6", "route", "replace", "default", "via", gateway)


@fault("route by another network")
def route_by_another_network(it: Scene) -> Iterator[tuple[str, str]]:
    with by_green(it):
        yield f"outside={it.wire.right}", "both:80"


@fault("rp_filter")
def rp_filter(it: Scene) -> Iterator[tuple[str, str]]:
    names = [f"net.ipv4.conf.{link}.rp_filter" for link in ("all", "eth0")]
    before = [it.inside(it.both, "sysctl", "-n", name) for name in names]
    with by_green(it):
        it.inside(it.both, "sysctl", "-w", *(f"{name}=1" for name in names))
        yield f"outside={it.wire.right}", "both:80"
        it.inside(it.both, "sysctl", "-w", *(f"{name}={value}" for name, value in zip(names, before, strict=True)))


@contextmanager
def bridge_netfilter(it: Scene) -> Iterator[None]:
    before = it.run("sysctl", "-n", "net.bridge.bridge-nf-call-iptables")
    it.run("sysctl", "-w", "net.bridge.bridge-nf-call-iptables=1")
    yield
    it.run("sysctl", "-w", f"net.bridge.bridge-nf-call-iptables={before}")


@fault("bridge-nf-call-iptables")
def bridge_nf_call_iptables(it: Scene) -> Iterator[tuple[str, str]]:
    with bridge_netfilter(it), iptables(it, "iptables", "FORWARD", "-d", it.address(it.web), "-j", "DROP"):
        yield "asker", "web:80"


@fault("forwarding")
def forwarding(it: Scene) -> Iterator[tuple[str, str]]:
    """Of the link to others, so on the way back: the daemon keeps those of the host and of its bridges turned on."""
    name = f"net.ipv4.conf.{it.wire.left_link}.forwarding"
    it.run("sysctl", "-w", f"{name}=0")
    yield "asker", f"outside={it.wire.right}"
    it.run("sysctl", "-w", f"{name}=1")


@fault("link down")
def link_down(it: Scene) -> Iterator[tuple[str, str]]:
    routes = it.inside(it.web, "ip", "route", "show", "default")
    it.inside(it.web, "ip", "link", "set", "eth0", "down")
    yield "asker", f"{it.address(it.web)}:80"
    it.inside(it.web, "ip", "link", "set", "eth0", "up")
    it.inside(it.web, "ip", "route", "replace", *routes.split())


@fault("cable cut")
def cable_cut(it: Scene) -> Iterator[tuple[str, str]]:
    link, client = it.wire.right_link, it.client
    client.run(["sysctl", "-w", f"net.ipv6.conf.{link}.keep_addr_on_down=1"])
    routes = [(family, client.output("ip", family, "route", "show", "default")) for family in ("-4", "-6")]
    client.run(["ip", "link", "set", link, "down"])
    yield "asker", f"outside={it.wire.right}"
    client.run(["ip", "link", "set", link, "up"])
    for family, route in routes:
        client.run(["ip", family, "route", "replace", *route.split(" metric")[0].split()])
    client.run(["sysctl", "-w", f"net.ipv6.conf.{link}.keep_addr_on_down=0"])


FILL = """
import socket, struct, sys
def attr(kind, data): return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) & 3)
def ends(kind, one, other, port):
    proto = attr(1, bytes([17])) + attr(2, struct.pack(">H", port)) + attr(3, struct.pack(">H", port))
    return attr(kind | 0x8000, attr(0x8001, attr(1, one) + attr(2, other)) + attr(0x8002, proto))
def message(kind, flags, body):
    return struct.pack("=IHHII", 20 + len(body), kind, flags | 1, 1, 0) + bytes([2, 0, 0, 0]) + body
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
if len(sys.argv) > 1:
    here = bytes([198, 51, 100, 1])
    more = attr(3, struct.pack(">I", 14)) + attr(7, struct.pack(">I", 600))
    for high in range(int(sys.argv[1]) // 50_000 + 1):
        for first in range(1, 50_001, 200):
            there = bytes([198, 51, 101, high])
            sock.send(b"".join(
                message(256, 0x600, ends(1, here, there, port) + ends(2, there, here, port) + more)
                for port in range(first, first + 200)
            ))
else:
    sock.send(message(258, 4, b""))
    sock.recv(4096)
"""
"""Fills the connection tracking table with flows that are not thrown out again (assured), or empties it."""


@fault("conntrack full")
def conntrack_full(it: Scene) -> Iterator[tuple[str, str]]:
    count, most = (f"net.netfilter.nf_conntrack_{name}" for name in ("count", "max"))
    it.run(sys.executable, "-c", FILL, it.run("sysctl", "-n", most))
    assert int(it.run("sysctl", "-n", count)) >= int(it.run("sysctl", "-n", most))
    yield "asker", f"outside={it.wire.right}"
    it.run(sys.executable, "-c", FILL)


@contextmanager
def fighting(it: Scene, command: str) -> Iterator[None]:
    """Somebody's script does it again and again, as fast as the daemon heals it."""
    script = it.host.popen(["sh", "-c", f"while :; do {command}; done"], log="script.log")
    yield
    script.kill()
    it.netplug.client.post("repair")
    wait_until(lambda: not it.netplug.drift(), 10, "the daemon heals what the script did")


@fault("flushed set")
def flushed_set(it: Scene) -> Iterator[tuple[str, str]]:
    it.trace("asker", f"{it.address(it.web)}:80")  # it knows the MAC then, and need not ask for it
    with fighting(it, "nft flush set bridge netplug own4"):
        yield "asker", f"{it.address(it.web)}:80"


@fault("hairpin")
def hairpin(it: Scene) -> Iterator[tuple[str, str]]:
    with bridge_netfilter(it), fighting(it, f"bridge link set dev {it.port(it.web)} hairpin off"):
        yield "web", f"{it.wire.left}:8080"


@fault("hairpin, MAC known")
def hairpin_past_the_bridge(it: Scene) -> Iterator[tuple[str, str]]:
    entry = (it.address(it.web), "dev", it.bridge("blue"))
    it.run("ip", "neighbour", "replace", *entry, "lladdr", it.mac(it.web), "nud", "permanent")
    # The header is kept from the first packet on (neigh_hh_init).
    it.run(sys.executable, "-c", f"import socket; socket.socket(2, 2).sendto(b'', ('{it.address(it.web)}', 9))")
    with bridge_netfilter(it), fighting(it, f"bridge link set dev {it.port(it.web)} hairpin off"):
        yield "web", f"{it.wire.left}:8080"
    it.run("ip", "neighbour", "del", *entry)


@fault("not enslaved")
def not_enslaved(it: Scene) -> Iterator[tuple[str, str]]:
    with fighting(it, f"ip link set {it.port(it.web)} nomaster"):
        yield "asker", f"{it.address(it.web)}:80"


@fault("spoofed address")
def spoofed_address(it: Scene) -> Iterator[tuple[str, str]]:
    net = it.address(it.asker).rpartition(".")[0]
    it.inside(it.asker, "ip", "addr", "add", f"{net}.200/32", "dev", "eth0")
    it.inside(it.asker, "ip", "route", "add", it.address(it.web), "dev", "eth0", "src", f"{net}.200")
    yield "asker", "web:80"
    it.inside(it.asker, "ip", "route", "del", it.address(it.web))
    it.inside(it.asker, "ip", "addr", "del", f"{net}.200/32", "dev", "eth0")


@fault("spoofed MAC")
def spoofed_mac(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.asker, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
    yield "asker", f"{it.address(it.web)}:80"
    it.inside(it.asker, "ip", "link", "set", "eth0", "address", it.mac(it.asker))


@contextmanager
def paused(it: Scene, name: str) -> Iterator[None]:
    it.dockerd.docker("pause", name)
    yield
    it.undo(docker_command(), "unpause", name)


@fault("destination paused")
def destination_paused(it: Scene) -> Iterator[tuple[str, str]]:
    with paused(it, "web"):
        yield "asker", "web:80"


@fault("source paused")
def source_paused(it: Scene) -> Iterator[tuple[str, str]]:
    with paused(it, "asker"):
        yield "asker", "web:80"


@fault("address lost")
def address_lost(it: Scene) -> Iterator[tuple[str, str]]:
    routes = it.inside(it.web, "ip", "route", "show", "default")
    address = it.inside(it.web, "ip", "-o", "-4", "addr", "show", "dev", "eth0").split()[3]
    it.inside(it.web, "ip", "addr", "del", address, "dev", "eth0")
    yield "asker", "web:80"
    it.inside(it.web, "ip", "addr", "replace", address, "dev", "eth0")
    it.inside(it.web, "ip", "route", "replace", *routes.split())


@fault("internal")
def internal(it: Scene) -> Iterator[tuple[str, str]]:
    yield "inner", f"outside={it.wire.right}"


@fault("icc")
def icc(_: Scene) -> Iterator[tuple[str, str]]:
    yield "quiet1", "quiet2:80"


@fault("other network")
def other_network(it: Scene) -> Iterator[tuple[str, str]]:
    yield "asker", f"{it.address(it.lonely, 'green')}:80"


@fault("not published")
def not_published(_: Scene) -> Iterator[tuple[str, str]]:
    yield "outside", "web:81"


@fault("MTU")
def mtu(it: Scene) -> Iterator[tuple[str, str]]:
    it.inside(it.web, "ip", "link", "set", "eth0", "mtu", "1300")
    yield "asker", "web:80"
    it.inside(it.web, "ip", "link", "set", "eth0", "mtu", "1500")


@fault("mode none")
def mode_none(it: Scene) -> Iterator[tuple[str, str]]:
    yield "nothing", f"{it.address(it.web)}:80"


@pytest.mark.parametrize("name", list(FAULTS))
def test_fault_is_named(scene: Scene, name: str) -> None:
    again: dict[str, Any] = {}
    with FAULTS[name](scene) as ends:
        answer = scene.trace(*ends)
        deadline = time.monotonic() + FIGHT_S
        while name in FOUGHT and answer["reached"] and time.monotonic() < deadline:
            answer = scene.trace(*ends)  # the daemon healed it in time
        if name in MENDED and not answer["reached"]:
            scene.host.run(["sh", "-ec", answer["broken"]["cause"]["mend"]])
            again = scene.trace(*ends)
    assert_named(answer, ROWS[name])
    if name in MENDED:
        assert again["reached"], f"after {answer['broken']['cause']['mend']}:\n{shown(again)}"


def test_the_document_lists_the_faults() -> None:
    assert list(FAULTS) == list(ROWS)
    assert in_document() == markdown(), "python integration/trace_faults.py --write"


def test_the_command_prints_a_table_the_cause_and_the_mend(scene: Scene) -> None:
    said = scene.netplug.cli("trace", "asker", "web:80")
    assert "web receives" in said
    assert said.splitlines()[-1].startswith("reached, ")
    with pytest.raises(CommandError) as caught:
        scene.netplug.cli("trace", "asker", "web:82")
    assert caught.value.code == 1
    *_, verdict, mend = caught.value.stdout.strip().splitlines()
    assert verdict.startswith("not reached: hop 7, web: ")
    assert verdict.endswith("listens on 127.0.0.1 only, where nobody but web itself reaches it")
    assert mend == "mend: have it listen on 0.0.0.0:82"
    answer = scene.netplug.json("trace", "asker", "web:80")
    assert answer["reached"]
    assert set(answer["hops"][0]) == {"hop", "where", "what", "verdict", "ms", "cause"}


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [
        (("stranger", "web:80"), 1, "there is no endpoint 'stranger'"),
        (("asker", "blue/stranger"), 1, "there is no endpoint 'blue/stranger'"),
        (("asker", "web:80/sctp"), 2, "protocol 'sctp' cannot be traced"),
        (("asker:80", "web"), 2, "SRC 'asker:80' has a port"),
    ],
)
def test_unknown_ends_are_refused_in_words(scene: Scene, ends: tuple[str, str], code: int, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        scene.netplug.cli("trace", *ends)
    assert caught.value.code == code
    assert words in caught.value.stderr


def test_nothing_stays_when_a_trace_is_killed(scene: Scene) -> None:
    """From outside it makes the most: tables, a tap, and what leads from that to the uplink."""
    before = snapshot(scene.host, scene.netplug)
    body = {"source": "outside", "destination": "web:80"}
    with ThreadPoolExecutor(1) as pool:
        trace = pool.submit(scene.netplug.client.post, "trace", body=body)
        wait_until(lambda: "np-probe" in scene.run("nft", "list", "tables"), what="the trace to begin")
        scene.netplug.kill()
        with pytest.raises(CliError):
            trace.result(BROKEN_S)
    wait_until(lambda: "np-probe" not in scene.run("nft", "list", "tables"), what="its tables to go")
    scene.netplug.start()
    assert_same(before, lambda: snapshot(scene.host, scene.netplug))
    assert scene.trace("outside", "web:80")["reached"]
