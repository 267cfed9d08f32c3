"""`netplug dns host`: the host itself resolves names of containers, whichever program resolves for it."""

from collections.abc import Callable, Iterator

import pytest
from harness import (
    CommandError,
    Host,
    Netplug,
    Upstream,
    assert_same,
    attached,
    cli_network,
    resolve,
    snapshot,
    wait_until,
)
from harness.managers import Managers, Resolvconf, needs_managers, needs_resolvconf
from harness.netplugd import COMMAND, RUN_DIR
from harness.unpacked import lay_over

NewHost = Callable[..., Host]
SETTLE_S = 20
SITE, ELSEWHERE = "192.0.2.53", "198.51.100.7"
"""A resolver of the site, and what it says to be the address of every name."""


def lookup(host: Host, name: str) -> set[str]:
    """Resolve a name as programs of the host do."""
    found = host.run(["getent", "ahostsv4", name], check=False)
    return {line.split()[0] for line in found.stdout.splitlines()}


@pytest.fixture
def host(new_host: NewHost) -> Iterator[Host]:
    """A host with a resolver of its site."""
    it = new_host("names")
    it.run(["sh", "-ec", f"ip link set lo up; ip addr add {SITE}/32 dev lo"])
    with Upstream(it, SITE, ELSEWHERE):
        yield it


def check(netplug: Netplug, address: str, network: str) -> bool:
    """Assert that the host resolves what it shall, and nothing else of ours."""
    host = netplug.host
    assert lookup(host, f"web.{network}.netplug.internal") == {address}
    assert lookup(host, f"www.{network}.netplug.internal") == {address}
    assert not lookup(host, f"none.{network}.netplug.internal.")
    assert address in netplug.cli("dns", "host", "status")
    return True


@needs_managers
def test_systemd_resolved_asks_and_goes_on_after_restarts(host: Host) -> None:
    managers = Managers(host)
    resolved = managers.resolved()
    netplug = Netplug(host, "--docker-host", "none")
    before, settings = snapshot(host, netplug), host.output("resolvectl", "status")
    netplug.cli("dns", "host", "on")
    with cli_network(netplug) as net, attached(netplug, net, "--name", "web", "--alias", "www") as (inside, _):
        (address, *_) = map(str, inside.addresses)
        assert "by systemd-resolved" in netplug.cli("dns", "host", "status")
        check(netplug, address, net)
        assert not lookup(host, f"web.{net}")
        resolved.stop()
        host.run(["sh", "-c", "rm -rf /run/systemd/resolve/netif"])  # what it remembers
        resolved = managers.resolved()
        wait_until(lambda: check(netplug, address, net), SETTLE_S, "names again", ignoring=(AssertionError,))
        netplug.restart()
        check(netplug, address, net)
        netplug.kill()
        host.run(["ip", "link", "del", "npi-names"])
        netplug.start()
        wait_until(lambda: check(netplug, address, net), SETTLE_S, "names again", ignoring=(AssertionError,))
        assert netplug.drift() == ""
    netplug.cli("dns", "host", "off")
    assert_same(before, lambda: snapshot(host, netplug))
    wait_until(lambda: host.output("resolvectl", "status") == settings, what="resolved's links as before")
    with pytest.raises(CommandError) as failed:
        netplug.cli("dns", "host", "status")
    assert failed.value.code == 1
    assert "off" in failed.value.stdout


@needs_resolvconf
def test_resolvconf_puts_us_first_and_other_names_go_on(host: Host) -> None:
    Resolvconf(host, SITE)
    netplug = Netplug(host, "--docker-host", "none")
    before, conf = snapshot(host, netplug), host.output("cat", "/etc/resolv.conf")
    netplug.cli("dns", "host", "on")
    with cli_network(netplug) as net, attached(netplug, net, "--name", "web", "--alias", "www") as (inside, _):
        assert "by resolvconf" in netplug.cli("dns", "host", "status")
        check_first(netplug, str(inside.addresses[0]), net)
        host.run(["resolvconf", "-a", "eth1.dhclient"], stdin="nameserver 192.0.2.54\n")
        check_first(netplug, str(inside.addresses[0]), net)
        host.run(["resolvconf", "-d", "eth1.dhclient"])
        netplug.restart()
        check_first(netplug, str(inside.addresses[0]), net)
        netplug.stop()
        assert lookup(host, "site.example") == {ELSEWHERE}
        netplug.start()
    netplug.cli("dns", "host", "off")
    assert_same(before, lambda: snapshot(host, netplug))
    assert host.output("cat", "/etc/resolv.conf") == conf
    assert "lo.netplug" not in host.output("ls", "/run/resolvconf/interface")


def test_line_in_a_plain_file_comes_back_and_goes_without_a_trace(host: Host) -> None:
    lay_over(host)
    plain = f"# of the site\nsearch lan\nnameserver {SITE}\noptions timeout:2\n"
    host.run(["sh", "-ec", "rm -f /etc/resolv.conf; cat > /etc/resolv.conf; chmod 640 /etc/resolv.conf"], stdin=plain)
    netplug = Netplug(host, "--docker-host", "none")
    before = snapshot(host, netplug)
    netplug.cli("dns", "host", "on")
    with cli_network(netplug) as net, attached(netplug, net, "--name", "web", "--alias", "www") as (inside, _):
        address = str(inside.addresses[0])
        assert "by resolv.conf" in netplug.cli("dns", "host", "status")
        check_first(netplug, address, net)
        # As a DHCP client does.
        host.run(["sh", "-ec", "cat > /etc/resolv.conf"], stdin=plain)
        wait_until(lambda: check_first(netplug, address, net), SETTLE_S, "the line", ignoring=(AssertionError,))
        netplug.kill()
        assert lookup(host, "site.example") == {ELSEWHERE}
        netplug.start()
        check_first(netplug, address, net)
    netplug.cli("dns", "host", "off")
    assert_same(before, lambda: snapshot(host, netplug))
    assert host.run(["cat", "/etc/resolv.conf"]).stdout == plain
    assert host.output("stat", "-c", "%a %U", "/etc/resolv.conf") == "640 root"


def test_resolver_of_the_host_is_left_to_the_user_who_is_told_what_to_write(host: Host) -> None:
    lay_over(host)
    host.run(["sh", "-ec", "rm -f /etc/resolv.conf; echo nameserver 127.0.0.1 > /etc/resolv.conf"])
    netplug = Netplug(host, "--docker-host", "none")
    with cli_network(netplug) as net, attached(netplug, net, "--name", "web") as (inside, _):
        said = host.run([str(COMMAND), "dns", "host", "on"], env={"NETPLUG_RUN_DIR": RUN_DIR}).stderr
        assert "server=/netplug.internal/127.0.25.53#25353" in said
        asked = resolve(host, "127.0.25.53", f"web.{net}.netplug.internal", port=25353)
        assert asked.data == (str(inside.addresses[0]),)
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            resolve(inside, "127.0.25.53", f"web.{net}.netplug.internal", port=25353)
    netplug.cli("dns", "host", "off")
    with pytest.raises(OSError, match="refused"):
        resolve(host, "127.0.25.53", "host.netplug.internal", port=25353)


def check_first(netplug: Netplug, address: str, network: str) -> bool:
    """Assert that the host asks us first, and that other names mean what they mean without us."""
    check(netplug, address, network)
    assert lookup(netplug.host, f"web.{network}") == {ELSEWHERE}
    assert lookup(netplug.host, "web") == {ELSEWHERE}
    assert lookup(netplug.host, "site.example") == {ELSEWHERE}
    return True
