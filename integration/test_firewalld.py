"""firewalld, with the settings that it is installed with, beside netplug: our links are in a zone of their own."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from signal import SIGCONT
from time import monotonic
from typing import Any

import pytest
from harness import Host, Netplug, SeenServer, Wire, attached, cli_network, connect, resolve, tcp_ask, wait_until
from harness.firewalld import Firewalld, needs_firewalld
from harness.scoped import Namespace

pytestmark = needs_firewalld
NewHost = Callable[..., Host]
SETTLE_S = 25
ASKED_S = 20
UNREACHED = r"timed out|refused|No route to host"


class Guarded:
    """A host with a network, and one on a bridge of the user, and a client outside of it."""

    def __init__(self, host: Host, far: Host) -> None:
        self.host, self.far = host, far
        self.wire: Wire = connect(host, far)
        self.netplug = Netplug(host, "--docker-host", "none")
        # Else frames between neighbours do not come to firewalld.
        self.bridged = host.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], check=False).returncode == 0
        host.run(["sh", "-ec", "ip link add br0 type bridge; ip link set br0 up"])
        self.one: Namespace
        self.two: Namespace
        self.three: Namespace
        self.joined: dict[str, Any] = {}

    def populate(self, stack: ExitStack) -> None:
        """Make the networks, with three containers. The end of the stack removes them."""
        net = stack.enter_context(cli_network(self.netplug))
        mine = stack.enter_context(cli_network(self.netplug, "-o", "bridge=br0"))
        publish = ("--name", "one", "--publish", "8080:80")
        self.one, _ = stack.enter_context(attached(self.netplug, net, *publish))
        self.two, self.joined = stack.enter_context(attached(self.netplug, net, "--name", "two"))
        self.three, _ = stack.enter_context(attached(self.netplug, mine))
        stack.enter_context(SeenServer(self.far, "tcp", 7000))
        stack.enter_context(SeenServer(self.one, "tcp", 80))

    def check(self) -> bool:
        for it in (self.one, self.three):
            assert tcp_ask(it, self.wire.right, 7000) == self.wire.left
        assert tcp_ask(self.far, self.wire.left, 8080) == self.wire.right
        assert tcp_ask(self.two, self.wire.left, 8080)
        assert self.two.pings(self.one.addresses[0])
        assert not self.three.pings(self.one.addresses[0])
        assert resolve(self.two, self.joined["gateways"][0], "one").data == tuple(self.one.addresses)
        assert self.netplug.drift() == ""
        return True

    def works_soon(self, when: str) -> None:
        """firewalld takes all rules of iptables away when it begins anew; they are back in a moment."""
        wait_until(self.check, SETTLE_S, f"all to work {when}", ignoring=(AssertionError, OSError))

    def zone(self, *options: str) -> set[str]:
        return set(self.host.output("firewall-cmd", *options, "--zone=netplug", "--list-interfaces").split())


@pytest.fixture
def guarded(new_host: NewHost) -> Iterator[Guarded]:
    yield Guarded(new_host("guarded"), new_host("far"))  # noqa: PT022 - its hosts end after the test


def test_firewalld_may_come_before_the_first_network_and_begin_anew(guarded: Guarded) -> None:
    firewalld = Firewalld(guarded.host)
    with ExitStack() as stack:
        guarded.populate(stack)
        guarded.works_soon("at once")
        assert guarded.zone() == guarded.zone("--permanent") == {"np-+", "br0"}
        guarded.host.run(["firewall-cmd", "--reload"])
        guarded.works_soon("after a reload")
        firewalld.restart()
        guarded.works_soon("after a restart of firewalld")
        guarded.netplug.restart()
        guarded.works_soon("after a restart of netplug")
    assert "netplug" not in guarded.host.output("firewall-cmd", "--permanent", "--get-zones").split()
    assert "netplug" not in guarded.host.output("firewall-cmd", "--get-active-zones")
    assert not guarded.host.path("/etc/firewalld/zones/netplug.xml").exists()
    guarded.host.run(["firewall-cmd", "--reload"])
    assert "netplug" not in guarded.host.output("firewall-cmd", "--get-zones").split()


def test_firewalld_may_come_later_and_end_before_the_networks(guarded: Guarded) -> None:
    with ExitStack() as stack:
        guarded.populate(stack)
        guarded.works_soon("without firewalld")
        firewalld = Firewalld(guarded.host)
        guarded.works_soon("after the start of firewalld")
        assert guarded.zone() == guarded.zone("--permanent") == {"np-+", "br0"}
        firewalld.process.stop()
        guarded.works_soon("after the end of firewalld")
    assert not guarded.host.path("/etc/firewalld/zones/netplug.xml").exists()
    firewalld.start()
    assert "netplug" not in guarded.host.output("firewall-cmd", "--get-zones").split()


def test_bridge_that_has_an_uplink_keeps_its_zone(guarded: Guarded) -> None:
    """To accept all that comes by it would open the host to who is there."""
    guarded.host.run(["sh", "-ec", "ip link add eth9 type veth peer eth8; ip link set eth9 up master br0"])
    firewalld = Firewalld(guarded.host)
    with ExitStack() as stack:
        guarded.populate(stack)
        assert guarded.zone() == {"np-+"}
        with pytest.raises(OSError, match=UNREACHED):
            tcp_ask(guarded.three, guarded.wire.right, 7000)
        (command,) = re.findall(r"firewall-cmd --permanent .*", guarded.netplug.drift())
        guarded.host.run(["sh", "-ec", command])
        guarded.works_soon("after the command that is said")
    assert firewalld.process.alive
    assert guarded.host.output("firewall-cmd", "--permanent", "--zone=trusted", "--list-interfaces").strip() == "br0"


def test_firewalld_without_a_message_bus_is_said_with_the_command_that_helps(guarded: Guarded) -> None:
    Firewalld(guarded.host)
    guarded.netplug.env = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    guarded.netplug.restart()
    with ExitStack() as stack:
        guarded.populate(stack)
        with pytest.raises(OSError, match=UNREACHED):
            tcp_ask(guarded.one, guarded.wire.right, 7000)
        assert guarded.two.pings(guarded.one.addresses[0]) is not guarded.bridged
        said = "there is no message bus"
        commands = re.findall(rf"{said}.*(firewall-cmd --permanent .*)", guarded.netplug.drift())
        assert len(commands) == 2
        assert said in guarded.netplug.log.read_text()
        for command in commands:
            guarded.host.run(["sh", "-ec", command])
        guarded.works_soon("after the commands that are said")


def test_firewalld_that_hangs_holds_nobody_up_for_long(guarded: Guarded) -> None:
    """As long as it does not answer it is asked once, for 5 s."""
    firewalld = Firewalld(guarded.host)
    firewalld.process.freeze()
    try:
        began = monotonic()
        with cli_network(guarded.netplug) as net, attached(guarded.netplug, net):
            assert monotonic() - began < ASKED_S
            assert "firewalld does not answer" in guarded.netplug.drift()
            firewalld.process.signal(SIGCONT)
    finally:
        firewalld.process.signal(SIGCONT)
    wait_until(lambda: guarded.netplug.drift() == "", SETTLE_S, "no drift")
