"""Network namespaces without a runtime (`netplug attach`), on networks of Docker's and of our own command.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from harness import (
    CommandError,
    Dockerd,
    Host,
    Namespace,
    Netplug,
    SeenServer,
    Wire,
    assert_same,
    attached,
    cli_network,
    container,
    docker_network,
    namespace,
    snapshot,
    tcp_ask,
    udp_ask,
    wait_until,
)

PARALLEL = 12
UNREACHED = r"timed out|refused|unreachable"

pytestmark = pytest.mark.usefixtures("netplug")


def refusal(netplug: Netplug, *args: str) -> tuple[int, str]:
    """Return exit code and the one line on stderr of a command that fails."""
    with pytest.raises(CommandError) as caught:
        netplug.cli(*args)
    assert "Traceback" not in caught.value.stderr
    (line,) = caught.value.stderr.splitlines()
    return caught.value.code, line


def endpoints(netplug: Netplug, network: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = netplug.json("ps", "--network", network)
    return found


def leased(netplug: Netplug) -> set[str]:
    """Return all leased addresses."""
    return {lease["address"] for pool in netplug.json("ipam", "ls") for lease in pool["leases"]}


def ip_of(result: dict[str, Any]) -> str:
    (address,) = result["addresses"]
    return str(address).partition("/")[0]


def test_namespace_made_anew_at_the_same_path(host: Host, netplug: Netplug) -> None:
    """What the former one had is gone, with or without a daemon meanwhile; nothing of it comes into the new one."""
    with cli_network(netplug) as net, namespace(host) as lab:
        for restart in (False, True):
            netplug.json("attach", net, "--netns", lab.name)
            if restart:
                netplug.stop()
            host.output("ip", "netns", "del", lab.name)
            host.output("ip", "netns", "add", lab.name)
            if restart:
                netplug.start()
            wait_until(lambda: endpoints(netplug, net) == [])
            assert [link["ifname"] for link in json.loads(lab.exec("ip", "-j", "link"))] == ["lo"]
            assert not netplug.drift()
        result = netplug.json("attach", net, "--netns", lab.name)
        assert lab.pings(result["gateways"][0])
        netplug.cli("detach", net, "--netns", lab.name)


# Together with containers


@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_bare_namespace_and_containers_share_a_network_of_dockers(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire, ipam: tuple[str, ...]
) -> None:
    """Docker's IPAM does not know of our leases, so that an address chosen by us must not come in its way."""
    with (
        docker_network(dockerd, *ipam) as net,
        container(dockerd, "--network", net) as before,
        attached(netplug, net, "--name", "lab", "--publish", "8081:80") as (lab, result),
        container(dockerd, "--network", net) as after,
    ):
        address = ip_of(result)
        assert len({address, before.ip(), after.ip()}) == 3
        for other in (before, after):
            assert lab.pings(other.ip())
            assert other.pings(address)
        gateway = dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]
        assert lab.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", gateway]
        with SeenServer(lab, "tcp", 80), SeenServer(client, "tcp", 7000):
            assert tcp_ask(client, wire.left, 8081) == wire.right
            assert tcp_ask(lab, wire.right, 7000) == wire.left


