"""Records as names: what the registry tells the name server, and where it serves Docker's sandboxes."""

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns_packets
import pytest
import pytest_asyncio
from dns_packets import query, read
from dns_upstreams import Upstream, address_of
from engine_host import DEADLINE_S, END, NET, NEXT, OTHER, SANDBOX, Host, tcp, until

from netplug.dns import forward_rules, wire
from netplug.dns.forward_rules import NO_FORWARDING, Rule
from netplug.dns.question import Question
from netplug.dns.server import Listener, Tally, open_sockets
from netplug.docker import resolver
from netplug.docker.resolver import SandboxResolvers
from netplug.drivers.errors import DriverError
from netplug.drivers.steps import Resolver
from netplug.engine.network_updates import NetworkChange
from netplug.engine.records import Description, FrontEnd, NetworkSpec, SubnetSpec
from netplug.insight.doctor import docker as doctor
from netplug.kernel.fake.services import FakeSandboxes
from netplug.names.dns_records import remote_entry, resolving, services
from netplug.names.server import NameServer

WEB = Description("c0ffee" * 10, "web", ("www",), "inner", ("80/tcp",), details=True)


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    host = await Host.boot()
    yield host
    await host.close()


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")
    return path


@pytest_asyncio.fixture
async def server(host: Host, conf: Path) -> AsyncIterator[NameServer]:
    made = NameServer(host.engine, conf=conf)
    made.start()
    yield made
    made.close()


def known(server: NameServer, name: str, kind: int = wire.A, *networks: str) -> list[str]:
    """Return what those see who are in some networks."""
    view = server.view(networks or (NET,), "")
    return dns_packets.ask(view, name, kind).data if view else []


# Names


async def test_endpoint_is_found_by_all_its_names_and_by_its_address(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", "fd00:1::/64")
    built = await host.attach(name="Web", aliases=("www", "shop.front"), ports=(tcp(8080, 443),))
    v4, v6 = (str(address.ip) for address in built.endpoint.addresses)
    for name in ("web", "www", "shop.front"):
        for full in (name, f"{name}.blue", f"{name}.blue.netplug.internal"):
            assert known(server, full) == [v4]
            assert known(server, full, wire.AAAA) == [v6]
    reverse = ".".join(reversed(v4.split("."))) + ".in-addr.arpa"
    assert known(server, reverse, wire.PTR) == ["web.blue.netplug.internal."]
    assert known(server, "_https._tcp.web", wire.SRV) == ["0 0 443 web."]
    assert known(server, "host.netplug.internal") == ["10.1.0.1"]


async def test_names_follow_what_a_runtime_says(host: Host, server: NameServer) -> None:
    await host.docker_network(name="blue")
    await host.docker_endpoint()
    await host.join()
    assert known(server, "web") == []
    await host.engine.endpoints.describe(NET, END, WEB)
    for name in ("web", "www", "inner", "c0ffeec0ffee", "web.blue.netplug.internal"):
        assert known(server, name) == ["10.1.0.2"]
    assert known(server, "_http._tcp.www", wire.SRV) == ["0 0 80 www."]
    # What is not said stays as it was.
    await host.engine.endpoints.describe(NET, END, Description(WEB.container, "shop"))
    assert (known(server, "shop"), known(server, "www"), known(server, "web")) == (["10.1.0.2"], ["10.1.0.2"], [])
    await host.engine.endpoints.leave(NET, END)
    assert known(server, "shop") == []
    await host.join()
    assert known(server, "shop") == ["10.1.0.2"]
    await host.engine.endpoints.delete(NET, END)
    assert known(server, "shop") == []


async def test_of_several_networks_the_internal_ones_come_last(host: Host, server: NameServer) -> None:
    third = "c3" * 32
    subnet = SubnetSpec(ip_network("10.1.0.0/24"))
    await host.engine.networks.create(NetworkSpec(NET, "aaa", subnets=(subnet,), internal=True))
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="bbb")
    await host.cli_network("10.3.0.0/24", "fd00:3::/64", ident=third, name="ccc")
    addresses = {}
    for number, network in enumerate((NET, OTHER, third)):
        built = await host.attach(f"db{number}", network=network, name="db")
        addresses[network] = str(built.endpoint.addresses[0].ip)
    nets = {NET, OTHER, third}
    # Which leads out in both IP versions comes first, as with Docker.
    for best in (third, OTHER, NET):
        assert known(server, "db", wire.A, *nets) == [addresses[best]]
        nets.remove(best)


