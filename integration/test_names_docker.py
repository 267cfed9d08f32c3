"""Names in Docker's containers: ordinary `docker run`, in front of Docker's own resolver.

That everything is gone afterwards is asserted by the leak check of every test, see `conftest.py`.
"""

import subprocess
from collections.abc import Iterator

import pytest
from harness import (
    Answer,
    Container,
    Dockerd,
    Host,
    Netplug,
    Upstream,
    Wire,
    attached,
    container,
    docker_network,
    resolve,
    wait_until,
)

DOCKERS = "127.0.0.11"
NO_NAME = Answer("NXDOMAIN")
TABLE = "netplug-dns"
PATIENCE_S = 20


@pytest.fixture(autouse=True)
def netplug_runs_again(netplug: Netplug, leak_check: None) -> Iterator[None]:  # noqa: ARG001 - before that cleans up
    """Start the daemon again where a test failed while it was down."""
    yield
    if not netplug.running:
        netplug.start()


def served(place: Container) -> bool:
    """Tell whether questions in a container come to us."""
    command = ["nsenter", f"--net={place.netns}", "--", "nft", "list", "tables"]
    return TABLE in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def known(place: Container, name: str, kind: str = "A", *, tcp: bool = False) -> tuple[str, ...]:
    """Return what a name is in a container, as soon as it is anything."""

    def found() -> tuple[str, ...]:
        return resolve(place, DOCKERS, name, kind, tcp=tcp).data

    return wait_until(found, PATIENCE_S, f"{kind} of {name}", ignoring=(OSError,))


def test_containers_find_namespaces_and_each_other(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd, "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd00:77::/64") as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
        container(dockerd, "--network", net, "--name", "db", "--network-alias", "store", "--expose", "80") as db,
        attached(netplug, net, "--name", "lab", "--publish", "8081:80") as (lab, result),
    ):
        address = (result["addresses"][0].partition("/")[0],)
        full = f"lab.{net}.netplug.internal"
        for tcp in (False, True):
            for name in ("lab", f"lab.{net}", full):
                assert known(asker, name, tcp=tcp) == address
        assert known(asker, f"{address[0].rpartition('.')[2]}.0.77.10.in-addr.arpa", "PTR") == (f"{full}.",)
        assert known(asker, "_http._tcp.lab", "SRV") == ("0 0 80 lab.",)
        # What Docker tells of its containers we tell too, to those who are no containers as well.
        assert known(asker, "_http._tcp.db", "SRV") == ("0 0 80 db.",)
        for name in ("db", "store", db.id[:12]):
            assert known(asker, name) == (db.ip(),)
            assert resolve(lab, "10.77.0.1", name).data == (db.ip(),)
        dig = ["nsenter", f"--net={asker.netns}", "--", "dig", "+short", f"@{DOCKERS}", full]
        assert subprocess.run(dig, check=True, capture_output=True, text=True).stdout.split() == list(address)
        # By the C library of the container, with the resolv.conf that Docker wrote.
        assert full in asker.exec("nslookup", full)
        assert f"({address[0]})" in asker.exec("ping", "-4", "-c", "1", "lab")
        assert resolve(asker, DOCKERS, f"gone.{net}.netplug.internal") == NO_NAME
        (stats,) = netplug.json("dns", "stats", "--network", net)
        assert stats["answers"]["NXDOMAIN"] >= 1
        assert stats["answers"]["NOERROR"] >= 8


def test_all_that_docker_can_do_stays(
    dockerd: Dockerd,
    netplug: Netplug,
    client: Host,
    wire: Wire,
) -> None:
    with (
        Upstream(client, wire.right, "192.0.2.7") as upstream,
        docker_network(dockerd) as net,
        docker_network(dockerd, driver="bridge") as other,
        container(dockerd, "--network", other, "--name", "theirs", "--network-alias", "their-alias") as theirs,
        container(dockerd, "--network", net, "--name", "asker", "--dns", wire.right) as asker,
        attached(netplug, net, "--name", "lab"),
    ):
        dockerd.docker("network", "connect", other, "asker")
        wait_until(lambda: served(asker), PATIENCE_S, "the redirect")
        for name in ("theirs", "their-alias"):
            assert known(asker, name) == (theirs.ip(),)
            assert known(asker, name, tcp=True) == (theirs.ip(),)
        reverse = ".".join(reversed(theirs.ip().split("."))) + ".in-addr.arpa"
        assert known(asker, reverse, "PTR") == (f"theirs.{other}.",)
        assert known(asker, "www.example.com") == ("192.0.2.7",)
        assert "www.example.com" in upstream.asked
        assert not [name for name in upstream.asked if "lab" in name or "netplug" in name]
        dockerd.docker("network", "disconnect", other, "asker")