def test_result_and_lists_tell_all_of_an_attachment(netplug: Netplug) -> None:
    options = ("--name", "lab", "--alias", "desk", "--publish", "127.0.0.1:5353:53/udp")
    with (
        cli_network(netplug, "--subnet", "10.90.1.0/24") as net,
        attached(netplug, net, *options) as (lab, result),
    ):
        assert result["network"] == net
        assert result["sandbox"] == f"/run/netns/{lab.name}"
        assert result["interface"] == "eth0"
        assert result["addresses"] == ["10.90.1.2/24"]
        assert result["gateways"] == ["10.90.1.1"]
        assert result["ports"] == ["127.0.0.1:5353->53/udp"]
        (link,) = json.loads(lab.exec("ip", "-j", "addr", "show", "eth0"))
        assert (link["address"], link["mtu"]) == (result["mac"], result["mtu"])
        (shown,) = endpoints(netplug, net)
        assert shown["id"] == result["endpoint"]
        assert (shown["name"], shown["aliases"], shown["front_end"]) == ("lab", ["desk"], "cli")
        for key in ("network", "sandbox", "interface", "addresses", "mac", "ports"):
            assert shown[key] == result[key], key
        (pool,) = (it for it in netplug.json("ipam", "ls") if it["networks"] == [net])
        assert pool["subnet"] == "10.90.1.0/24"
        owners = {lease["address"]: (lease["owner_kind"], lease["owner_name"]) for lease in pool["leases"]}
        assert owners == {"10.90.1.1": ("gateway", net), "10.90.1.2": ("endpoint", "lab")}
        detail = netplug.json("network", "inspect", net)
        assert detail["front_end"] == "cli"
        assert detail["endpoints"] == [shown]
        assert not netplug.drift()


def test_namespace_of_a_container_without_network_is_attached_by_its_path(dockerd: Dockerd, netplug: Netplug) -> None:
    """`docker run --network none` leaves room for us; that the container dies is told by nobody."""
    with (
        cli_network(netplug) as net,
        attached(netplug, net) as (lab, _),
    ):
        with container(dockerd, "--network", "none") as one:
            path = f"/proc/{one.inspect()['State']['Pid']}/ns/net"
            result = json.loads(netplug.cli("attach", net, "--netns", path))
            assert lab.pings(ip_of(result))
            assert "default" in one.exec("ip", "route")
        wait_until(lambda: len(endpoints(netplug, net)) == 1, what="the dead container's endpoint to go")
        assert ip_of(result) not in leased(netplug)


# Kinds of networks


def test_network_without_subnet_gets_one_and_leads_out(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug) as net,
        attached(netplug, net) as (one, first),
        attached(netplug, net) as (two, second),
        SeenServer(client, "tcp", 7000),
    ):
        assert ip_address(ip_of(first)) in ip_network("10.208.0.0/12")
        assert one.pings(ip_of(second))
        assert two.pings(ip_of(first))
        assert one.pings(first["gateways"][0])
        assert tcp_ask(one, wire.right, 7000) == wire.left


def test_given_subnet_range_and_gateway_are_used(netplug: Netplug) -> None:
    given = ("--subnet", "10.90.2.0/24", "--gateway", "10.90.2.254", "--ip-range", "10.90.2.128/29")
    with (
        cli_network(netplug, *given) as net,
        attached(netplug, net) as (one, first),
        attached(netplug, net) as (_, second),
    ):
        assert {ip_address(ip_of(it)) for it in (first, second)} <= set(ip_network("10.90.2.128/29"))
        assert one.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", "10.90.2.254"]
        assert one.pings("10.90.2.254")
        assert one.pings(ip_of(second))


def test_mtu_is_that_of_all_links(netplug: Netplug) -> None:
    with (
        cli_network(netplug, "-o", "mtu=1400") as net,
        attached(netplug, net) as (one, result),
    ):
        assert result["mtu"] == 1400
        (link,) = json.loads(one.exec("ip", "-j", "link", "show", "eth0"))
        assert link["mtu"] == 1400
        ours = [it for it in json.loads(netplug.host.output("ip", "-j", "link")) if it["ifname"].startswith("np")]
        assert [it["mtu"] for it in ours] == [1400] * len(ours)
        assert len(ours) == 2


def test_without_icc_namespaces_reach_the_world_but_not_each_other(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug, "-o", "icc=false") as net,
        attached(netplug, net, "--publish", "8081:80") as (one, first),
        attached(netplug, net) as (two, _),
        SeenServer(one, "tcp", 80),
        SeenServer(client, "tcp", 7000),
    ):
        assert not two.pings(ip_of(first))
        assert tcp_ask(one, wire.right, 7000) == wire.left
        assert tcp_ask(client, wire.left, 8081) == wire.right


