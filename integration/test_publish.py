"""Ports published while containers run (`netplug publish`), of every front end.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`. podman's are in
`test_cni_podman.py`, netavark's in `test_netavark.py`.
"""

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    RANGES4,
    CommandError,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    assert_same,
    attached,
    cli_network,
    cni_attached,
    cni_list,
    container,
    docker_network,
    own_ipam,
    snapshot,
    tcp_ask,
    udp_ask,
    wait_until,
)
from harness.traffic import Talk

UNREACHED = r"timed out|refused|unreachable"

pytestmark = pytest.mark.usefixtures("netplug")


def ports(netplug: Netplug) -> list[str]:
    """Return the published ports of all endpoints, as `ps` shows those of IPv4."""
    rows = netplug.json("ps")
    return sorted(text for row in rows for text in row["ports"] if "[" not in text)


def closed(place: Host, address: str, port: int) -> bool:
    with pytest.raises(OSError, match=UNREACHED):
        tcp_ask(place, address, port)
    return True


def test_a_port_of_a_running_container(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web", "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
        SeenServer(web, "udp", 53),
    ):
        before = snapshot(dockerd.host, netplug)
        done = netplug.json("publish", "web", "9090:80", "5353:53/udp")
        assert done["network"] == net
        assert "0.0.0.0:9090->80/tcp" in done["added_ports"]
        assert "0.0.0.0:8080->80/tcp" in done["ports"]
        assert "0.0.0.0:9090->80/tcp (added)" in netplug.cli("ps")
        for _ in range(2):
            for port in (8080, 9090):
                assert tcp_ask(client, wire.left, port) == wire.right
                assert tcp_ask(client, wire.left6, port)
                assert tcp_ask(dockerd.host, "127.0.0.1", port)
            assert udp_ask(client, wire.left, 5353) == wire.right
            assert not netplug.drift()
            netplug.restart()
        with pytest.raises(CommandError, match="was published by docker"):
            netplug.cli("unpublish", "web", "8080:80")
        assert netplug.json("unpublish", "web", "80")["added_ports"] == ["0.0.0.0:5353->53/udp", "[::]:5353->53/udp"]
        assert tcp_ask(client, wire.left, 8080) == wire.right
        assert closed(client, wire.left, 9090)
        netplug.cli("unpublish", "web", "53/udp")
        assert_same(before, lambda: snapshot(dockerd.host, netplug))
        netplug.cli("publish", "web", "9090:80")
        dockerd.docker("restart", "-t", "0", "web")
        wait_until(lambda: ports(netplug) == ["0.0.0.0:8080->80/tcp"], what="the container to be back")
        assert not netplug.drift()
        netplug.cli("publish", "web", "9090:80", "7000-7099:7000-7099")


def test_what_flows_by_another_port_goes_on(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web", "-p", "8080:70") as web,
        Talk(client, web, wire.left, 8080, at=70) as talk,
        SeenServer(web, "tcp", 80),
    ):
        for port in range(9000, 9010):
            netplug.cli("publish", "web", f"{port}:80")
            assert tcp_ask(client, wire.left, port) == wire.right
        netplug.restart()
        for port in range(9000, 9010):
            assert tcp_ask(client, wire.left, port) == wire.right
            netplug.cli("unpublish", "web", f"{port}:80")
        netplug.cli("publish", "web", "8081:70")
        sent = talk.sent
        wait_until(lambda: talk.sent > sent, what="an answer after the last change")
    assert talk.sent > 100


def test_a_flow_by_an_added_port_outlives_the_daemon(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web") as web,
    ):
        (shown,) = [text for text in netplug.json("publish", "web", "70")["ports"] if "[" not in text]
        port = int(shown.partition("->")[0].rpartition(":")[2])
        with Talk(client, web, wire.left, port, at=70) as talk:
            netplug.kill()
            sent = talk.sent
            wait_until(lambda: talk.sent > sent + 10, what="answers without a daemon")
            netplug.start()
            assert ports(netplug) == [shown]
        assert not netplug.drift()


