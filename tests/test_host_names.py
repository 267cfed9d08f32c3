"""The host itself asks for names: what it sees, how it is told, and that this is kept and taken back."""

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import dns_packets
import pytest
import pytest_asyncio
from engine_host import OTHER, Host, until

from netplug.dns import wire
from netplug.dns.domain_view import DomainView
from netplug.dns.fast_path import answer
from netplug.dns.slow_path import respond
from netplug.drivers.steps import Ifb, Resolver
from netplug.engine import host_link
from netplug.errors import NetplugError
from netplug.kernel.host import resolv_conf
from netplug.kernel.host.api import Way
from netplug.kernel.host.resolution import HostResolution
from netplug.names.host_client import HostClient
from netplug.names.server import NameServer

OURS = ip_address("127.0.25.53")
DOMAIN = "netplug.internal"


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


@pytest_asyncio.fixture
async def server(host: Host, tmp_path: Path) -> AsyncIterator[NameServer]:
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {OURS}\nnameserver 192.0.2.53\n")
    made = NameServer(host.engine, conf=conf)
    made.start()
    yield made
    made.close()


def seen(server: NameServer) -> DomainView:
    return DomainView(server.zones, tuple(server.zones.networks.values()))


async def test_host_sees_all_networks_below_the_domain_and_no_short_names(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", name="com")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red", dns="off")
    await host.attach(name="web")
    view = seen(server)
    assert dns_packets.ask(view, "web.com.netplug.internal").data == ["10.1.0.2"]
    assert dns_packets.ask(view, "2.0.1.10.in-addr.arpa", wire.PTR).data == ["web.com.netplug.internal."]
    assert dns_packets.ask(view, "host.netplug.internal").data == ["10.1.0.1"]
    for name in ("web", "web.com", "com", "example.com"):
        assert view.find(wire.to_wire(name)) is None
        assert view.zone_of(wire.to_wire(name)) == b""
    assert view.zone_of(wire.to_wire("none.com.netplug.internal")) == view.domain


async def test_view_of_a_host_without_networks_has_the_domain_and_no_names(server: NameServer) -> None:
    view = seen(server)
    for name in ("host.netplug.internal", "web.blue.netplug.internal"):
        assert view.find(wire.to_wire(name)) is None
        assert view.zone_of(wire.to_wire(name)) == view.domain