def test_internal_network_has_no_way_out_nor_in(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug, "--internal") as net,
        attached(netplug, net) as (one, first),
        attached(netplug, net) as (two, _),
        namespace(netplug.host) as third,
        SeenServer(one, "tcp", 80),
    ):
        assert two.pings(ip_of(first))
        assert not one.exec("ip", "route", "show", "default")
        assert first["gateways"] == first["ports"] == []
        assert not one.pings(wire.right)
        with pytest.raises(CommandError, match="is internal: nothing can be published there"):
            third.attach(netplug, net, "--publish", "8081:80")
        with pytest.raises(OSError, match=UNREACHED):
            tcp_ask(client, wire.left, 8081)


def test_second_network_is_the_way_out_when_the_first_is_gone(netplug: Netplug, wire: Wire) -> None:
    with (
        cli_network(netplug, "--subnet", "10.90.3.0/24") as blue,
        cli_network(netplug, "--subnet", "10.90.4.0/24") as red,
        namespace(netplug.host) as lab,
    ):
        lab.attach(netplug, blue)
        lab.attach(netplug, red, "--ifname", "eth1")
        assert lab.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", "10.90.3.1"]
        lab.detach(netplug, blue)
        assert lab.exec("ip", "route", "show", "default").split()[:3] == ["default", "via", "10.90.4.1"]
        assert lab.pings(wire.right)
        assert not netplug.drift()
        lab.detach(netplug, red, "--ifname", "eth1")


def test_networks_do_not_reach_each_other(netplug: Netplug) -> None:
    with (
        cli_network(netplug) as blue,
        cli_network(netplug) as red,
        attached(netplug, blue) as (one, first),
        attached(netplug, red) as (two, second),
    ):
        assert not one.pings(ip_of(second))
        assert not two.pings(ip_of(first))


@contextmanager
def foreign_bridge(host: Host) -> Iterator[Namespace]:
    """A bridge `br0` of the user's, with an address and a neighbour behind a port of its own."""
    with namespace(host) as neighbour:
        lines = (
            "link add br0 type bridge",
            f"link add p0 type veth peer name eth0 netns {neighbour.name}",
            "link set p0 master br0 up",
            "link set br0 up",
            "addr add 198.51.100.1/24 dev br0",
            f"-n {neighbour.name} addr add 198.51.100.2/24 dev eth0",
            f"-n {neighbour.name} link set eth0 up",
        )
        host.run(["sh", "-ec", "\n".join(f"ip {line}" for line in lines)])
        try:
            yield neighbour
        finally:
            host.run(["ip", "link", "del", "p0"])
            host.run(["ip", "link", "del", "br0"])


def test_existing_bridge_is_used_and_left_as_it_was(netplug: Netplug, client: Host, wire: Wire) -> None:
    host = netplug.host
    with foreign_bridge(host) as neighbour:
        before = snapshot(host, netplug)
        localnet = host.output("sysctl", "-n", "net.ipv4.conf.br0.route_localnet")
        with (
            cli_network(netplug, "-o", "bridge=br0", "--subnet", "10.90.3.0/24") as net,
            attached(netplug, net, "--publish", "8081:80") as (one, first),
            attached(netplug, net) as (two, _),
            SeenServer(one, "tcp", 80),
            SeenServer(client, "tcp", 7000),
        ):
            assert two.pings(ip_of(first))
            assert tcp_ask(two, wire.right, 7000) == wire.left
            assert tcp_ask(client, wire.left, 8081) == wire.right
            assert tcp_ask(host, "127.0.0.1", 8081)
            assert neighbour.pings("198.51.100.1"), "what was there before goes on"
            shown = host.output("ip", "addr", "show", "br0")
            assert "198.51.100.1/24" in shown
            assert "10.90.3.1/24" in shown
            netplug.restart()
            assert two.pings(ip_of(first))
            assert not netplug.drift()
        assert_same(before, lambda: snapshot(host, netplug))
        assert host.output("sysctl", "-n", "net.ipv4.conf.br0.route_localnet") == localnet
        assert neighbour.pings("198.51.100.1")


