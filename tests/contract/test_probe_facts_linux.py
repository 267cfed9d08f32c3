"""Probes on the real kernel: what there is in a namespace, and who has an address."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from linux_host import run
from probed_hosts import Hosts

from netplug.errors import NetplugError
from netplug.kernel.probes.api import Look, Prober

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")


async def test_a_segment_tells_who_has_an_address(hosts: Hosts, prober: Prober) -> None:
    for address in ("10.0.1.2", "2001:db8:1::2"):
        assert len((await prober.who_has("", "vs", ip_address(address))).macs) == 1
    assert not (await prober.who_has("", "vs", ip_address("10.0.1.99"), 100)).macs
    with pytest.raises(NetplugError, match="no such device"):
        await prober.who_has("", "vx", ip_address("10.0.1.2"))


async def test_a_namespace_is_read(hosts: Hosts, prober: Prober) -> None:
    wanted = Look(
        hosts.server,
        ((ip_address("10.0.0.2"), None), (ip_address("10.0.0.2"), ip_address("10.0.1.2"))),
        ("net/ipv4/ip_forward", "net/none"),
        listeners=True,
    )
    found = await prober.look(wanted)
    assert not found.lacks
    link = next(it for it in found.links if it.name == "eth0")
    assert (link.up, link.carrier, link.mtu, link.kind, link.state) == (True, True, 1500, "veth", "up")
    assert link.peer
    assert not link.peer_here
    assert "10.0.1.2/24" in map(str, link.addresses)
    assert {(it.link, str(it.gateway), str(it.preferred)) for it in found.lookups} == {("eth0", "10.0.1.1", "10.0.1.2")}
    assert "0.0.0.0/0" in {str(it.destination) for it in found.routes}
    assert found.sysctls == (("net/ipv4/ip_forward", "0"), ("net/none", ""))
    tcp = next(it for it in found.listeners if (it.proto, str(it.address)) == ("tcp", "10.0.1.2"))
    assert (tcp.port, tcp.pid, tcp.frozen) == (80, hosts.listening, False)
    assert found.processes == 1


async def test_a_way_that_is_missing_is_told(hosts: Hosts, prober: Prober) -> None:
    run("ip", "-n", hosts.client, "route", "del", "default")
    run("ip", "-n", hosts.client, "route", "add", "blackhole", "10.0.9.0/24")
    wanted = tuple((ip_address(it), None) for it in ("10.0.1.2", "10.0.9.1"))
    found = (await prober.look(Look(hosts.client, wanted))).lookups
    assert [it.error for it in found] == ["network is unreachable", "invalid argument"]


async def test_a_stopped_process_is_told(hosts: Hosts, prober: Prober) -> None:
    os.kill(hosts.listening, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not (found := await prober.look(Look(hosts.server, listeners=True))).frozen:
        assert time.monotonic() < deadline
    assert all(it.frozen for it in found.listeners)


async def test_neighbours_and_entries_of_the_bridge_are_read(hosts: Hosts, prober: Prober) -> None:
    await prober.run(hosts.job())
    found = await prober.look(Look(forwarding=True))
    inside = await prober.look(Look(hosts.client))
    mac = next(it.mac for it in inside.links if it.name == "eth0")
    assert {(it.mac, it.link) for it in found.neighbours if str(it.address) == "10.0.0.2"} == {(mac, "br0")}
    assert (mac, "vc", True) in {(it.mac, it.link, it.bridge) for it in found.forwarding}
    port = next(it for it in found.links if it.name == "vc")
    assert (port.master, port.hairpin) == ("br0", False)


@pytest.fixture
def contained(tmp_path: Path) -> Iterator[int]:
    """A process with a root of its own."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "resolv.conf").write_text("nameserver 10.0.0.1\nsearch a b\noptions ndots:2\n")
    (tmp_path / "etc" / "hosts").write_text("127.0.0.1\tlocalhost\n::1 web\n10.0.0.9 db Web # old\n#10.0.0.8 web\n")
    code = f"import os; os.chroot({str(tmp_path)!r}); print(flush=True); input()"
    with subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


async def test_name_servers_are_those_of_a_process(hosts: Hosts, prober: Prober, contained: int) -> None:
    found = await prober.look(Look(hosts.server, resolv_conf=True, pid=contained))
    assert ([str(it) for it in found.nameservers], found.search) == (["10.0.0.1"], ("a", "b"))
    assert found.resolv_options == ("ndots:2",)
    assert (await prober.look(Look(hosts.server, resolv_conf=True))).nameservers != found.nameservers


async def test_the_hosts_file_is_that_of_a_process(hosts: Hosts, prober: Prober, contained: int) -> None:
    found = await prober.look(Look(hosts.server, resolv_conf=True, name="web", pid=contained))
    assert [str(it) for it in found.hosts] == ["10.0.0.9", "::1"]
    for name in ("we", "old", ""):
        assert not (await prober.look(Look(hosts.server, resolv_conf=True, name=name, pid=contained))).hosts


async def test_a_pipe_for_a_hosts_file_stops_nothing(
    hosts: Hosts, prober: Prober, contained: int, tmp_path: Path
) -> None:
    (tmp_path / "etc" / "hosts").unlink()
    os.mkfifo(tmp_path / "etc" / "hosts")
    found = await prober.look(Look(hosts.server, resolv_conf=True, name="web", pid=contained))
    assert (found.hosts, found.resolv_conf) == ((), True)


@pytest.fixture
def freeze(hosts: Hosts) -> Iterator[Callable[[], object]]:
    """Freezes the server's process, by cgroups of v1 or v2."""
    old = Path("/sys/fs/cgroup/freezer")
    group = (old if old.exists() else Path("/sys/fs/cgroup")) / hosts.server
    name, frozen, thawed = ("freezer.state", "FROZEN", "THAWED") if old.exists() else ("cgroup.freeze", "1", "0")
    group.mkdir()
    (group / "cgroup.procs").write_text(str(hosts.listening))
    yield lambda: (group / name).write_text(frozen)
    (group / name).write_text(thawed)
    (group.parent / "cgroup.procs").write_text(str(hosts.listening))
    group.rmdir()


async def test_a_frozen_process_is_told(hosts: Hosts, prober: Prober, freeze: Callable[[], object]) -> None:
    assert not (await prober.look(Look(hosts.server, listeners=True))).frozen
    freeze()
    deadline = time.monotonic() + 10
    while not (found := await prober.look(Look(hosts.server, listeners=True))).frozen:
        assert time.monotonic() < deadline
    assert all(it.frozen for it in found.listeners)


async def test_an_address_that_is_used_twice_has_two_stations(hosts: Hosts, prober: Prober) -> None:
    run("ip", "link", "add", "vd", "up", "master", "br0", "type", "veth", "peer", "name", "eth1", "netns", hosts.server)
    run("ip", "-n", hosts.server, "link", "set", "eth1", "up")
    run("ip", "-n", hosts.server, "address", "add", "10.0.0.2/32", "dev", "eth1")
    assert len((await prober.who_has("", "br0", ip_address("10.0.0.2"))).macs) == 2