@pytest.mark.usefixtures("netplug")
def test_a_domain_of_the_networks_own_is_not_dockers(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        Upstream(client, wire.right, "192.0.2.7") as upstream,
        docker_network(dockerd, "-o", f"dns_upstream=corp.example={wire.right}") as net,
        container(dockerd, "--network", net, "--name", "asker", "--dns", "192.0.2.99") as asker,
    ):
        wait_until(lambda: served(asker), PATIENCE_S, "the redirect")
        assert known(asker, "a.corp.example") == ("192.0.2.7",)
        assert upstream.asked == ["a.corp.example"]
        assert known(asker, "asker") == (asker.ip(net),)


def test_aliases_renames_and_stops_are_seen(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd, "--subnet", "10.77.0.0/24") as net,
        attached(netplug, net, "--name", "lab") as (lab, _),
        container(dockerd, "--network", net, "--network-alias", "app", "--name", "one") as one,
    ):
        ask = f"app.{net}.netplug.internal"

        def says(name: str, *addresses: str) -> None:
            wait_until(
                lambda: resolve(lab, "10.77.0.1", name).data == tuple(sorted(addresses)), PATIENCE_S, f"{name} anew"
            )

        says(ask, one.ip())
        with container(dockerd, "--network", net, "--network-alias", "app", "--name", "two") as two:
            says(ask, one.ip(), two.ip())
            dockerd.docker("rename", "two", "deux")
            says(f"deux.{net}.netplug.internal", two.ip())
            assert resolve(lab, "10.77.0.1", f"two.{net}.netplug.internal") == NO_NAME
            dockerd.docker("stop", "-t", "0", "deux")
            # Docker says that a container has stopped before it has taken it from its networks.
            says(f"deux.{net}.netplug.internal")
            assert resolve(lab, "10.77.0.1", f"deux.{net}.netplug.internal") == NO_NAME
            assert resolve(lab, "10.77.0.1", ask).data == (one.ip(),)
        dockerd.docker("network", "disconnect", net, "one")
        assert resolve(lab, "10.77.0.1", ask) == NO_NAME
        dockerd.docker("network", "connect", "--alias", "other", net, "one")
        says(f"other.{net}.netplug.internal", one.ip(net))


def test_the_unhealthy_are_left_out_while_others_are_well(dockerd: Dockerd, netplug: Netplug) -> None:
    check = ("--health-cmd", "test -e /well", "--health-interval", "0.2s", "--health-retries", "1")
    with (
        docker_network(dockerd, "--subnet", "10.77.0.0/24") as net,
        attached(netplug, net, "--name", "lab") as (lab, _),
        container(dockerd, "--network", net, "--network-alias", "app") as well,
        container(dockerd, "--network", net, "--network-alias", "app", *check) as ill,
    ):

        def app() -> tuple[str, ...]:
            return resolve(lab, "10.77.0.1", f"app.{net}.netplug.internal").data

        wait_until(lambda: app() == (well.ip(),), PATIENCE_S, "the unhealthy left out")
        ill.exec("touch", "/well")
        wait_until(lambda: app() == tuple(sorted((well.ip(), ill.ip()))), PATIENCE_S, "the healthy taken in")


def test_dns_off_leaves_docker_alone(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd, "-o", "dns=off") as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
        container(dockerd, "--network", net, "--name", "db") as db,
    ):
        assert known(asker, "db") == (db.ip(),)
        netplug.restart()
        assert not served(asker)


def test_a_stop_leaves_docker_alone_and_a_start_serves_again(dockerd: Dockerd, netplug: Netplug) -> None:
    with (
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
        container(dockerd, "--network", net, "--name", "db") as db,
        attached(netplug, net, "--name", "lab") as (_, result),
    ):
        address = (result["addresses"][0].partition("/")[0],)
        assert known(asker, "lab") == address
        netplug.stop()
        assert not served(asker)
        assert known(asker, "db") == (db.ip(),)
        netplug.start()
        assert known(asker, "lab") == address
        netplug.kill()
        # The redirect goes with the process, so that Docker's own resolver is back at once.
        wait_until(lambda: not served(asker), PATIENCE_S, "the end of the redirect")
        for tcp in (False, True):
            assert known(asker, "db", tcp=tcp) == (db.ip(),)
        netplug.start()
        assert known(asker, "lab") == address
        assert known(asker, "db") == (db.ip(),)
        dockerd.docker("network", "disconnect", net, "asker")
        wait_until(lambda: not served(asker), PATIENCE_S, "the end of the redirect")


def asks(place: Container, upstream: Upstream, names: Iterator[str]) -> None:
    """Wait until names of others are asked of an upstream."""

    def reached() -> bool:
        return resolve(place, DOCKERS, next(names)).data == ("192.0.2.7",) and bool(upstream.asked)

    wait_until(reached, PATIENCE_S, "the upstream", ignoring=(OSError,))


