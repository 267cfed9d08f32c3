"""Ports published while containers run (`netplug publish`), of every front end.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import pytest
from harness import (
    CommandError,
    Dockerd,
    Host,
    Netplug,
    SeenServer,
    Wire,
    container,
    docker_network,
    tcp_ask,
    udp_ask,
    wait_until,
)

UNREACHED = r"timed out|refused|unreachable"

pytestmark = pytest.mark.usefixtures("netplug")


def ports(netplug: Netplug) -> list[str]:
    """Return the published ports of all endpoints, as `ps` shows those of IPv4."""
    rows = netplug.json("ps")
    return sorted(text for row in rows for text in row["ports"] if "[" not in text)


def test_a_port_of_a_running_container(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "web", "-p", "8080:80") as web,
        SeenServer(web, "tcp", 80),
        SeenServer(web, "udp", 53),
    ):
        done = netplug.json("publish", "web", "9090:80", "5353:53/udp")
        assert done["network"] == net
        assert "0.0.0.0:9090->80/tcp" in done["added_ports"]
        assert "0.0.0.0:8080->80/tcp" in done["ports"]
        assert "0.0.0.0:9090->80/tcp (added)" in netplug.cli("ps")
        for _ in range(2):
            assert tcp_ask(client, wire.left, 8080) == wire.right
            assert tcp_ask(client, wire.left, 9090) == wire.right
            assert udp_ask(client, wire.left, 5353) == wire.right
            assert tcp_ask(client, wire.left6, 9090)
            assert not netplug.drift()
            netplug.restart()
        with pytest.raises(CommandError, match="was published by docker"):
            netplug.cli("unpublish", "web", "8080:80")
        assert netplug.json("unpublish", "web", "80")["added_ports"] == ["0.0.0.0:5353->53/udp", "[::]:5353->53/udp"]
        assert tcp_ask(client, wire.left, 8080) == wire.right
        with pytest.raises(OSError, match=UNREACHED):
            tcp_ask(client, wire.left, 9090)
        dockerd.docker("restart", "-t", "0", "web")
        wait_until(lambda: ports(netplug) == ["0.0.0.0:8080->80/tcp"])
        assert not netplug.drift()
