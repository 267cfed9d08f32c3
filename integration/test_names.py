"""Names at the gateways: bare namespaces and CNI containers ask us.

That everything is gone afterwards, sockets too, is asserted by the leak check of every test, see `conftest.py`.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness import (
    BIN_DIR,
    PYNET,
    Answer,
    Host,
    Netplug,
    Upstream,
    Wire,
    attached,
    cli_network,
    cni_attached,
    cni_list,
    resolve,
    wait_until,
)
from harness.netns import open_socket

NOTHING = Answer("NOERROR")
NO_NAME = Answer("NXDOMAIN")
REFUSED = Answer("REFUSED")
UNREACHED = r"timed out|refused|unreachable"
SUBNETS = ("--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64")
GATEWAY, GATEWAY6 = "10.77.0.1", "fd00:77::1"


@pytest.fixture
def blue(netplug: Netplug) -> Iterator[str]:
    with cli_network(netplug, *SUBNETS) as net:
        yield net


def test_namespaces_find_each_other_by_name(netplug: Netplug, blue: str) -> None:
    with (
        attached(netplug, blue, "--name", "web", "--alias", "www", "--publish", "8081:80") as (_, web),
        attached(netplug, blue, "--name", "asker") as (asker, said),
    ):
        assert said["dns"] == {"nameservers": [GATEWAY, GATEWAY6], "search": [f"{blue}.netplug.internal"]}
        v4, v6 = (address.partition("/")[0] for address in web["addresses"])
        for name in ("web", "WWW", f"web.{blue}", f"www.{blue}.netplug.internal"):
            for server in (GATEWAY, GATEWAY6):
                for tcp in (False, True):
                    assert resolve(asker, server, name, tcp=tcp) == Answer("NOERROR", (v4,))
                    assert resolve(asker, server, name, "AAAA", tcp=tcp) == Answer("NOERROR", (v6,))
        full = f"web.{blue}.netplug.internal."
        reverse = ".".join(reversed(v4.split("."))) + ".in-addr.arpa"
        assert resolve(asker, GATEWAY, reverse, "PTR") == Answer("NOERROR", (full,))
        for name, target in (("web", "web."), (full, full)):
            assert resolve(asker, GATEWAY, f"_http._tcp.{name}", "SRV") == Answer("NOERROR", (f"0 0 80 {target}",))
        assert resolve(asker, GATEWAY, "host.netplug.internal") == Answer("NOERROR", (GATEWAY,))
        assert resolve(asker, GATEWAY, "web", "TXT") == NOTHING
        assert resolve(asker, GATEWAY, "gone.netplug.internal") == NO_NAME


def test_dig_and_the_c_library_find_names(host: Host, netplug: Netplug, blue: str) -> None:
    with (
        attached(netplug, blue, "--name", "web") as (_, web),
        attached(netplug, blue, "--name", "asker") as (asker, said),
    ):
        v4, v6 = (address.partition("/")[0] for address in web["addresses"])
        full = f"web.{blue}.netplug.internal"
        for options in ((), ("+tcp",), ("+noedns",), ("+bufsize=4096", "+dnssec")):
            assert asker.exec("dig", "+short", *options, f"@{GATEWAY}", full).split() == [v4]
        assert asker.exec("dig", "+short", f"@{GATEWAY}", "-x", v6).split() == [f"{full}."]
        assert "status: NXDOMAIN" in asker.exec("dig", f"@{GATEWAY}", f"gone.{blue}.netplug.internal")
        conf = host.dir / "asker-resolv.conf"
        dns = said["dns"]
        lines = [*(f"nameserver {server}" for server in dns["nameservers"]), f"search {' '.join(dns['search'])}"]
        conf.write_text("".join(f"{line}\n" for line in lines))
        for name in ("web", full):
            script = f"mount --bind {conf} /etc/resolv.conf; getent ahosts {name}"
            found = asker.exec("unshare", "--mount", "sh", "-ec", script)
            assert {line.split()[0] for line in found.splitlines()} == {v4, v6}


def test_names_come_and_go_with_the_call_that_says_so(netplug: Netplug, blue: str) -> None:
    with attached(netplug, blue, "--name", "asker") as (asker, _):
        full = f"web.{blue}.netplug.internal"
        for _ in range(3):
            assert resolve(asker, GATEWAY, full) == NO_NAME
            with attached(netplug, blue, "--name", "web") as (_, web):
                assert resolve(asker, GATEWAY, full).data == (web["addresses"][0].partition("/")[0],)
        assert resolve(asker, GATEWAY, full) == NO_NAME


def test_several_of_one_alias_are_all_told(netplug: Netplug, blue: str) -> None:
    with (
        attached(netplug, blue, "--name", "one", "--alias", "app") as (_, one),
        attached(netplug, blue, "--name", "two", "--alias", "app") as (asker, two),
    ):
        both = sorted(result["addresses"][0].partition("/")[0] for result in (one, two))
        assert resolve(asker, GATEWAY, "app").data == tuple(both)


def test_names_of_other_networks_do_not_exist(netplug: Netplug, blue: str) -> None:
    with (
        cli_network(netplug, "--subnet", "10.78.0.0/24") as red,
        attached(netplug, blue, "--name", "asker") as (asker, _),
        attached(netplug, red, "--name", "secret") as (other, result),
    ):
        assert resolve(asker, GATEWAY, f"secret.{red}.netplug.internal") == NO_NAME
        address = result["addresses"][0].partition("/")[0]
        reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
        assert resolve(asker, GATEWAY, reverse, "PTR") == NO_NAME
        with pytest.raises(OSError, match=UNREACHED):
            resolve(asker, "10.78.0.1", "secret")
        assert resolve(other, "10.78.0.1", "secret").data == (address,)
        # Who is in both sees both, whichever gateway it asks.
        asker.attach(netplug, red, "--ifname", "eth1", "--name", "asker")
        assert resolve(asker, GATEWAY, "secret").data == (address,)
        assert resolve(asker, "10.78.0.1", f"asker.{blue}", "AAAA").code == "NOERROR"
        asker.detach(netplug, red, "--ifname", "eth1")
        assert resolve(asker, GATEWAY, f"secret.{red}.netplug.internal") == NO_NAME


def test_strangers_on_the_bridge_are_refused(netplug: Netplug) -> None:
    with (
        cli_network(netplug, "--subnet", "10.78.0.0/24", "-o", "spoofchk=false") as net,
        attached(netplug, net, "--name", "asker") as (asker, _),
    ):
        assert resolve(asker, "10.78.0.1", "asker").code == "NOERROR"
        asker.exec("ip", "address", "flush", "dev", "eth0")
        asker.exec("ip", "address", "add", "10.78.0.200/24", "dev", "eth0")
        assert resolve(asker, "10.78.0.1", "asker") == REFUSED
        assert resolve(asker, "10.78.0.1", "asker", tcp=True) == REFUSED
        (stats,) = netplug.json("dns", "stats", "--network", net)
        assert stats["answers"] == {"NOERROR": 1, "REFUSED": 2}
        assert stats["strangers"] == 2


def test_names_are_there_when_a_restarted_daemon_answers(netplug: Netplug, blue: str) -> None:
    with (
        attached(netplug, blue, "--name", "web", "--alias", "www") as (_, web),
        attached(netplug, blue, "--name", "asker") as (asker, _),
    ):
        address = (web["addresses"][0].partition("/")[0],)
        netplug.restart()
        assert resolve(asker, GATEWAY, "www").data == address
        netplug.kill()
        netplug.start()
        assert resolve(asker, GATEWAY, "www").data == address
        assert netplug.drift() == ""


def test_other_names_are_asked_of_the_hosts_resolvers(
    host: Host, client: Host, netplug: Netplug, wire: Wire, blue: str
) -> None:
    conf = host.dir / "resolv.conf"
    before = conf.read_text()
    upstream = wire.right
    with (
        Upstream(client, upstream, "192.0.2.7") as server,
        attached(netplug, blue, "--name", "asker") as (asker, _),
        cli_network(netplug, "--internal", "--subnet", "10.79.0.0/24") as closed,
        attached(netplug, closed, "--name", "inside") as (inside, _),
    ):
        try:
            conf.write_text(f"nameserver {upstream}\n")
            known = Answer("NOERROR", ("192.0.2.7",))
            names = (f"n{number}.example.com" for number in range(1000))
            wait_until(
                lambda: resolve(asker, GATEWAY, next(names)) == known, 10, "the new upstream", ignoring=(OSError,)
            )
            earlier = {f"n{number}.example.com" for number in range(1000)}  # perhaps asked again by now
            assert resolve(asker, GATEWAY, "www.example.com") == known
            assert resolve(asker, GATEWAY, "www.example.com", tcp=True) == known
            assert [it for it in server.asked if it not in earlier] == ["www.example.com"]
            # What is ours, or nobody's, stays here; and internal networks ask nobody at all.
            assert resolve(asker, GATEWAY, "asker", "TXT") == NOTHING
            assert resolve(asker, GATEWAY, "x.netplug.internal") == NO_NAME
            assert resolve(asker, GATEWAY, "printer.local") == NO_NAME
            assert resolve(inside, "10.79.0.1", "www.example.com") == REFUSED
            assert resolve(inside, "10.79.0.1", "inside").code == "NOERROR"
            assert [it for it in server.asked if it not in earlier] == ["www.example.com"]
        finally:
            conf.write_text(before)


def test_a_network_may_have_resolvers_of_its_own(client: Host, netplug: Netplug, wire: Wire) -> None:
    with (
        Upstream(client, wire.right, "192.0.2.7") as server,
        cli_network(netplug, "--subnet", "10.79.0.0/24", "-o", f"dns_upstream={wire.right}") as own,
        attached(netplug, own, "--name", "asker") as (asker, _),
    ):
        assert resolve(asker, "10.79.0.1", "www.example.com") == Answer("NOERROR", ("192.0.2.7",))
        assert server.asked == ["www.example.com"]


def test_a_firewall_that_lets_nobody_in_is_not_in_the_way(host: Host, netplug: Netplug, blue: str) -> None:
    with (
        attached(netplug, blue, "--name", "asker") as (asker, _),
        cli_network(netplug, "--internal", "--subnet", "10.79.0.0/24") as closed,
        attached(netplug, closed, "--name", "inside") as (inside, _),
    ):
        for program in ("iptables", "ip6tables"):
            host.run([program, "-A", "INPUT", "!", "-i", "lo", "-p", "tcp", "-j", "DROP"])
            host.run([program, "-A", "INPUT", "!", "-i", "lo", "-p", "udp", "-j", "DROP"])
        try:
            # Where there were no such rules, the gate comes once they are noticed.
            asked = [(asker, GATEWAY, "asker"), (asker, GATEWAY6, "asker"), (inside, "10.79.0.1", "inside")]
            for place, server, name in asked:
                wait_until(lambda: resolve(place, server, name), 20, "the gate", ignoring=(TimeoutError,))  # noqa: B023
            for tcp in (False, True):
                assert resolve(asker, GATEWAY, "asker", tcp=tcp).code == "NOERROR"
                assert resolve(asker, GATEWAY6, "asker", tcp=tcp).code == "NOERROR"
                assert resolve(inside, "10.79.0.1", "inside", tcp=tcp).code == "NOERROR"
        finally:
            for program in ("iptables", "ip6tables"):
                host.run([program, "-D", "INPUT", "!", "-i", "lo", "-p", "tcp", "-j", "DROP"])
                host.run([program, "-D", "INPUT", "!", "-i", "lo", "-p", "udp", "-j", "DROP"])


def test_one_with_2000_connections_is_in_nobodys_way(netplug: Netplug, blue: str) -> None:
    """CVE-2024-8418: who connects and says nothing, or half of something, must not hold up the others."""
    with (
        attached(netplug, blue, "--name", "greedy") as (greedy, _),
        attached(netplug, blue, "--name", "asker") as (asker, _),
        ExitStack() as stack,
    ):
        for number in range(2000):
            sock = stack.enter_context(open_socket(greedy.netns, socket.SOCK_STREAM))
            sock.settimeout(30)
            try:
                sock.connect((GATEWAY, 53))
                if number % 2:
                    sock.send(b"\0\x20\x12\x34")
            except ConnectionError:  # sent away
                sock.close()
            if number % 200 == 0:
                for tcp in (False, True):
                    assert resolve(asker, GATEWAY, "greedy", tcp=tcp).code == "NOERROR"
        for tcp in (False, True):
            assert resolve(asker, GATEWAY, "greedy", tcp=tcp).code == "NOERROR"
        assert resolve(greedy, GATEWAY, "asker").code == "NOERROR"


def test_without_names_nobody_answers(netplug: Netplug) -> None:
    with (
        cli_network(netplug, "--subnet", "10.78.0.0/24", "-o", "dns=off") as net,
        attached(netplug, net, "--name", "asker") as (asker, said),
    ):
        assert said["dns"] == {"nameservers": [], "search": []}
        with pytest.raises(OSError, match=UNREACHED):
            resolve(asker, "10.78.0.1", "asker")


@pytest.fixture(scope="module")
def plugin(netplug: Netplug) -> str:
    return netplug.cli("cni", "install", "--bin-dir", BIN_DIR)


@pytest.mark.usefixtures("plugin")
def test_cni_results_carry_the_name_server(host: Host, netplug: Netplug) -> None:
    ipam = {"ipam": {"type": "pynet", "ranges": [[{"subnet": "10.91.0.0/24"}]]}}
    with cni_list(host, netplug, PYNET | ipam) as it, cni_attached(it) as (netns, one):
        search = f"{it.name}.netplug.internal"
        assert one.result["dns"] == {"nameservers": ["10.91.0.1"], "search": [search]}
        with attached(netplug, it.name, "--name", "lab") as (_, lab):
            assert resolve(netns, "10.91.0.1", f"lab.{search}").data == (lab["addresses"][0].partition("/")[0],)
    own = {"dns": {"nameservers": ["192.0.2.1"]}}
    with cni_list(host, netplug, PYNET | ipam | own) as it, cni_attached(it) as (_, one):
        assert one.result["dns"] == {"nameservers": ["192.0.2.1"]}


def test_names_below_the_hosts_search_list_work_as_on_the_host(
    host: Host, client: Host, netplug: Netplug, wire: Wire, blue: str
) -> None:
    conf = host.dir / "resolv.conf"
    before = conf.read_text()
    with (
        Upstream(client, wire.right, "192.0.2.7") as upstream,
        attached(netplug, blue, "--name", "asker") as (asker, _),
    ):
        try:
            conf.write_text(f"nameserver {wire.right}\nsearch corp.local\n")
            known = Answer("NOERROR", ("192.0.2.7",))
            wait_until(
                lambda: resolve(asker, GATEWAY, "srv.corp.local") == known, 10, "the search list", ignoring=(OSError,)
            )
            assert set(upstream.asked) == {"srv.corp.local"}
            assert resolve(asker, GATEWAY, "printer.local") == NO_NAME
            with attached(netplug, blue, "--name", "later") as (_, said):
                assert said["dns"]["search"] == [f"{blue}.netplug.internal", "corp.local"]
        finally:
            conf.write_text(before)
    gone = (f"n{number}.corp.local" for number in range(10_000))
    with attached(netplug, blue) as (asker, _):
        wait_until(lambda: resolve(asker, GATEWAY, next(gone)) == NO_NAME, 10, "its end", ignoring=(OSError,))


def test_answers_too_big_for_a_datagram_come_as_far_as_they_fit(netplug: Netplug, blue: str) -> None:
    with ExitStack() as stack:
        asker, _ = stack.enter_context(attached(netplug, blue, "--name", "asker"))
        every = set()
        for _ in range(34):
            _, made = stack.enter_context(attached(netplug, blue, "--alias", "app"))
            every.add(made["addresses"][0].partition("/")[0])
        seen: set[str] = set()
        for _ in range(6):
            found = resolve(asker, GATEWAY, "app").data
            assert 25 <= len(found) < 34
            seen |= set(found)
        assert seen == every
        assert set(resolve(asker, GATEWAY, "app", tcp=True).data) == every
        ahosts = asker.exec("dig", "+short", "+noedns", "+ignore", f"@{GATEWAY}", "app").split()
        assert 25 <= len(ahosts) < 34
