"""Published ports stay reserved while the daemon restarts: a real systemd keeps their sockets."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import (
    Booted,
    Host,
    Namespace,
    SeenServer,
    ServiceNetplug,
    connect,
    namespace,
    tcp_ask,
    unbootable,
    wait_until,
)
from harness.traffic import bound
from harness.wire import Wire

pytestmark = [
    pytest.mark.skipif(bool(unbootable()), reason=unbootable()),
    pytest.mark.usefixtures("wire"),
]
WEB, DNS = 9090, 9053


@pytest.fixture(scope="module")
def client() -> Iterator[Host]:
    with Host("client") as it:
        yield it


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    with Booted("keeper", masked=("docker.service", "docker.socket", "containerd.service")) as it:
        yield it


@pytest.fixture(scope="module")
def netplug(machine: Booted) -> ServiceNetplug:
    it = ServiceNetplug(machine, 'docker_host = "none"\n')
    machine.boot()
    wait_until(lambda: it.running, what="netplug.service")
    return it


@pytest.fixture(scope="module")
def wire(netplug: ServiceNetplug, client: Host) -> Wire:
    """The cable between the machine and the client, which is there before the network is made."""
    it = connect(netplug.machine, client)
    netplug.cli("network", "create", "blue")
    return it


def kept(netplug: ServiceNetplug) -> int:
    """Return how many descriptors systemd keeps: two of each port, one for each IP version."""
    return int(netplug.machine.show(netplug.UNIT, "NFileDescriptorStore")["NFileDescriptorStore"])


def free(netplug: ServiceNetplug, proto: str, port: int) -> bool:
    """Whether another process can have a port now."""
    try:
        bound(netplug.machine, proto, port, "0.0.0.0").close()
    except OSError:
        return False
    return True


@contextmanager
def contended(netplug: ServiceNetplug) -> Iterator[None]:
    """Other processes try to get the ports, through all of the block, and never do."""
    over, tries, got = threading.Event(), [0], list[str]()

    def contend() -> None:
        while not over.is_set():
            got.extend(proto for proto, port in (("tcp", WEB), ("udp", DNS)) if free(netplug, proto, port))
            tries[0] += 1

    thread = threading.Thread(target=contend)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert got == []
    assert tries[0] > 20


@contextmanager
def published(netplug: ServiceNetplug) -> Iterator[Namespace]:
    with namespace(netplug.machine) as web:
        web.attach(netplug, "blue", "--name", "web", "--publish", f"{WEB}:80", "--publish", f"{DNS}:53/udp")
        yield web
        web.detach(netplug, "blue")


def settled(netplug: ServiceNetplug, before: int) -> None:
    """Wait until another process is the daemon, and answers."""
    wait_until(lambda: netplug.running and netplug.pid not in {0, before}, what="the next daemon")
    assert netplug.drift() == ""


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_no_other_process_gets_a_published_port(netplug: ServiceNetplug, client: Host, wire: Wire, way: str) -> None:
    with published(netplug) as web, SeenServer(web, "tcp", 80):
        assert tcp_ask(client, wire.left, WEB) == wire.right
        wait_until(lambda: kept(netplug) == 4, what="the sockets of both ports")
        before = netplug.pid
        with contended(netplug):
            netplug.restart() if way == "restart" else netplug.kill()
            settled(netplug, before)
        assert tcp_ask(client, wire.left, WEB) == wire.right
        assert kept(netplug) == 4
        # The next daemon has them as its own: it can give one up.
        netplug.cli("unpublish", "web", f"{WEB}:80")
        assert free(netplug, "tcp", WEB)
        assert kept(netplug) == 2
        netplug.cli("publish", "web", f"{WEB}:80")
        wait_until(lambda: kept(netplug) == 4, what="the sockets again")
    assert free(netplug, "tcp", WEB)
    assert kept(netplug) == 0


def test_ports_of_an_endpoint_that_ended_meanwhile_are_released(netplug: ServiceNetplug) -> None:
    with namespace(netplug.machine) as web:
        web.attach(netplug, "blue", "--publish", f"{WEB}:80")
        wait_until(lambda: kept(netplug) == 2, what="the sockets of the port")
        before = netplug.pid
        netplug.machine.systemctl("kill", "--kill-whom=main", "--signal=SIGSTOP", netplug.UNIT)
        web.remove()
        netplug.kill()
        settled(netplug, before)
        wait_until(lambda: free(netplug, "tcp", WEB), what="the port")
        assert kept(netplug) == 0


def test_service_that_is_stopped_keeps_nothing(netplug: ServiceNetplug) -> None:
    with published(netplug):
        wait_until(lambda: kept(netplug) == 4, what="the sockets of both ports")
        netplug.stop()
        netplug.machine.systemctl("stop", netplug.SOCKET)
        assert free(netplug, "tcp", WEB)
        netplug.machine.systemctl("start", netplug.SOCKET)
        netplug.start()
        assert not free(netplug, "tcp", WEB)