async def test_name_with_its_domain_is_one_as_the_container_sees_it(host: Host, server: NameServer) -> None:
    await host.docker_network(name="blue")
    await host.docker_endpoint()
    await host.join()
    await host.engine.endpoints.describe(NET, END, replace(WEB, domainname="corp.example"))
    assert known(server, "inner.corp.example") == ["10.1.0.2"]
    back = known(server, "2.0.1.10.in-addr.arpa", wire.PTR)
    assert back == ["inner.corp.example.", "web.blue.netplug.internal."]


async def test_endpoint_nobody_has_named_yet_is_waited_for(host: Host, server: NameServer) -> None:
    await host.docker_network(name="blue")
    await host.docker_endpoint()
    await host.join()
    (index,) = server.zones.networks.values()
    assert index.unnamed == {END}
    await host.engine.endpoints.describe(NET, END, WEB)
    assert not index.unnamed
    await host.engine.endpoints.leave(NET, END)
    await host.engine.endpoints.delete(NET, END)
    assert not index.unnamed


async def test_names_that_cannot_be_are_told_to_the_user(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.attach("c1", name="web", aliases=("host.netplug.internal", "www"))
    (found,) = host.engine.conditions.all()
    assert "'host.netplug.internal' is not served" in found.what
    assert known(server, "host.netplug.internal") == ["10.1.0.1"]
    await host.engine.endpoints.detach("blue", "c1", "eth0")
    assert not host.engine.conditions.all()


@pytest.mark.parametrize("container", ["3a5d5fd21a47" + "0" * 52, "default-3a5d5fd21a47" + "0" * 52])
async def test_short_id_is_of_the_ids_own_digits(host: Host, server: NameServer, container: str) -> None:
    await host.cli_network("10.1.0.0/24")
    one = await host.attach("c1", container=container)
    assert known(server, "3a5d5fd21a47") == [str(one.endpoint.addresses[0].ip)]
    assert known(server, "default-3a5d") == []
    await host.attach("c2", container="other-3a5d5fd21a47" + "1" * 52)
    assert known(server, "3a5d5fd21a47") == []


def test_other_hosts_names_are_told_apart_from_ids() -> None:
    address = (ip_address("10.1.0.9"),)
    found = remote_entry("x", ("web", "www", "3a5d5fd21a47"), address, ())
    assert (found.names, found.short) == (("web", "www"), "3a5d5fd21a47")
    assert remote_entry("x", ("web",), address, ()).short == ""


async def test_names_are_there_in_the_next_life(host: Host, server: NameServer, conf: Path) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.attach(name="web", aliases=("www",))
    before = known(server, "www")
    host.live()
    after = NameServer(host.engine, conf=conf)
    await host.reconciler.start()
    assert known(after, "www") == before != []


async def test_network_without_names_has_none(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", dns="off")
    built = await host.attach(name="web")
    assert server.view((NET,), "") is None
    record = host.networks()[0]
    assert not [step for step in record.plan if isinstance(step, Resolver)]
    assert not resolving(record, built, "netplug.internal").servers


async def test_names_are_served_no_longer_and_again(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    udp, stream = open_sockets("127.0.0.1", 0)
    serving = server._serve(Resolver(OTHER, "np-test", ip_address("10.2.0.1"), 25353), udp, stream)
    await host.attach("c1", name="web")
    built = await host.attach("c1", network=OTHER, ifname="eth1", name="web")
    remote = remote_entry("there", ("db",), (ip_address("10.1.0.77"),), ())
    server.learn(NET, "there", remote)
    listener: Listener = serving.listener
    address = str(built.endpoint.addresses[0].ip)
    for dns, names, code in (("on", ["10.1.0.77"], 0), ("off", [], wire.NXDOMAIN), ("on", ["10.1.0.77"], 0)):
        await host.engine.network_updates.update(NET, NetworkChange({"dns": dns}))
        view = listener.view(address)
        assert view is not None
        assert dns_packets.ask(view, "db.blue.netplug.internal").data == names
        assert dns_packets.ask(view, "web.blue.netplug.internal").rcode == code
        assert dns_packets.ask(view, "web.red.netplug.internal").rcode == 0
    serving.close()


async def test_queries_are_counted_at_the_endpoint_that_asks(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    resolver_of = Resolver(NET, "np-test", ip_address("10.1.0.1"), 25353)
    first = await host.attach("c1", name="web")
    one, two = (server._serve(resolver_of, *open_sockets("127.0.0.1", 0)).listener for _ in range(2))
    second = await host.attach("c2", name="db")
    ask, again = query("web"), query("db")
    web, db = (it.endpoint.addresses[0].ip.packed for it in (first, second))
    one._answers([(ask, web), (again, db), (ask, web), (ask, b"\x0a\x09\x09\x09")])
    two._answers([(ask, web)])
    assert server.tallies == {first.endpoint.id: Tally(3), second.endpoint.id: Tally(1)}
    await host.engine.network_updates.update(NET, NetworkChange({"dns": "off"}))
    await host.engine.network_updates.update(NET, NetworkChange({"dns": "on"}))
    one._answers([(ask, web)])
    assert server.tallies[first.endpoint.id] == Tally(4)
    await host.engine.endpoints.delete(NET, first.endpoint.id)
    one._answers([(ask, web)])
    assert server.tallies == {second.endpoint.id: Tally(1)}
    for listener in (one, two):
        listener.close()


async def test_network_that_is_renamed_or_removed_takes_its_names_along(host: Host, server: NameServer) -> None:
    await host.docker_network()
    await host.docker_endpoint()
    await host.join()
    await host.engine.endpoints.describe(NET, END, WEB)
    await host.engine.networks.name(NET, "green")
    assert known(server, "web.green.netplug.internal") == ["10.1.0.2"]
    await host.engine.networks.delete(NET, by=FrontEnd.DOCKER)
    assert server.view((NET,), "") is None


async def test_ttl_of_the_network_is_that_of_its_records(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", ttl="77")
    await host.attach(name="web")
    view = server.view((NET,), "")
    assert view is not None
    assert dns_packets.ask(view, "web").ttls == (77,)


async def test_unhealthy_are_left_out_where_others_are_well(host: Host, server: NameServer) -> None:
    await host.docker_network()
    for ident, address, container in ((END, "10.1.0.2/24", "c1"), (NEXT, "10.1.0.3/24", "c2")):
        await host.docker_endpoint(ident, address)
        await host.join(ident, f"/run/docker/netns/{container}")
        await host.engine.endpoints.describe(NET, ident, Description(container, container, ("app",), details=True))

    async def set_health(ident: str, container: str, *, healthy: bool) -> None:
        said = Description(container, container, ("app",), healthy=healthy, details=True)
        await host.engine.endpoints.describe(NET, ident, said)

    assert known(server, "app") == ["10.1.0.2", "10.1.0.3"]
    await set_health(END, "c1", healthy=False)
    assert known(server, "app") == ["10.1.0.3"]
    await set_health(NEXT, "c2", healthy=False)
    assert known(server, "app") == ["10.1.0.2", "10.1.0.3"]
    await set_health(END, "c1", healthy=True)
    assert known(server, "app") == ["10.1.0.2"]


def test_ports_without_a_name_are_no_service() -> None:
    found = [(one.name, one.proto, one.port) for one in services([("tcp", 80), ("sctp", 80), ("tcp", 1)])]
    assert ("http", "tcp", 80) in found
    assert all(proto != "sctp" for _, proto, _ in found)


# Who may ask


async def test_who_may_ask_follows_from_the_sandbox(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    udp, stream = open_sockets("127.0.0.1", 0)
    step = Resolver(NET, "np-test", ip_address("10.1.0.1"), 25353)
    serving = server._serve(step, udp, stream)
    listener: Listener = serving.listener
    built = await host.attach("c1", name="web")
    address = str(built.endpoint.addresses[0].ip)
    view = listener.view(address)
    assert view is not None
    assert dns_packets.ask(view, "db.red.netplug.internal").rcode == wire.NXDOMAIN
    assert listener.view("10.1.0.99") is None
    await host.attach("c2", name="db", network=OTHER)
    await host.attach("c1", network=OTHER, ifname="eth1", name="web")
    both = listener.view(address)
    assert both is not None
    assert len(dns_packets.ask(both, "db").data) == 1
    await host.engine.endpoints.detach("red", "c1", "eth1")
    alone = listener.view(address)
    assert alone is not None
    assert dns_packets.ask(alone, "db.red.netplug.internal").rcode == wire.NXDOMAIN
    await host.engine.endpoints.detach("blue", "c1", "eth0")
    assert listener.view(address) is None
    serving.close()
    await host.attach("c1", name="web")
    assert listener.view(address) is None


async def test_upstreams_follow_resolv_conf_and_internal_networks_have_none(
    host: Host, server: NameServer, conf: Path
) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.engine.networks.create(NetworkSpec(OTHER, "shut", internal=True))
    open_, shut = server.view((NET,), NET), server.view((OTHER,), OTHER)
    assert open_ is not None
    assert shut is not None
    asked = wire.to_wire("example.com")
    assert [str(one) for one in server._rules_of(open_).servers(asked)] == ["192.0.2.53"]
    assert server._rules_of(shut) is NO_FORWARDING
    before = open_.upstream_cache
    conf.write_text("nameserver 192.0.2.54\nnameserver 10.1.0.1\n")  # noqa: ASYNC240 - nobody else waits
    server.host_resolvers.read()
    # The gateway is ourselves.
    assert [str(one) for one in server._rules_of(open_).servers(asked)] == ["192.0.2.54"]
    assert open_.upstream_cache is not before
    conf.unlink()  # noqa: ASYNC240
    server.host_resolvers.read()
    assert server._rules_of(open_).servers(asked) == ()


def says(conf: Path, server: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have resolv.conf say a server, in which there are no ports."""
    monkeypatch.setattr(forward_rules, "PORT", server.server.port)
    conf.write_text(f"nameserver {server.server.address}\n")


async def test_question_under_way_is_asked_anew_when_the_resolvers_are_others(
    host: Host, server: NameServer, conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, news = Upstream(lambda _: None, 1), Upstream(address_of, 2)
    says(conf, dead, monkeypatch)
    server.host_resolvers.read()
    await host.cli_network("10.1.0.0/24")
    kept = server.view((NET,), "")
    waiting = asyncio.ensure_future(server.ask((NET,), query("example.com")))
    await until(lambda: bool(dead.seen))
    says(conf, news, monkeypatch)
    server.host_resolvers.read()
    async with asyncio.timeout(DEADLINE_S):
        said = await waiting
    assert said is not None
    assert kept is not None
    assert read(said).data == ["192.0.2.7"]
    assert server.forwarder.pending == 0
    for one in (dead, news):
        await one.close()


@pytest.mark.parametrize("special", [True, False])
async def test_names_below_the_hosts_search_list_are_asked_where_the_host_does(
    host: Host, conf: Path, special: bool
) -> None:
    conf.write_text("nameserver 192.0.2.53\nsearch corp.local example.com localhost\n")  # noqa: ASYNC240
    server = NameServer(host.engine, conf=conf, special=special)
    server.start()
    await host.cli_network("10.1.0.0/24")
    await host.engine.networks.create(NetworkSpec(OTHER, "shut", internal=True))
    built = await host.attach(name="web")
    view = server.view((NET,), NET)
    assert view is not None
    for name, outside in (("srv.corp.local", special), ("other.local", False), ("x.localhost", False), ("a", False)):
        assert isinstance(dns_packets.both(view, query(name)), Question) is outside
    found = resolving(host.networks()[0], built, "netplug.internal", host.engine.search)
    more = ("corp.local", "example.com", "localhost") if special else ()
    assert found.search == ("blue.netplug.internal", *more)
    assert resolving(host.networks()[1], built, "netplug.internal", ("x",)).search in {(), ("shut.netplug.internal",)}


async def test_each_network_remembers_on_its_own(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    views = [server.view(nets, nets[0]) for nets in ((NET,), (OTHER,), (NET, OTHER))]
    caches = {id(it.rules.cache) for it in views if it}
    assert len(caches) == 3
    # Whichever gateway is asked.
    again = server.view((OTHER, NET), OTHER)
    assert again is not None
    assert views[2] is not None
    assert again.rules is views[2].rules


async def test_what_nobody_sees_any_more_is_forgotten(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", dns_upstream="corp.example=192.0.2.8")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    kept = server.view((NET,), NET)
    server.view((NET, OTHER), NET)
    gc.collect()
    assert [len(it.views) for it in server.zones.networks.values()] == [1, 0]
    assert list(server._of_networks.values()) == [kept.rules if kept else None]


async def test_whom_a_network_asks_may_change(host: Host, server: NameServer) -> None:
    await host.cli_network("10.1.0.0/24", dns_upstream="192.0.2.8", ttl="9")
    await host.attach(name="web")
    view = server.view((NET,), NET)
    assert view is not None
    for upstream, asked in (("192.0.2.7,corp.example=192.0.2.9", "192.0.2.7"), ("", "192.0.2.53")):
        await host.engine.network_updates.update(NET, NetworkChange({"dns_upstream": upstream}))
        assert [str(one) for one in view.rules.servers(wire.to_wire("example.com"))] == [asked]
        assert len(known(server, "web.blue.netplug.internal")) == 1
    with pytest.raises(DriverError, match="nobody"):
        await host.engine.network_updates.update(NET, NetworkChange({"dns_upstream": "nobody"}))
    (record,) = host.networks()
    assert (record.options, record.network.options.ttl) == ({"ttl": "9"}, 9)


async def test_rules_of_the_settings_come_before_resolv_conf(host: Host, conf: Path) -> None:
    server = NameServer(host.engine, "lan.example", [Rule.parse("corp.example=192.0.2.1")], conf)
    server.start()
    await host.cli_network("10.1.0.0/24")
    await host.attach(name="web")
    assert len(known(server, "web.blue.lan.example")) == 1
    view = server.view((NET,), NET)
    assert view is not None
    rules = server._rules_of(view)
    assert [str(one) for one in rules.servers(wire.to_wire("a.corp.example"))] == ["192.0.2.1"]
    assert [str(one) for one in rules.servers(wire.to_wire("example.com"))] == ["192.0.2.53"]


async def test_a_network_may_say_whom_to_ask(host: Host, conf: Path) -> None:
    third = "c3" * 32
    settings = [Rule.parse("corp.example=192.0.2.1"), Rule.parse("lab.example=192.0.2.2")]
    server = NameServer(host.engine, upstreams=settings, conf=conf)
    server.start()
    await host.cli_network("10.1.0.0/24", dns_upstream="192.0.2.7,corp.example=192.0.2.8,10.1.0.1")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red", dns_upstream="red.example=192.0.2.9#5353")
    await host.engine.networks.create(NetworkSpec(third, "shut", {"dns_upstream": "192.0.2.7"}, internal=True))

    def asked_for(name: str, *networks: str) -> list[str]:
        view = server.view(networks, networks[0])
        assert view is not None
        return [str(one) for one in view.rules.servers(wire.to_wire(name))]

    names = "example.com", "a.corp.example", "a.lab.example", "red.example"
    # A gateway is ourselves.
    assert [asked_for(name, NET) for name in names] == [["192.0.2.7"], ["192.0.2.8"], ["192.0.2.2"], ["192.0.2.7"]]
    assert [asked_for(name, OTHER) for name in names] == [
        *(["192.0.2.53"], ["192.0.2.1"], ["192.0.2.2"], ["192.0.2.9#5353"])
    ]
    assert [asked_for(name, OTHER, NET) for name in names] == [
        *(["192.0.2.7"], ["192.0.2.8"], ["192.0.2.2"], ["192.0.2.9#5353"])
    ]
    assert asked_for("example.com", third) == []
    views = server.view((NET,), NET), server.view((OTHER,), OTHER)
    assert None not in views
    assert views[0].rules.cache is not views[1].rules.cache  # type: ignore[union-attr]
    conf.write_text("nameserver 192.0.2.54\n")  # noqa: ASYNC240 - nobody else waits
    server.host_resolvers.read()
    assert (asked_for("example.com", NET), asked_for("example.com", OTHER)) == (["192.0.2.7"], ["192.0.2.54"])


# In Docker's sandboxes


@pytest_asyncio.fixture
async def docker(host: Host, server: NameServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SandboxResolvers]:
    monkeypatch.setattr(resolver, "LONGEST_RETRY_S", 0.01)
    made = SandboxResolvers(host.engine, server)
    task = asyncio.ensure_future(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await made.close()


async def asked(host: Host, name: str, kind: int = wire.A, sandbox: str = SANDBOX) -> Any:
    """Ask as a container does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, host.kernel.intercepted[sandbox].at)
        sock.send(query(name, kind))
        async with asyncio.timeout(DEADLINE_S):
            return read(await asyncio.get_running_loop().sock_recv(sock, 4096))


async def joined(host: Host, **options: str) -> None:
    await host.docker_network(**options)
    await host.docker_endpoint()
    await host.join()


async def test_sandbox_is_served_from_join_to_leave(host: Host, docker: SandboxResolvers) -> None:
    await joined(host, name="blue")
    await until(lambda: host.kernel.intercepted)
    await host.engine.endpoints.describe(NET, END, WEB)
    assert (await asked(host, "web")).data == ["10.1.0.2"]
    assert (await asked(host, "gone.blue.netplug.internal")).rcode == wire.NXDOMAIN
    # An address of ours that nobody has is not for Docker to ask the world about.
    assert (await asked(host, "9.0.1.10.in-addr.arpa", wire.PTR)).rcode == wire.NXDOMAIN
    await host.engine.endpoints.leave(NET, END)
    await until(lambda: not host.kernel.intercepted)


async def test_queries_of_a_sandbox_are_counted_at_its_endpoint(host: Host, docker: SandboxResolvers) -> None:
    tallies = docker._server.tallies
    await joined(host, name="blue")
    await until(lambda: host.kernel.intercepted)
    for _ in range(3):
        await asked(host, "gone.blue.netplug.internal")
    assert tallies == {END: Tally(3)}
    await host.docker_network(OTHER, "10.2.0.0/24", name="aaa")
    await host.docker_endpoint(NEXT, "10.2.0.2/24", network=OTHER)
    await host.engine.endpoints.join(OTHER, NEXT, SANDBOX)
    await asked(host, "gone.blue.netplug.internal")
    assert sum(tally.queries for tally in tallies.values()) == 4
    before = tallies[NEXT].queries
    await host.engine.endpoints.leave(NET, END)
    await asked(host, "gone.aaa.netplug.internal")
    assert tallies == {NEXT: Tally(before + 1)}


async def test_sandboxes_that_are_not_served_are_told(host: Host, docker: SandboxResolvers) -> None:
    host.kernel.vanish(SANDBOX)
    await joined(host, name="blue")
    assert [it.endpoint.id for it in docker.unserved()] == [END]
    subject: Any = SimpleNamespace(resolvers=docker)
    assert [it.verdict for it in await doctor.resolvers(subject)] == ["warning"]
    host.kernel.appear(SANDBOX)
    docker.container_started()
    await until(lambda: host.kernel.intercepted)
    assert docker.unserved() == []
    assert await doctor.resolvers(subject) == []


async def test_names_of_others_are_asked_of_docker_each_time_anew(
    host: Host, docker: SandboxResolvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Upstream(address_of, 1)
    at = theirs.server
    monkeypatch.setattr(resolver, "Server", lambda _: at)
    await joined(host)
    await until(lambda: host.kernel.intercepted)
    for name in ("example.com", "theirs", "host.local", "1.0.17.172.in-addr.arpa", "example.com"):
        await asked(host, name)
    assert len(theirs.seen) == 5
    await theirs.close()


async def test_sandbox_follows_the_hosts_resolvers_once_they_are_others(
    host: Host, docker: SandboxResolvers, server: NameServer, conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockers, news = Upstream(lambda _: None, 1), Upstream(address_of, 2)
    at = dockers.server
    monkeypatch.setattr(resolver, "Server", lambda _: at)
    await joined(host, name="blue")
    await until(lambda: host.kernel.intercepted)
    await host.engine.endpoints.describe(NET, END, replace(WEB, resolves=time.time()))
    # What waits for somebody who is gone is asked of whoever is there now.
    waiting = asyncio.ensure_future(asked(host, "example.com"))
    await until(lambda: bool(dockers.seen))
    says(conf, news, monkeypatch)
    server.host_resolvers.read()
    assert (await waiting).data == ["192.0.2.7"]
    before = len(dockers.seen)
    assert (await asked(host, "www.example.com")).data == ["192.0.2.7"]
    # Docker may know more of these than we, and the host's resolvers shall not hear of them.
    dockers.script = address_of
    for name in ("theirs", "www"):
        await asked(host, name)
    assert len(dockers.seen) == before + 1
    assert (await asked(host, "gone.blue")).rcode == wire.NXDOMAIN
    # Who has servers of its own keeps them.
    await host.engine.endpoints.describe(NET, END, replace(WEB, resolves=0.0))
    await asked(host, "other.example.com")
    assert len(dockers.seen) == before + 2
    assert {name.lower() for name in (wire.to_text(it[12:-4]) for it in news.seen)} == {
        "example.com",
        "www.example.com",
    }
    for one in (dockers, news):
        await one.close()


async def test_plain_upstream_of_a_network_counts_in_sandboxes_too(
    host: Host, docker: SandboxResolvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    dockers, other = Upstream(address_of, 1), Upstream(address_of, 2)
    at = dockers.server
    monkeypatch.setattr(resolver, "Server", lambda _: at)
    await joined(host, dns_upstream=str(other.server))
    await until(lambda: host.kernel.intercepted)
    await host.engine.endpoints.describe(NET, END, replace(WEB, resolves=time.time() + 60))
    assert (await asked(host, "example.com")).data == ["192.0.2.7"]
    assert (len(dockers.seen), len(other.seen)) == (0, 1)
    for one in (dockers, other):
        await one.close()


async def test_sandbox_that_is_not_there_yet_is_served_when_it_is(host: Host, docker: SandboxResolvers) -> None:
    host.kernel.vanish(SANDBOX)
    await host.docker_network()
    await host.docker_endpoint()
    await host.join()
    await until(lambda: docker._missing)
    assert not host.kernel.intercepted
    host.kernel._world.gone.discard(SANDBOX)
    docker.container_started()
    await until(lambda: host.kernel.intercepted)
    assert not docker._missing


async def test_next_sandbox_at_the_same_path_is_served_too(host: Host, docker: SandboxResolvers) -> None:
    await joined(host)
    await until(lambda: host.kernel.intercepted)
    first = host.kernel.intercepted[SANDBOX]
    await docker.settle(SANDBOX)
    assert host.kernel.intercepted[SANDBOX] is first
    host.kernel.vanish(SANDBOX)
    host.kernel.appear(SANDBOX)
    await docker.settle(SANDBOX)
    assert host.kernel.intercepted[SANDBOX] is not first
    await host.engine.endpoints.describe(NET, END, WEB)
    assert (await asked(host, "web")).data == ["10.1.0.2"]


async def test_dns_off_and_other_runtimes_leave_sandboxes_alone(host: Host, docker: SandboxResolvers) -> None:
    await joined(host, dns="off")
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("c1", network=OTHER, name="web")
    await docker.settle(SANDBOX)
    assert not host.kernel.intercepted


async def test_sandbox_is_left_to_docker_and_served_again(host: Host, docker: SandboxResolvers) -> None:
    await joined(host)
    await until(lambda: host.kernel.intercepted)
    await host.engine.network_updates.update(NET, NetworkChange({"dns": "off"}))
    await until(lambda: not host.kernel.intercepted)
    await host.engine.network_updates.update(NET, NetworkChange({"dns": "on"}))
    await until(lambda: host.kernel.intercepted)
    await host.engine.endpoints.describe(NET, END, WEB)
    assert (await asked(host, "web")).data == ["10.1.0.2"]


async def test_networks_that_come_and_go_change_what_is_seen_at_once(host: Host, docker: SandboxResolvers) -> None:
    await joined(host)
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("c1", network=OTHER, name="db")
    await until(lambda: host.kernel.intercepted)
    full = "db.red.netplug.internal"
    assert (await asked(host, full)).rcode == wire.NXDOMAIN
    await host.docker_endpoint(NEXT, "10.2.0.9/24", network=OTHER)
    await host.engine.endpoints.join(OTHER, NEXT, SANDBOX)
    assert len((await asked(host, full)).data) == 1
    await host.engine.endpoints.leave(OTHER, NEXT)
    assert (await asked(host, full)).rcode == wire.NXDOMAIN


async def slowly_intercepted(host: Host, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Join an endpoint. Return what is set once its sandbox is about to be intercepted, and what lets that go on."""
    begun, go_on, intercept = asyncio.Event(), asyncio.Event(), FakeSandboxes.intercept

    async def slow(self: FakeSandboxes, *args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await intercept(self, *args)

    monkeypatch.setattr(FakeSandboxes, "intercept", slow)
    await joined(host, name="blue")
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    return begun, go_on


async def test_sandbox_that_docker_takes_back_while_it_is_intercepted_is_left(
    host: Host, docker: SandboxResolvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, go_on = await slowly_intercepted(host, monkeypatch)
    await host.engine.endpoints.leave(NET, END)
    go_on.set()
    async with docker._lock:
        assert not host.kernel.intercepted
    assert not docker._open


async def test_network_that_comes_while_a_sandbox_is_intercepted_is_seen(
    host: Host, docker: SandboxResolvers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.cli_network("10.2.0.0/24", ident=OTHER, name="red")
    await host.attach("c1", network=OTHER, name="db")
    _, go_on = await slowly_intercepted(host, monkeypatch)
    await host.docker_endpoint(NEXT, "10.2.0.9/24", network=OTHER)
    await host.engine.endpoints.join(OTHER, NEXT, SANDBOX)
    go_on.set()
    await until(lambda: host.kernel.intercepted)
    assert len((await asked(host, "db.red.netplug.internal")).data) == 1


async def test_clean_stop_leaves_docker_alone(host: Host, docker: SandboxResolvers) -> None:
    await joined(host)
    await until(lambda: host.kernel.intercepted)
    await docker.close()
    assert not host.kernel.intercepted