def test_others_on_an_existing_bridge_are_routed_as_before(netplug: Netplug, client: Host, wire: Wire) -> None:
    host = netplug.host
    with foreign_bridge(host) as neighbour:
        neighbour.exec("ip", "route", "add", "default", "via", "198.51.100.1")
        policy = host.output("iptables", "-S", "FORWARD").splitlines()[0].split()[-1]
        host.output("iptables", "-P", "FORWARD", "ACCEPT")
        with cli_network(netplug, "-o", "bridge=br0", "--subnet", "10.90.3.0/24", "--internal") as net:
            with attached(netplug, net) as (one, _), SeenServer(neighbour, "tcp", 80):
                assert neighbour.pings(wire.right)
                assert tcp_ask(client, neighbour_address(neighbour), 80) == wire.right
                assert not one.pings(wire.right)
            # Nor is anything accepted that the host's own rules refuse.
            host.output("iptables", "-A", "FORWARD", "-s", "198.51.100.0/24", "-j", "DROP")
            assert not neighbour.pings(wire.right)
            host.output("iptables", "-D", "FORWARD", "-s", "198.51.100.0/24", "-j", "DROP")
        host.output("iptables", "-P", "FORWARD", policy)


def neighbour_address(place: Namespace) -> str:
    (found,) = json.loads(place.exec("ip", "-j", "-4", "addr", "show", "scope", "global"))
    return str(found["addr_info"][0]["local"])


# Attaching and detaching


def test_given_address_mac_and_name_are_used(netplug: Netplug) -> None:
    with (
        cli_network(netplug, "--subnet", "10.90.4.0/24") as net,
        attached(netplug, net) as (one, _),
        namespace(netplug.host) as two,
    ):
        mac = "02:00:00:00:00:77"
        result = two.attach(netplug, net, "--ip", "10.90.4.77", "--mac", mac, "--ifname", "lan7")
        assert (result["addresses"], result["mac"], result["interface"]) == (["10.90.4.77/24"], mac, "lan7")
        shown = two.exec("ip", "addr", "show", "lan7")
        assert "inet 10.90.4.77/24" in shown
        assert mac in shown
        assert one.pings("10.90.4.77")
        two.detach(netplug, net, "--ifname", "lan7")
        wait_until(lambda: "lan7" not in two.exec("ip", "link"), what="the link to go")


def test_second_attachment_of_an_interface_is_refused(netplug: Netplug) -> None:
    with (
        cli_network(netplug) as blue,
        cli_network(netplug) as red,
        attached(netplug, blue) as (one, result),
    ):
        for net in (blue, red):
            code, said = refusal(netplug, "attach", net, "--netns", one.name)
            assert code == 1
            assert one.name in said
            assert blue in said
        assert one.pings(result["gateways"][0])


def test_namespace_in_two_networks_keeps_its_first_way_out(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug) as blue,
        cli_network(netplug) as red,
        attached(netplug, blue) as (one, first),
        attached(netplug, red) as (_, neighbour),
        SeenServer(client, "tcp", 7000),
    ):
        one.attach(netplug, red, "--ifname", "eth1")
        assert one.pings(ip_of(neighbour))
        assert f"via {first['gateways'][0]}" in one.exec("ip", "route", "show", "default")
        assert tcp_ask(one, wire.right, 7000) == wire.left
        one.detach(netplug, red, "--ifname", "eth1")
        assert not one.pings(ip_of(neighbour))
        assert tcp_ask(one, wire.right, 7000) == wire.left


def test_taken_address_and_taken_port_are_refused_by_name(netplug: Netplug) -> None:
    with (
        cli_network(netplug, "--subnet", "10.90.5.0/24") as net,
        attached(netplug, net, "--ip", "10.90.5.9"),
        namespace(netplug.host) as two,
    ):
        code, said = refusal(netplug, "attach", net, "--netns", two.name, "--ip", "10.90.5.9")
        assert (code, "10.90.5.9" in said) == (1, True), said
        with SeenServer(netplug.host, "tcp", 8081):
            code, said = refusal(netplug, "attach", net, "--netns", two.name, "--publish", "8081:80")
        assert (code, "8081" in said) == (1, True), said
        assert len(endpoints(netplug, net)) == 1
        wait_until(lambda: "eth0" not in two.exec("ip", "link"), what="the refused link to go")