@pytest.mark.usefixtures("netplug")
def test_containers_follow_the_hosts_resolvers(dockerd: Dockerd, host: Host, client: Host, wire: Wire) -> None:
    conf = host.dir / "resolv.conf"
    before = conf.read_text()
    names = (f"n{number}.example.com" for number in range(10_000))
    with (
        Upstream(client, wire.right, "192.0.2.7") as upstream,
        docker_network(dockerd) as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
        container(dockerd, "--network", net, "--name", "own", "--dns", "192.0.2.99") as own,
    ):
        assert known(asker, "own") == (own.ip(net),)
        wait_until(lambda: served(own), PATIENCE_S, "the redirect")
        try:
            conf.write_text(f"nameserver {wire.right}\n")
            asks(asker, upstream, names)
            assert resolve(asker, DOCKERS, f"gone.{net}") == NO_NAME
            assert known(asker, "own") == (own.ip(net),)
            # Who was told of other servers asks these.
            upstream.asked.clear()
            with pytest.raises(OSError, match="timed out"):
                resolve(own, DOCKERS, "own.example.com")
            assert upstream.asked == []
        finally:
            conf.write_text(before)


@pytest.mark.usefixtures("netplug")
def test_plain_upstream_of_a_network_counts(dockerd: Dockerd, client: Host, wire: Wire) -> None:
    with (
        Upstream(client, wire.right, "192.0.2.7") as upstream,
        docker_network(dockerd, "-o", f"dns_upstream={wire.right}") as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
    ):
        wait_until(lambda: served(asker), PATIENCE_S, "the redirect")
        asks(asker, upstream, (f"n{number}.example.com" for number in range(10_000)))


@pytest.mark.usefixtures("netplug")
def test_own_network_comes_first(dockerd: Dockerd) -> None:
    with (
        docker_network(dockerd) as own,
        docker_network(dockerd, driver="bridge") as plain,
        docker_network(dockerd) as other,
        container(dockerd, "--network", own, "--name", "asker") as asker,
        container(dockerd, "--network", own, "--network-alias", "database", "--name", "mine") as mine,
        container(dockerd, "--network", other, "--network-alias", "database", "--name", "theirs") as theirs,
    ):
        dockerd.docker("network", "connect", other, "asker")
        first, second = sorted(((own, mine), (other, theirs)))
        known(asker, "theirs")
        known(asker, "mine")
        for _ in range(6):
            assert resolve(asker, DOCKERS, "database").data == (first[1].ip(first[0]),)
            assert resolve(asker, DOCKERS, f"database.{second[0]}").data == (second[1].ip(second[0]),)
        dockerd.docker("network", "disconnect", other, "asker")
        del plain


def test_names_of_ours_never_leave(dockerd: Dockerd, netplug: Netplug, client: Host, wire: Wire) -> None:
    with (
        Upstream(client, wire.right, "192.0.2.66") as upstream,
        docker_network(dockerd, "--subnet", "10.77.0.0/24", "-o", f"dns_upstream={wire.right}") as net,
        attached(netplug, net, "--name", "lab") as (lab, _),
        container(dockerd, "--network", net, "--name", "asker", "--dns", wire.right) as asker,
    ):
        with container(dockerd, "--network", net, "--name", "web") as web:
            assert known(asker, "web") == (web.ip(),)
        for place, server in ((asker, DOCKERS), (lab, "10.77.0.1")):
            for name in ("web", "nosuch"):
                for form in (f"{name}.{net}", f"{name}.{net}.netplug.internal", f"_http._tcp.{name}.{net}"):
                    for kind in ("A", "AAAA", "SRV"):
                        assert resolve(place, server, form, kind) == NO_NAME
            for kind in ("A", "AAAA"):
                assert resolve(place, server, "web", kind) == NO_NAME
            assert resolve(place, server, "_imap._tcp.asker", "SRV") == NO_NAME
        assert upstream.asked == []


@pytest.mark.usefixtures("netplug")
def test_container_with_a_domain_is_known_by_it(dockerd: Dockerd) -> None:
    with (
        docker_network(dockerd, "--subnet", "10.77.0.0/24") as net,
        container(dockerd, "--network", net, "--name", "asker") as asker,
        container(
            dockerd, "--network", net, "--name", "mail", "--hostname", "mx", "--domainname", "corp.example"
        ) as mail,
    ):
        assert known(asker, "mx.corp.example") == (mail.ip(),)
        reverse = ".".join(reversed(mail.ip().split("."))) + ".in-addr.arpa"
        assert known(asker, reverse, "PTR") == (f"mail.{net}.netplug.internal.", "mx.corp.example.")
