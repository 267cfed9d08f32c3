"""The harness itself, proven on Docker's own bridge networks."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    Dockerd,
    Host,
    SeenServer,
    Wire,
    assert_same,
    connect,
    http_get,
    snapshot,
    tcp_ask,
    udp_ask,
    wait_until,
)
from harness.host import CommandError, cgroup_folders
from harness.pasted import Command
from harness.terminal import Terminal

from netplug.lab.image import PAGE

NewHost = Callable[..., Host]


def test_containers_of_a_network_ping_each_other(dockerd: Dockerd) -> None:
    dockerd.docker("network", "create", "blue")
    one, two = dockerd.run("--network", "blue"), dockerd.run("--network", "blue", "--name", "two")
    assert one.pings(two.ip())
    assert one.pings("two")
    assert not one.pings("203.0.113.99")
    one.remove()
    two.remove()
    dockerd.docker("network", "rm", "blue")


def test_published_page_is_fetched_from_another_host(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    web = dockerd.run("-p", "8080:80", command=("httpd", "-f", "-h", "/www"))
    assert wait_until(lambda: http_get(client, wire.left, 8080), ignoring=(OSError,)) == PAGE
    web.remove()
    with pytest.raises(ConnectionRefusedError):
        http_get(client, wire.left, 8080)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_server_in_a_container_tells_the_source_address(dockerd: Dockerd, client: Host, wire: Wire, proto: str) -> None:
    container = dockerd.run("-p", f"8081:81/{proto}")
    ask = tcp_ask if proto == "tcp" else udp_ask
    with SeenServer(container, proto, 81) as server:
        assert ask(client, wire.left, 8081) == wire.right
        assert server.seen == [wire.right]
    container.remove()


def test_container_reaches_another_host_under_its_hosts_address(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    container = dockerd.run()
    with SeenServer(client, "tcp", 7000):
        assert tcp_ask(container, wire.right, 7000) == wire.left
    with SeenServer(client, "tcp", 7000, "::"):
        assert tcp_ask(dockerd.host, wire.right6, 7000) == wire.left6
    container.remove()


def test_command_failure_holds_its_words(dockerd: Dockerd) -> None:
    with pytest.raises(CommandError, match=r"(?s)network inspect nowhere: exit 1.*No such network"):
        dockerd.docker("network", "inspect", "nowhere")


def test_host_is_a_world_of_its_own(host: Host, new_host: NewHost) -> None:
    other = new_host()
    other.run(["ip", "netns", "add", "inner"])
    assert other.output("ip", "netns") == "inner"
    assert "inner" not in host.output("ip", "netns")
    assert not Path("/run/netns/inner").exists()
    other.run(["ip", "link", "add", "own0", "type", "bridge"])
    assert other.output("ls", "/sys/class/net").split() == ["lo", "own0"]
    assert "own0" not in host.output("ls", "/sys/class/net")
    assert other.output("hostname") == other.name
    assert "freezer" in host.output("cat", "/proc/self/cgroup") or Path("/sys/fs/cgroup/cgroup.controllers").exists()


def test_two_hosts_on_a_wire_ping_each_other(new_host: NewHost) -> None:
    left, right = new_host("left"), new_host("right")
    wire = connect(left, right)
    left.run(["ping", "-c1", "-W2", wire.right] if _has_ping() else ["busybox", "ping", "-c1", "-W2", wire.right])
    right.run(["busybox", "ping", "-c1", "-W2", wire.left6])
    assert right.output("ip", "route", "show", "default") == f"default via {wire.left} dev {wire.right_link}"


def _has_ping() -> bool:
    return Path("/bin/ping").exists()


def test_killed_dockerd_comes_back_and_its_container_too(dockerd: Dockerd) -> None:
    container = dockerd.run("--restart", "always")
    dockerd.kill()
    assert not dockerd.running
    dockerd.start()
    wait_until(lambda: container.running, 20, "restart of the container")
    container.remove()


def test_restarted_dockerd_keeps_its_image_and_containers(dockerd: Dockerd) -> None:
    container = dockerd.run("--restart", "always")
    dockerd.restart()
    wait_until(lambda: container.running, 20, "restart of the container")
    container.remove()


def test_closed_host_leaves_no_process_folder_or_control_group() -> None:
    host = Host("short")
    try:
        dockerd = Dockerd(host)
        container = dockerd.run()
        pid = host.pid
        assert container.running
        assert cgroup_folders(host.name)
        dockerd.kill()
    finally:
        host.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not host.dir.exists()
    assert not cgroup_folders(host.name)


def test_host_ends_with_the_process_that_made_it(new_host: NewHost) -> None:
    host = new_host()
    sleeper = host.popen(["sleep", "3600"], log="sleep.log")
    os.kill(host.pid, signal.SIGKILL)
    assert sleeper.wait(5) == -signal.SIGKILL


DISTURBANCES = {
    "links": ("ip link add stray type bridge", "+stray bridge mtu 1500"),
    "addresses": ("ip addr add 192.0.2.7/32 dev lo", "+lo 192.0.2.7/32"),
    "routes": ("ip route add blackhole 198.51.100.0/24 table 7", "+blackhole 198.51.100.0/24 table 7"),
    "neighbours": ("ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev eth0", "+203.0.113.9 dev eth0"),
    "iptables": ("iptables -A FORWARD -s 192.0.2.7 -j DROP", "+filter -A FORWARD -s 192.0.2.7/32 -j DROP"),
    "iptables legacy": ("iptables-legacy -P FORWARD DROP", "+filter :FORWARD DROP"),
    "ip6tables": ("ip6tables -t nat -N STRAY", "+nat :STRAY -"),
    "sets": ("ipset create stray hash:ip", "+create stray hash:ip"),
    "nftables": (
        "nft add table inet stray; add set inet stray some { type ipv4_addr; elements = { 192.0.2.7 }; }",
        "+inet stray set some: 192.0.2.7",
    ),
    "sysctls": ("sysctl -qw net.ipv4.conf.all.route_localnet=1", "+ipv4/conf/all/route_localnet:1"),
    "netns": ("ip netns add stray", "+stray"),
}


@pytest.mark.parametrize("section", DISTURBANCES)
def test_leak_check_names_what_was_left(new_host: NewHost, section: str) -> None:
    host = new_host()
    connect(host, new_host("far"))
    before = snapshot(host)
    assert_same(before, lambda: snapshot(host))
    command, line = DISTURBANCES[section]
    host.run(command.split())
    with pytest.raises(AssertionError) as caught:
        assert_same(before, lambda: snapshot(host), timeout_s=0)
    assert f"{section}:\n" in str(caught.value)
    assert line in str(caught.value)


def test_leak_check_names_a_listening_socket(new_host: NewHost) -> None:
    host = new_host()
    before = snapshot(host)
    with SeenServer(host, "udp", 5353), pytest.raises(AssertionError, match=r"\+udp 0\.0\.0\.0:5353"):
        assert_same(before, lambda: snapshot(host), timeout_s=0)
    assert_same(before, lambda: snapshot(host))


def test_leak_check_waits_for_what_goes_in_the_background(new_host: NewHost) -> None:
    host = new_host()
    before = snapshot(host)
    host.run(["ip", "link", "add", "late", "type", "bridge"])
    removal = host.popen(["sh", "-c", "sleep 0.3; ip link del late"], log="late.log")
    assert_same(before, lambda: snapshot(host))
    assert removal.wait(5) == 0


def test_terminal_finds_the_prompt_before_what_the_background_prints(new_host: NewHost, tmp_path: Path) -> None:
    terminal, printed = Terminal(new_host(), folder=str(tmp_path)), tmp_path / "printed"
    os.write(terminal._screen, b"{ sleep 0.2; echo noise; touch printed; } &\n")  # noqa: SLF001 - not read at once
    wait_until(printed.exists)
    assert terminal._read("the job", 2)[1] == 0  # noqa: SLF001
    rest, code = terminal.type(Command("", "echo hello; (exit 3)"))
    assert (rest.splitlines()[:2], code) == (["noise", "hello"], 3)
    terminal.close()