def test_namespaces_are_attached_and_detached_in_parallel(netplug: Netplug) -> None:
    with cli_network(netplug) as net, ExitStack() as stack, ThreadPoolExecutor(PARALLEL) as pool:
        bare = [stack.enter_context(namespace(netplug.host)) for _ in range(PARALLEL)]
        results = list(pool.map(lambda it: it.attach(netplug, net), bare))
        assert len({ip_of(it) for it in results}) == PARALLEL
        assert all(pool.map(lambda it: bare[0].pings(ip_of(it)), results[1:]))
        list(pool.map(lambda it: it.detach(netplug, net), bare))


# Without a goodbye


def test_deleted_namespace_is_detached_all_the_same(netplug: Netplug) -> None:
    with cli_network(netplug) as net, namespace(netplug.host) as one:
        address = ip_of(one.attach(netplug, net))
        one.remove()
        # That the daemon noticed first is an answer as well.
        try:
            one.detach(netplug, net)
        except CommandError:
            wait_until(lambda: not endpoints(netplug, net), what="the endpoint to go")
        assert not endpoints(netplug, net)
        assert address not in leased(netplug)


@pytest.mark.parametrize("by", ["itself", "repair", "restart"])
def test_namespace_deleted_without_detach_gives_its_lease_and_port_back_by(netplug: Netplug, by: str) -> None:
    with cli_network(netplug) as net, namespace(netplug.host) as one:
        address = ip_of(one.attach(netplug, net, "--publish", "8081:80"))
        if by == "restart":
            netplug.kill()
        one.remove()
        if by == "restart":
            netplug.start()
        if by == "repair":
            netplug.cli("repair")
        wait_until(lambda: not endpoints(netplug, net), what="the endpoint to go")
        assert address not in leased(netplug)
        with SeenServer(netplug.host, "tcp", 8081):
            pass
        assert not netplug.drift()


@pytest.mark.parametrize("end", [Netplug.stop, Netplug.kill], ids=["stopped", "killed"])
def test_traffic_goes_on_while_the_daemon_restarts(netplug: Netplug, client: Host, wire: Wire, end: Any) -> None:
    with (
        cli_network(netplug) as net,
        attached(netplug, net, "--publish", "8081:80", "--publish", "8081:80/udp") as (one, _),
        attached(netplug, net) as (two, second),
        SeenServer(one, "tcp", 80),
        SeenServer(one, "udp", 80),
    ):
        end(netplug)
        assert one.pings(ip_of(second))
        assert tcp_ask(client, wire.left, 8081) == wire.right
        netplug.start()
        assert two.pings(second["gateways"][0])
        assert tcp_ask(client, wire.left, 8081) == wire.right
        assert udp_ask(client, wire.left, 8081) == wire.right
        assert not netplug.drift()


def test_link_that_somebody_deleted_comes_back_into_a_bare_namespace(netplug: Netplug) -> None:
    with (
        cli_network(netplug) as net,
        attached(netplug, net) as (one, first),
    ):
        one.exec("ip", "link", "del", "eth0")
        wait_until(lambda: one.pings(first["gateways"][0]), what="the link to come back")
        assert wait_until(lambda: not netplug.drift())


# Who may remove what, and exit codes


def test_network_is_not_removed_while_something_is_attached(netplug: Netplug) -> None:
    with (
        cli_network(netplug) as net,
        attached(netplug, net) as (one, result),
    ):
        code, said = refusal(netplug, "network", "rm", net)
        assert code == 1
        assert net in said
        assert one.pings(result["gateways"][0])


