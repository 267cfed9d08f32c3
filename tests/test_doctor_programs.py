"""The doctor's checks of other programs of the host: those that take hold of links, name servers, Docker, daemons."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from doctor_host import bad, host_subject, name_server
from engine_host import Host

from netplug.drivers.api import Network
from netplug.drivers.options import NetworkOptions
from netplug.drivers.steps import Bridge, Proto, Route
from netplug.insight.doctor import daemons, dns, docker, link_managers, links
from netplug.kernel.host.api import Holder, Offloads, Program, RefusingRoute

pytestmark = pytest.mark.usefixtures("quiet")


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    await host.cli_network("10.1.0.0/24")
    yield host
    await host.close()


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def runs(host: Host, name: str) -> None:
    host.kernel.health.programs = (Program(7, name, (f"/usr/sbin/{name}",)),)


# Programs that take hold of links


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("", ["note"]),
        ("[keyfile]\nunmanaged-devices=interface-name:docker0\n", ["note"]),
        ("[keyfile]\nunmanaged-devices=interface-name:docker0;interface-name:np*\n", []),
        ("[keyfile]\nunmanaged-devices+=interface-name:np*\n", []),
        ("[keyfile]\nunmanaged-devices=*,except:interface-name:eth0\n", []),
        ("[keyfile]\nunmanaged-devices=interface-name:np*,except:interface-name:npv*\n", ["note"]),
        ("[device-ours]\nmatch-device=interface-name:np*\nmanaged=0\n", []),
    ],
)
async def test_network_manager(host: Host, tmp_path: Path, text: str, verdicts: list[str]) -> None:
    subject = host_subject(host, tmp_path, root=tmp_path)
    write(tmp_path, "etc/NetworkManager/conf.d/10-site.conf", text)
    assert bad(await link_managers.network_manager(subject)) == []  # it does not run
    runs(host, "NetworkManager")
    found = bad(await link_managers.network_manager(host_subject(host, tmp_path, root=tmp_path)))
    assert [it.verdict for it in found] == verdicts
    assert all("/etc/NetworkManager/conf.d/90-netplug.conf" in it.mend for it in found)


@pytest.mark.parametrize(("managed", "verdict"), [(True, "warning"), (False, "note")])
async def test_network_manager_that_tells(host: Host, tmp_path: Path, *, managed: bool, verdict: str) -> None:
    runs(host, "NetworkManager")
    (bridge,) = (it.name for it in host.made(Bridge))
    host.kernel.health.managed = {bridge: managed}
    (found,) = bad(await link_managers.network_manager(host_subject(host, tmp_path, root=tmp_path)))
    assert (found.verdict, bridge in found.why) == (verdict, managed)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({}, ""),
        ({"20-all": "[Match]\nName=*\n[Network]\nDHCP=yes\n"}, "np-…, nph…, nps…, npv…"),
        ({"20-ether": "[Match]\nType=ether\n[Network]\nDHCP=yes\n"}, "np-…, nph…, nps…"),
        ({"20-bridges": "[Match]\nKind=bridge\n[Network]\nDHCP=yes\n"}, "np-…"),
        ({"20-eth": "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"}, ""),
        ({"20-not": "[Match]\nName=!np* eth0\n[Network]\nDHCP=yes\n"}, ""),
        ({"20-mac": "[Match]\nMACAddress=02:00:00:00:00:01\n"}, ""),
        ({"05-netplug": "[Match]\nName=np*\n[Link]\nUnmanaged=yes\n", "20-all": "[Match]\nName=*\n"}, ""),
    ],
)
async def test_networkd(host: Host, tmp_path: Path, files: dict[str, str], taken: str) -> None:
    for name, text in files.items():
        write(tmp_path, f"etc/systemd/network/{name}.network", text)
    runs(host, "systemd-network")  # as the kernel cuts it
    found = bad(await link_managers.networkd(host_subject(host, tmp_path, root=tmp_path)))
    assert [f"({taken})" in it.why for it in found] == [True] * bool(taken)
    assert all("/etc/systemd/network/05-netplug.network" in it.mend for it in found)


async def test_mend_of_networkd_is_one(host: Host, tmp_path: Path) -> None:
    """What it writes is what the check looks for."""
    write(tmp_path, "etc/systemd/network/20-all.network", "[Match]\nName=*\n")
    runs(host, "systemd-networkd")
    subject = host_subject(host, tmp_path, root=tmp_path)
    (found,) = bad(await link_managers.networkd(subject))
    command = found.mend.partition(" && ")[0].replace("/etc/", f"{tmp_path}/etc/")
    process = await asyncio.create_subprocess_shell(command)
    assert await process.wait() == 0
    assert bad(await link_managers.networkd(subject)) == []


@pytest.mark.parametrize(("text", "count"), [("", 1), ("denyinterfaces veth* np*\n", 0), ("allowinterfaces eth0\n", 0)])
async def test_dhcpcd(host: Host, tmp_path: Path, text: str, count: int) -> None:
    write(tmp_path, "etc/dhcpcd.conf", text)
    runs(host, "dhcpcd")
    assert len(bad(await link_managers.dhcpcd(host_subject(host, tmp_path, root=tmp_path)))) == count


# Links and routes


@pytest.mark.parametrize(
    ("route", "verdict"), [("10.1.0.128/25", "failure"), ("10.0.0.0/8", "note"), ("10.2.0.0/24", "")]
)
async def test_route_of_others_into_a_subnet(host: Host, tmp_path: Path, route: str, verdict: str) -> None:
    host.kernel.foreign.links["tun0"] = "tun"
    host.kernel.foreign.routes.append(Route(ip_network(route), "tun0"))
    found = bad(await links.overlaps(host_subject(host, tmp_path)))
    assert [it.verdict for it in found] == [verdict] * bool(verdict)


@pytest.mark.parametrize(
    ("route", "count"),
    [
        (RefusingRoute("blackhole", ip_network("10.1.0.128/25")), 1),
        (RefusingRoute("prohibit", ip_network("10.1.0.9/32")), 1),
        (RefusingRoute("unreachable", ip_network("10.1.0.0/24"), 7), 0),
        (RefusingRoute("blackhole", ip_network("10.0.0.0/8")), 0),
        (RefusingRoute("unreachable", ip_network("::/0"), 4294967295), 0),
    ],
)
async def test_route_that_drops_a_part_of_a_subnet(
    host: Host, tmp_path: Path, route: RefusingRoute, count: int
) -> None:
    host.kernel.health.refusing_routes = (route,)
    found = bad(await links.overlaps(host_subject(host, tmp_path)))
    assert [(it.verdict, it.mend) for it in found] == [
        ("failure", f"ip route del {route.kind} {route.destination}")
    ] * count


async def test_packets_with_wrong_checksums(host: Host, tmp_path: Path) -> None:
    host.kernel.health.counters = {"Tcp.InCsumErrors": 99, "Tcp.InSegs": 1000}
    assert bad(await links.checksums(host_subject(host, tmp_path))) == []
    host.kernel.health.counters = {"Tcp.InCsumErrors": 500, "Tcp.InSegs": 1000, "Udp.InCsumErrors": 0}
    (found,) = bad(await links.checksums(host_subject(host, tmp_path)))
    assert found.why.startswith("500 of 1000 TCP packets came with wrong checksums")


async def test_device_whose_tunnels_break(host: Host, tmp_path: Path) -> None:
    features = frozenset({"tx-udp_tnl-segmentation", "tx-checksum-ip-generic"})
    host.kernel.foreign.links["eth0"] = ""
    host.kernel.health.offloads["eth0"] = Offloads("vmxnet3", features)
    subject = host_subject(host, tmp_path)
    assert bad(await links.checksums(subject)) == []  # it has no tunnels
    overlay = replace(subject, networks=[Network("a1", "far", options=NetworkOptions(mode="overlay"))])
    (found,) = bad(await links.checksums(overlay))
    assert found.mend == "ethtool -K eth0 tx-udp_tnl-segmentation off"
    host.kernel.health.offloads["eth0"] = Offloads("virtio_net", features)
    assert bad(await links.checksums(overlay)) == []


async def test_host_without_a_way_out(host: Host, tmp_path: Path) -> None:
    assert [it.verdict for it in await links.uplink(host_subject(host, tmp_path))] == ["note"]
    host.kernel.foreign.facts = replace(host.kernel.foreign.facts, uplink="eth0")
    assert [it.verdict for it in await links.uplink(host_subject(host, tmp_path))] == ["ok"]


# Name servers


@pytest.mark.parametrize(
    ("proto", "address", "port", "verdict"),
    [
        (Proto.UDP, "10.1.0.1", 53, "warning"),
        (Proto.TCP, "10.1.0.1", 53, "warning"),
        (Proto.UDP, "0.0.0.0", 53, ""),
        (Proto.UDP, "127.0.0.53", 53, ""),
        (Proto.UDP, "0.0.0.0", 25353, "failure"),
        (Proto.UDP, "10.1.0.1", 25353, "failure"),
    ],
)
async def test_holder_of_a_port(
    host: Host, tmp_path: Path, proto: Proto, address: str, port: int, verdict: str
) -> None:
    host.kernel.health.holders = (Holder(proto, address, port, "process 7 (dnsmasq)"),)
    found = bad(await dns.ports(host_subject(host, tmp_path)))
    assert [(it.verdict, "process 7 (dnsmasq)" in it.why) for it in found] == [(verdict, True)] * bool(verdict)


async def test_own_sockets_are_no_others(host: Host, tmp_path: Path) -> None:
    host.kernel.health.holders = (Holder(Proto.UDP, "10.1.0.1", 25353, f"process {os.getpid()} (python)"),)
    assert bad(await dns.ports(host_subject(host, tmp_path))) == []


async def test_upstreams_that_do_not_answer(host: Host, tmp_path: Path) -> None:
    with name_server() as good:
        dead = "127.0.0.1#1"
        for servers, verdicts in (([good], []), ([good, dead], ["note"]), ([dead], ["warning"])):
            found = bad(await dns.upstreams(host_subject(host, tmp_path, dns_upstream=servers)))
            assert [it.verdict for it in found] == verdicts
        write(tmp_path, "etc/resolv.conf", "search corp.local\n")
        found = bad(await dns.upstreams(host_subject(host, tmp_path, root=tmp_path)))
        assert [it.verdict for it in found] == ["note"]


# Docker, and other daemons

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(version: str) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"Version": "%s"}' % version.encode())
        writer.close()

    return serve


async def is_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def is_another(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"220 mail\r\n")
    writer.close()


@asynccontextmanager
async def dockerd(path: Path, serve: Serve) -> AsyncIterator[str]:
    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield f"unix://{path}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("serve", "verdict", "why"),
    [
        (says("20.10.24"), "ok", "dockerd 20.10.24 answers"),
        (says("29.1.0"), "ok", "dockerd 29.1.0 answers"),
        (says("19.03.15"), "warning", "dockerd is of version 19.03.15; netplug needs 20.10 or later"),
        (is_silent, "failure", "does not answer"),
        (is_another, "warning", "is not dockerd"),
    ],
)
async def test_docker(host: Host, tmp_path: Path, serve: Serve, verdict: str, why: str) -> None:
    async with dockerd(tmp_path / "docker.sock", serve) as url:
        (found,) = await docker.engine(host_subject(host, tmp_path, docker_host=url))
    assert (found.verdict, why in found.why) == (verdict, True)


async def test_docker_that_is_not_there(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    subject = host_subject(host, tmp_path, docker_host=f"unix://{path}")
    assert bad(await docker.engine(subject)) == []
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    (found,) = bad(await docker.engine(subject))
    assert (found.verdict, "no dockerd listens" in found.why) == ("warning", True)


async def test_another_daemon(host: Host, tmp_path: Path) -> None:
    serve = ("python", "/usr/bin/netplug", "serve", "--store", "etcd://np:secret@db:2379")
    host.kernel.health.programs = (Program(7, "netplug", serve), Program(8, "netplug", ("python", "netplug", "ps")))
    (found,) = bad(await daemons.others(host_subject(host, tmp_path)))
    assert "process 7" in found.why
    assert "secret" not in found.why