async def test_both_paths_of_the_name_server_agree_about_what_the_host_sees(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.attach(name="web")
    names = ("web", "web.blue", "web.blue.netplug.internal", "no.blue.netplug.internal", "2.0.1.10.in-addr.arpa")
    for name in (*names, "host.netplug.internal", "9.0.1.10.in-addr.arpa", "site.example", "localhost"):
        for kind in (wire.A, wire.AAAA, wire.PTR):
            data = dns_packets.query(name, kind)
            quick, slow = answer(seen(server), data), respond(seen(server), data)
            assert quick is None or type(quick) is type(slow)
            assert not isinstance(quick, bytes) or quick == slow


async def test_names_that_come_later_are_seen_too(host: Host, server: NameServer) -> None:
    client = HostClient(server.zones, lambda *_: None, server.connections)
    pair = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
    for sock in pair:
        sock.bind(("127.0.0.1", 0))
    pair[1].listen()
    port = pair[0].getsockname()[1]
    serving = client.serve(Resolver(host_link.HOST_ALONE, "lo", OURS, 25353), *pair)
    try:
        await host.cli_network("10.1.0.0/24")
        client.refresh()
        await host.attach(name="web")
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.setblocking(False)
            await loop.sock_connect(asker, ("127.0.0.1", port))
            await loop.sock_sendall(asker, dns_packets.query("web.blue.netplug.internal", wire.A))
            async with asyncio.timeout(5):
                said = await loop.sock_recv(asker, 512)
        assert dns_packets.read(said).data == ["10.1.0.2"]
    finally:
        serving.close()


# How the host is told


async def test_turned_on_it_stays_over_restarts_and_without_networks(host: Host) -> None:
    asked = await host.engine.host_names.turn_on(DOMAIN)
    assert host.kernel.resolution.known == {Way.RESOLVED: asked.authority}
    assert [(step.address, step.port) for step in host.made(Resolver)] == [(OURS, 25353)]
    assert [step.name for step in host.made(Ifb)] == ["npi-names"]
    await host.reboot()
    assert host.engine.host_names.present == asked
    await host.cli_network("10.1.0.0/24")
    await host.delete_all()
    assert [step.name for step in host.made(Ifb)] == ["npi-names"]
    host.kernel.lose("link/npi-names")
    assert [it.object for it in await host.reconciler.diff()] != []
    await host.reconciler.repair()
    assert await host.reconciler.diff() == []
    assert await host.engine.host_names.turn_off()
    assert host.kernel.resolution.known == {}
    assert host.dump() == []
    assert await host.store.get(host_link.HOST_NAMES) is None
    assert not await host.engine.host_names.turn_off()


async def test_program_that_forgot_is_told_again_after_its_restart(host: Host) -> None:
    task = asyncio.ensure_future(host.engine.host_names.run())
    try:
        await asyncio.sleep(0)
        assert host.kernel.resolution.waits == 0
        asked = await host.engine.host_names.turn_on(DOMAIN)
        await until(lambda: host.kernel.resolution.waits)
        host.kernel.resolution.known.clear()
        host.kernel.resolution.restarted.set()
        await until(lambda: host.kernel.resolution.known == {Way.RESOLVED: asked.authority})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("key", ["link/npi-names", "address//npi-names/192.0.0.8/32", "resolver/lo/127.0.25.53"])
async def test_failure_leaves_all_as_it_was(host: Host, key: str) -> None:
    before = await host.state()
    host.kernel.fail_at(key)
    with pytest.raises(NetplugError):
        await host.engine.host_names.turn_on(DOMAIN)
    host.kernel.heal()
    assert await host.state() == before
    assert host.kernel.resolution.known == {}


async def test_host_that_cannot_be_told_is_left_alone(host: Host) -> None:
    host.kernel.resolution.found = None
    before = await host.state()
    with pytest.raises(NetplugError, match="names no resolver"):
        await host.engine.host_names.turn_on(DOMAIN)
    assert await host.state() == before


async def test_another_way_takes_the_place_of_the_former(host: Host) -> None:
    await host.engine.host_names.turn_on(DOMAIN)
    host.kernel.resolution.found = Way.FILE
    asked = await host.engine.host_names.turn_on(DOMAIN)
    assert host.kernel.resolution.known == {Way.FILE: asked.authority}
    assert host.made(Ifb) == []
    assert [step.port for step in host.made(Resolver)] == [53]


# resolv.conf


@pytest.mark.parametrize(
    "text",
    [
        "nameserver 10.0.0.1\n",
        "# mine\nsearch lan\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions rotate\n",
        "nameserver 10.0.0.1",
        f"nameserver {OURS}\nnameserver 10.0.0.1\n",
    ],
)
def test_line_comes_first_once_and_goes_without_a_trace(text: str) -> None:
    added = resolv_conf.with_server(text, OURS)
    assert resolv_conf.servers(added)[0] == str(OURS)
    assert resolv_conf.with_server(added, OURS) == added
    assert resolv_conf.without_server(added) == text


def test_lines_that_others_add_meanwhile_stay(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 10.0.0.1\n")
    path.chmod(0o640)
    assert resolv_conf.add(path, OURS)
    assert not resolv_conf.add(path, OURS)
    path.write_text("search lan\n" + path.read_text() + "nameserver 10.0.0.2\n")
    assert resolv_conf.remove(path)
    assert path.read_text() == "search lan\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [it.name for it in tmp_path.iterdir()] == ["resolv.conf"]
    assert not resolv_conf.remove(path)


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("nameserver 10.0.0.1\n", Way.FILE),
        ("# Generated by NetworkManager\nnameserver 10.0.0.1\n", Way.OTHER),
        ("nameserver 127.0.0.1\n", Way.OTHER),
        ("nameserver ::1\n", Way.OTHER),
    ],
)
async def test_way_is_read_from_resolv_conf(tmp_path: Path, text: str, way: Way) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text(text)
    assert await HostResolution(tmp_path).way() is way


async def test_file_that_leads_to_one_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "other.conf").write_text("nameserver 10.0.0.1\n")
    (tmp_path / "etc/resolv.conf").symlink_to(tmp_path / "other.conf")
    assert await HostResolution(tmp_path).way() is Way.OTHER


async def test_host_without_a_resolver_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetplugError, match="names no resolver"):
        await HostResolution(tmp_path).way()
