"""Addresses from a DHCP server (busybox's) on the container's segment, by the reference dhcp plugin and its daemon."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from harness import BIN_DIR, FOREIGN_DIR, Host, Netplug, PluginError, Process, Runtime, connect, namespace, wait_until

SOCKET = "/run/dhcp-plugin.sock"
LOOK_S = 30
"""So often the daemon looks at leases."""
SERVER = """\
start 203.0.113.100
end 203.0.113.101
interface {link}
option subnet 255.255.255.0
option router 203.0.113.2
option lease 600
lease_file /run/udhcpd.leases
pidfile /run/udhcpd.pid
"""


@dataclass
class Site:
    host: Host
    other: Host
    netplug: Netplug
    router: str
    parent: str
    server: Process
    plugin: Process

    def serve(self) -> None:
        self.server = _server(self.other)

    def forget(self) -> None:
        """Start the daemon of the dhcp plugin anew."""
        self.plugin.kill()
        self.host.path(SOCKET).unlink()
        self.plugin = _plugin(self.host)

    def look(self) -> None:
        """Have netplug look at once, as it does when it starts."""
        self.netplug.kill()
        self.netplug.start()

    def network(self, **config: Any) -> Runtime:
        return Runtime(self.host, {"type": "pynet", "ipam": {"type": "dhcp", "daemonSocketPath": SOCKET}} | config)


def _server(host: Host) -> Process:
    return host.popen(["busybox", "udhcpd", "-f", "/run/udhcpd.conf"], log="udhcpd.log")


def _plugin(host: Host) -> Process:
    limits = ["-timeout", "1s", "-resendmax", "2s"]
    process = host.popen([f"{FOREIGN_DIR}/dhcp", "daemon", "-socketpath", SOCKET, *limits], log="dhcp.log")
    wait_until(host.path(SOCKET).exists, 10, "the daemon of the dhcp plugin")
    return process


@pytest.fixture
def site(new_host: Callable[..., Host]) -> Iterator[Site]:
    """A host, on whose uplink another serves addresses."""
    host, other = new_host(), new_host("router")
    wire = connect(host, other)
    other.path("/run/udhcpd.conf").write_text(SERVER.format(link=wire.right_link))
    other.path("/run/udhcpd.leases").touch()
    server, plugin = _server(other), _plugin(host)
    netplug = Netplug(host, "--docker-host", "none")
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR, "--name", "pynet")
    yield Site(host, other, netplug, wire.right, wire.left_link, server, plugin)
    assert netplug.json("ps") == []
    assert not netplug.drift()
    netplug.stop()


@pytest.mark.parametrize("mode", ["macvlan", "bridge"])
def test_server_gives_address_and_way_out(site: Site, mode: str) -> None:
    if mode == "macvlan":
        it = site.network(master=site.parent)
    else:
        site.host.run(["sh", "-ec", f"ip link add br0 up type bridge; ip link set {site.parent} master br0"])
        it = site.network(bridge="br0")
    with namespace(site.host) as one, namespace(site.host) as two, namespace(site.host) as three:
        first, second = it.add(one), it.add(two)
        assert {first.ip, second.ip} == {"203.0.113.100", "203.0.113.101"}
        assert first.result["ips"][0]["gateway"] == site.router
        assert "default via 203.0.113.2" in one.exec("ip", "route")
        assert one.pings(site.router)
        assert one.pings(second.ip)
        it.check(first)
        site.netplug.kill()
        site.netplug.start()
        assert site.netplug.drift() == ""
        assert one.pings(site.router)
        it.delete(first)
        late = it.add(three)
        assert late.ip == first.ip, "the lease was given back by way of the link"
        it.delete(second)
        it.delete(late)


def test_lease_that_was_forgotten_is_asked_for_again(site: Site) -> None:
    it = site.network(master=site.parent)
    with namespace(site.host) as one, namespace(site.host) as two:
        first = it.add(one)
        site.server.stop()
        site.forget()
        site.look()
        wait_until(lambda: "no DHCP server answers by eth0" in site.netplug.drift(), 30, "the lack to be told")
        wait_until(lambda: f"the lease of {first.ip} is not kept" in site.netplug.drift(), 30, "whose it is")
        with pytest.raises(PluginError, match="no DHCP server answers by eth0 on network") as caught:
            it.add(two, container="late")
        assert caught.value.code == 11
        site.serve()
        site.look()
        log = site.other.dir / "udhcpd.log"
        wait_until(lambda: log.read_text().count("sending ACK") == 2, 30, "the lease to be there again")
        wait_until(lambda: not site.netplug.drift(), 30, "no drift")
        it.check(first)
        it.delete(first)


def test_daemon_behind_a_socket_of_systemd_is_noticed_when_it_starts_anew(site: Site) -> None:
    """The socket stays: neither its inode nor who listens at it tells."""
    site.plugin.kill()
    path = site.host.path(SOCKET)
    path.unlink()
    start = f"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec {FOREIGN_DIR}/dhcp daemon -timeout 1s -resendmax 2s"
    it = site.network(master=site.parent)
    log = site.other.dir / "udhcpd.log"
    with socket.socket(socket.AF_UNIX) as listening, namespace(site.host) as one:
        listening.bind(str(path))
        listening.listen()
        given: Any = listening
        site.plugin = site.host.popen(["sh", "-c", start], log="dhcp.log", stdin=given)
        first = it.add(one)
        assert log.read_text().count("sending ACK") == 1
        site.plugin.kill()
        site.plugin = site.host.popen(["sh", "-c", start], log="dhcp.log", stdin=given)
        wait_until(lambda: log.read_text().count("sending ACK") == 2, 2 * LOOK_S, "the lease to be asked for again")
        wait_until(lambda: not site.netplug.drift(), 30, "no drift")
        it.check(first)
        it.delete(first)


def test_daemon_of_the_plugin_is_missed(site: Site) -> None:
    it = site.network(master=site.parent, ipam={"type": "dhcp", "daemonSocketPath": "/run/nobody.sock"})
    with namespace(site.host) as netns:
        with pytest.raises(PluginError, match=r"nobody\.sock"):
            it.add(netns, container="c")
        assert "eth0" not in netns.exec("ip", "-o", "link")
        assert site.netplug.json("network", "ls") == []