def test_docker_moves_its_own_ports_and_not_the_added_ones(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    """It revokes and publishes its own when the container gets another way out, and that ends no added one."""
    with (
        docker_network(dockerd) as one,
        docker_network(dockerd) as two,
        container(dockerd, "--network", one, "--name", "web", "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
    ):
        netplug.cli("publish", "web", "9090:80")
        ways = set()
        for verb in ("connect", "disconnect", "connect"):
            dockerd.docker("network", verb, two, web.id)
            assert tcp_ask(client, wire.left, 8080) == wire.right
            assert ports(netplug) == ["0.0.0.0:8080->80/tcp", "0.0.0.0:9090->80/tcp"]
            ways.add(web.exec("ip", "-4", "route", "show", "default").split()[2])
        assert not netplug.drift()


def test_a_port_that_is_taken_is_refused_by_name(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "one", "-p", "8080:80"),
        container(dockerd, "--network", net, "--name", "two"),
        SeenServer(dockerd.host, "tcp", 8099),
    ):
        before = snapshot(dockerd.host, netplug)
        for port, words in (
            ("8080:80", f"port 0.0.0.0:8080/tcp is already in use on this host by container 'one' of network '{net}'"),
            ("8099:80", "port 0.0.0.0:8099/tcp is already in use on this host"),
        ):
            with pytest.raises(CommandError) as caught:
                netplug.cli("publish", "two", "9090:80", port)
            assert words in caught.value.stderr
        with pytest.raises(CommandError) as caught:
            netplug.cli("publish", "three", "9090:80")
        assert "there is no endpoint 'three'" in caught.value.stderr
        assert_same(before, lambda: snapshot(dockerd.host, netplug))


def test_a_namespace_without_a_runtime(netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        cli_network(netplug) as net,
        attached(netplug, net, "--publish", "8080:80") as (lab, _),
        SeenServer(lab, "tcp", 80),
    ):
        netplug.cli("publish", f"{net}/{lab.name}", "9090:80", "127.0.0.1:9091:80")
        for _ in range(2):
            assert tcp_ask(client, wire.left, 9090) == wire.right
            assert tcp_ask(netplug.host, "127.0.0.1", 9091)
            assert closed(client, wire.left, 9091)
            netplug.restart()
        assert netplug.json("unpublish", lab.name, "80")["ports"] == []
        assert closed(client, wire.left, 8080)
        netplug.cli("publish", lab.name, "8080:80")
        assert tcp_ask(client, wire.left, 8080) == wire.right
        assert not netplug.drift()


def test_a_cni_container(host: Host, netplug: Netplug, client: Host, wire: Wire) -> None:
    """Its runtime binds the ports of its own; those that a user adds are bound by us, and relayed."""
    netplug.cli("cni", "install", "--bin-dir", BIN_DIR)
    config = PYNET | own_ipam(RANGES4) | {"capabilities": {"portMappings": True}}
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    with (
        cni_list(host, netplug, config) as it,
        cni_attached(it, runtime={"portMappings": [mapping]}) as (netns, one),
        SeenServer(netns, "tcp", 80),
    ):
        netplug.cli("publish", one.container, "9090:80")
        for _ in range(2):
            for port in (8080, 9090):
                assert tcp_ask(client, wire.left, port) == wire.right
            assert tcp_ask(client, wire.left6, 9090) == one.ip.rpartition(".")[0] + ".1"
            assert tcp_ask(host, "::1", 9090)
            it.check(one)
            netplug.restart()
        with pytest.raises(CommandError, match="was published by its CNI runtime"):
            netplug.cli("unpublish", one.container, "8080:80")
        assert not netplug.drift()
    assert closed(client, wire.left, 9090)


def test_the_network_by_which_a_container_answers_is_chosen(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    with (
        docker_network(dockerd) as one,
        docker_network(dockerd) as two,
        container(dockerd, "--network", one, "--name", "web") as web,
        SeenServer(web, "tcp", 80),
    ):
        dockerd.docker("network", "connect", two, web.id)
        gateway = web.exec("ip", "-4", "route", "show", "default").split()[2]
        nets = {dockerd.inspect(net)["IPAM"]["Config"][0]["Gateway"].split("/")[0]: net for net in (one, two)}
        assert netplug.json("publish", "web", "9090:80")["network"] == nets.pop(gateway)
        assert tcp_ask(client, wire.left, 9090) == wire.right
        ((_, other),) = nets.items()
        body = {"endpoint": f"{other}/web", "ports": [{"port": 80, "host_port": 9091}]}
        done = netplug.client.post("publish", body=body)
        assert f"has its default route by {gateway}, in another network" in done["note"]
        assert closed(client, wire.left, 9091)
        assert tcp_ask(dockerd.host, "127.0.0.1", 9091)


def test_ports_follow_their_network(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web", "-p", "8080:80", "-p", "80") as web,
        SeenServer(web, "tcp", 80),
    ):
        netplug.cli("publish", "web", "9090:80", f"{wire.left}:9091:80")
        before = ports(netplug)
        for _ in range(2):
            netplug.cli("network", "update", net, "-o", "host_binding_ipv4=127.0.0.1")
            assert ports(netplug) == sorted(text.replace("0.0.0.0", "127.0.0.1") for text in before)
            for port in (8080, 9090):
                assert closed(client, wire.left, port)
                assert tcp_ask(dockerd.host, "127.0.0.1", port)
            assert tcp_ask(client, wire.left, 9091) == wire.right
            netplug.restart()
            netplug.cli("network", "update", net, "-o", "host_binding_ipv4=")
            assert ports(netplug) == before
            assert tcp_ask(client, wire.left, 9090) == wire.right
        netplug.cli("network", "update", net, "--internal", "true")
        assert {text.partition(" (")[2] for text in ports(netplug)} == {"not published: internal network)"}
        assert closed(client, wire.left, 9090)
        netplug.restart()
        netplug.cli("network", "update", net, "--internal", "false")
        for port in (8080, 9090, 9091):
            assert tcp_ask(client, wire.left, port) == wire.right
        assert not netplug.drift()
