"""What containers and local users without rights reach of the host's services, and what they can take from them.

The attacker in a container is root there and sends any frame, see docs/security.md. Local users are another user id.
"""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from harness import Answer, Host, Namespace, Netplug, SeenServer, attached, cli_network, resolve, tcp_ask, wait_until
from harness.frames import Eye
from harness.host import CommandError, Process
from harness.netns import in_netns
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

PAGE = 9820
GATEWAY = "10.96.1.1"
HOST = "192.0.2.9"
"""An address of the host, as it has on its uplink."""
SUBNET = ("--subnet", "10.96.1.0/24")
MODES = {
    "bridge": SUBNET,
    "internal": (*SUBNET, "--internal"),
    "spoofchk=false": (*SUBNET, "-o", "spoofchk=false"),
    "of the user": (*SUBNET, "-o", "bridge=lent"),
    "host": (*SUBNET, "--mode", "host"),
}
LOOPBACK = ("127.0.0.1", "127.0.0.53", "127.0.25.53", "127.255.255.255")
NOBODY = 65534
HOLD = """
import os, signal, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
held = []
for text in sys.argv[1:]:
    kind, address, port = text.split("/")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: an address that is not there yet (ip(7))
    sock.bind((address, int(port)))
    if kind == "tcp":
        sock.listen()
    held.append(sock)
print("holds", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Host]:
    with Host("reached") as host:
        for line in ("link add lent type bridge", "link set lent up", "link set lo up", f"addr add {HOST}/32 dev lo"):
            host.run(["ip", *line.split()])
        yield host


@pytest.fixture(scope="module")
def daemon(place: Host) -> Iterator[Netplug]:
    it = Netplug(place, "--docker-host", "none", "--http", f"127.0.0.1:{PAGE}")
    # What is made once and kept: sysctls.
    for options in (MODES["bridge"], MODES["host"], MODES["of the user"]):
        with cli_network(it, *options) as net, attached(it, net):
            pass
    yield it
    it.stop()


def page(host: Host) -> str:
    return host.output("busybox", "wget", "-qO-", f"http://127.0.0.1:{PAGE}/v1/version")


@pytest.mark.parametrize("mode", MODES)
def test_container_reaches_nothing_that_listens_on_the_hosts_loopback(place: Host, daemon: Netplug, mode: str) -> None:
    """Though netplug's bridges have route_localnet, so that the host reaches published ports (CVE-2020-8558)."""
    with cli_network(daemon, *MODES[mode]) as net, attached(daemon, net) as (thief, own), ExitStack() as stack:
        at_loopback = [stack.enter_context(SeenServer(place, "udp", port, "127.0.0.1")) for port in (7000, 53)]
        anywhere = stack.enter_context(SeenServer(place, "udp", 7000, "127.0.25.53"))
        open_one = stack.enter_context(SeenServer(place, "udp", 7001))
        eye = Eye(thief, "eth0")
        stack.callback(eye.close)
        address = own["addresses"][0].split("/")[0]
        gateway = _gateway(thief)
        sender = stack.enter_context(in_netns(thief.netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))
        sender.bind(("eth0", 0))

        def send(source: str, to: str, inner: UDP | TCP) -> None:
            sender.send(bytes(Ether(src=own["mac"], dst=gateway) / IP(src=source, dst=to) / inner))

        for to in LOOPBACK:
            for source in (address, "127.0.0.1", to, GATEWAY):
                for port in (7000, 53):
                    send(source, to, UDP(sport=5000, dport=port) / Raw(b"?"))
                send(source, to, TCP(sport=5000, dport=PAGE, flags="S"))
        # By an address of the host that it may speak to, the page is not there; another service is.
        for at in (GATEWAY,) if mode == "internal" else (HOST,) if mode == "host" else (GATEWAY, HOST):
            with pytest.raises(OSError, match=r"refused|timed out"):
                tcp_ask(thief, at, PAGE, timeout_s=1)
            send(address, at, UDP(sport=5000, dport=7001) / Raw(b"?"))
            wait_until(lambda: open_one.seen, 5, "what is for the host")
            open_one.seen.clear()
        assert [server.seen for server in (*at_loopback, anywhere)] == [[], [], []]
        assert not eye.saw(bytes(IP(src="127.0.0.1", dst=address))[12:20])
        assert json.loads(page(place))["version"]


def _gateway(thief: Namespace) -> str:
    """Return the MAC by which a station reaches its host."""
    (link,) = json.loads(thief.exec("ip", "-j", "link", "show", "eth0"))
    links = json.loads(thief.host.output("ip", "-j", "link"))
    (port,) = (it for it in links if it["ifindex"] == link["link_index"])
    return str(next((it["address"] for it in links if it["ifname"] == port.get("master")), port["address"]))


def test_containers_reach_no_socket_of_the_daemon_by_its_abstract_name(daemon: Netplug) -> None:
    """It is of the host's network namespace (unix(7))."""
    code = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0netplug')"
    with cli_network(daemon, *SUBNET) as net, attached(daemon, net) as (thief, _):
        with pytest.raises(CommandError, match="ConnectionRefusedError"):
            thief.exec(sys.executable, "-c", code)
        daemon.host.run([sys.executable, "-c", code])


@contextmanager
def held(host: Host, *places: str) -> Iterator[None]:
    """Have a user without rights hold addresses and ports: `udp/10.0.0.1/53`."""
    process: Process = host.popen([sys.executable, "-c", HOLD, *places], log="held.log")
    try:
        wait_until(lambda: "holds" in (host.dir / "held.log").read_text(), 10, "the user holds them")
        yield
        assert process.alive
    finally:
        process.kill()
        (host.dir / "held.log").write_text("")


@contextmanager
def ports_for_all(host: Host) -> Iterator[None]:
    """A host that lets each user bind each port, as some distributions do for containers without root."""
    host.run(["sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=0"])
    yield
    host.run(["sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=1024"])


def test_users_cannot_bind_the_port_of_dns(place: Host) -> None:
    with pytest.raises(CommandError, match="PermissionError"):
        place.run([sys.executable, "-c", HOLD, f"udp/{GATEWAY}/53"])


def test_user_who_holds_the_port_of_dns_answers_nobody(place: Host, daemon: Netplug) -> None:
    """Neither where users may bind it before the network is there: our sockets are at other ports, behind nf_tables."""
    with (
        ports_for_all(place),
        held(place, f"udp/{GATEWAY}/53", f"tcp/{GATEWAY}/53"),
        cli_network(daemon, *SUBNET) as net,
        attached(daemon, net, "--name", "asker") as (asker, own),
    ):
        address = own["addresses"][0].split("/")[0]
        for tcp in (False, True):
            assert resolve(asker, GATEWAY, "asker", tcp=tcp) == Answer("NOERROR", (address,))
