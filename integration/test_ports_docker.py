"""Published ports in trouble: taken, moved, absent, and many; by a real dockerd.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import CommandError, Dockerd, Host, Netplug, SeenServer, Wire, docker_network, http_get

from netplug.lab.image import IMAGE, PAGE

pytestmark = pytest.mark.usefixtures("netplug")


def test_a_taken_port_harms_no_sibling_that_is_just_starting(
    dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire
) -> None:
    """As in `compose up` of a project in which one service wants a port that a process of the host has."""

    def run(net: str, port: int) -> str:
        serve = ("httpd", "-f", "-h", "/www")
        return dockerd.docker("run", "-d", "--init", "--network", net, "-p", f"{port}:80", IMAGE, *serve)

    def refused(net: str) -> bool:
        with pytest.raises(CommandError, match=r"port 0\.0\.0\.0:8099/tcp is already in use"):
            run(net, 8099)
        return True

    with docker_network(dockerd) as net, SeenServer(dockerd.host, "tcp", 8099), ThreadPoolExecutor(12) as pool:
        siblings = []
        for at in range(4):
            failing = [pool.submit(refused, net) for _ in range(4)]
            siblings += [pool.submit(run, net, 9000 + 4 * at + number) for number in range(4)]
            assert all(it.result() for it in failing)
        idents = [it.result().strip() for it in siblings]
        try:
            for number in range(len(idents)):
                assert PAGE in http_get(client, wire.left, 9000 + number)
            assert len(netplug.json("ps")) == len(idents)
        finally:
            created = dockerd.docker("ps", "-aq").split()
            dockerd.docker("rm", "-f", *created)