@pytest.mark.parametrize("ipam", [(), ("--ipam-driver", "pynet")], ids=["docker's ipam", "pynet's ipam"])
def test_network_that_docker_removes_stays_for_who_is_attached(
    dockerd: Dockerd, netplug: Netplug, ipam: tuple[str, ...]
) -> None:
    create = ("network", "create", "-d", "pynet", *ipam, "--subnet", "10.90.6.0/24")
    dockerd.docker(*create, "left")
    with namespace(netplug.host) as lab, namespace(netplug.host) as late:
        wait_until(lambda: "left" in {row["name"] for row in netplug.json("network", "ls")}, what="its name")
        lab.attach(netplug, "left")
        (before,) = endpoints(netplug, "left")
        with container(dockerd, "--network", "left") as one:
            assert lab.pings(one.ip())
        dockerd.docker("network", "rm", "left")
        assert "left" not in dockerd.docker("network", "ls")
        for restart in (False, True):
            if restart and ipam:  # of ours Docker tells us then what it still has
                dockerd.restart()
            if restart:
                netplug.restart()
            (row,) = (row for row in netplug.json("network", "ls") if row["name"] == "left")
            assert (row["front_end"], row["endpoint_count"]) == ("cli", 1)
            assert endpoints(netplug, "left") == [before]
            assert lab.pings("10.90.6.1")
            assert not netplug.drift()
        late.attach(netplug, "left")
        assert lab.pings(late.addresses[0])
        # Its subnet and its name are its own.
        with pytest.raises(
            CommandError, match=r"of network 'left' \(choose another --subnet, or netplug network rm left"
        ):
            dockerd.docker(*create, "left")
        dockerd.docker("network", "create", "-d", "pynet", *ipam, "left")
        assert lab.pings(late.addresses[0])
        assert {it["sandbox"] for it in endpoints(netplug, "left")} == {f"/run/netns/{it.name}" for it in (lab, late)}
        dockerd.docker("network", "rm", "left")
        late.detach(netplug, "left")
        code, said = refusal(netplug, "network", "rm", "left")
        assert (code, said) == (1, "netplug: network 'left' has an endpoint (detach first)")
        lab.detach(netplug, "left")
        netplug.cli("network", "rm", "left")
    dockerd.docker(*create, "left")
    dockerd.docker("network", "rm", "left")


def test_network_is_removed_only_by_who_made_it(dockerd: Dockerd, netplug: Netplug) -> None:
    with docker_network(dockerd) as dockers, cli_network(netplug) as ours:
        ident = dockerd.inspect(dockers)["Id"]
        code, said = refusal(netplug, "network", "rm", ident)
        assert (code, "docker network rm" in said) == (1, True), said
        with pytest.raises(CommandError, match=r"(?i)not found|no such network"):
            dockerd.docker("network", "rm", ours)
        assert {row["id"]: row["front_end"] for row in netplug.json("network", "ls")}[ident] == "docker"
        assert ours in {row["name"] for row in netplug.json("network", "ls")}


def test_exit_codes_say_what_kind_of_no_it_is(netplug: Netplug) -> None:
    with cli_network(netplug) as net, namespace(netplug.host) as one:
        assert netplug.cli("diff").startswith("no differences: ")
        assert refusal(netplug, "attach", "nowhere", "--netns", one.name)[0] == 1
        assert refusal(netplug, "attach", net, "--netns", "nobody")[0] == 1
        assert refusal(netplug, "attach", net, "--netns", "/proc/1/ns/net")[0] == 1, "the host itself"
        assert refusal(netplug, "detach", net, "--netns", one.name)[0] == 1
        assert refusal(netplug, "network", "rm", "nowhere")[0] == 1
        assert refusal(netplug, "attach", net)[0] == 2
        assert refusal(netplug, "attach", net, "--netns", one.name, "--ip", "10.1.1")[0] == 2
        code, said = refusal(netplug, "ps", "--run-dir", "/run/elsewhere")
        assert (code, "/run/elsewhere" in said) == (3, True), said
