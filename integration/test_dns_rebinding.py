"""DNS rebinding: a public name that a resolver says to be at a private address, as containers see it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from harness import (
    Answer,
    Dockerd,
    Host,
    Netplug,
    Upstream,
    attached,
    cli_network,
    connect,
    container,
    docker_network,
    resolve,
    wait_until,
)

NOTHING = Answer("NOERROR")
INSIDE = Answer("NOERROR", ("10.1.2.3",))
PATIENCE_S = 20


@dataclass
class Place:
    host: Host
    upstream: str
    netplug: Netplug
    dockerd: Dockerd


@pytest.fixture
def place(new_host: Callable[[str], Host]) -> Iterator[Place]:
    """A host whose resolver says that all names are at 10.1.2.3, and where that is refused."""
    host, far = new_host("guarded"), new_host("far")
    wire = connect(host, far)
    dockerd = Dockerd(host)
    with Upstream(far, wire.right, "10.1.2.3"):
        flags = ("--dns-upstream", wire.right, "--dns-upstream", f"corp.example={wire.right}")
        yield Place(host, wire.right, Netplug(host, *flags, "--dns-rebinding", "refuse"), dockerd)


def test_private_address_of_a_public_name_reaches_no_container(place: Place) -> None:
    netplug = place.netplug
    with (
        cli_network(netplug, "--subnet", "10.77.0.0/24") as net,
        attached(netplug, net, "--name", "asker") as (asker, _),
    ):
        for tcp in (False, True):
            assert resolve(asker, "10.77.0.1", "evil.example", tcp=tcp) == NOTHING
            assert resolve(asker, "10.77.0.1", "db.corp.example", tcp=tcp) == INSIDE
            assert resolve(asker, "10.77.0.1", "asker", tcp=tcp).data  # our own names are no public ones
        said = asker.exec("dig", "@10.77.0.1", "evil.example")
        assert "EDE: 15 (Blocked)" in said
        told = [
            it for it in map(json.loads, netplug.cli("events", "--json").splitlines()) if it["kind"] == "answer.blocked"
        ]
        assert [(it["object"], it["what"], it["by"]) for it in told] == [
            ("name evil.example", "has the private address 10.1.2.3", "netplug")
        ]
    _not_by_dockers_resolver(place)


def _not_by_dockers_resolver(place: Place) -> None:
    with (
        docker_network(place.dockerd) as net,
        container(place.dockerd, "--network", net, "--name", "asker", "--dns", place.upstream) as asker,
        container(place.dockerd, "--network", net, "--name", "db") as db,
    ):
        known = Answer("NOERROR", (db.ip(),))
        wait_until(
            lambda: resolve(asker, "127.0.0.11", f"db.{net}.netplug.internal") == known,
            PATIENCE_S,
            "our names",
            ignoring=(OSError,),
        )
        assert resolve(asker, "127.0.0.11", "evil.example") == NOTHING
        assert resolve(asker, "127.0.0.11", "db.corp.example") == INSIDE
        assert resolve(asker, "127.0.0.11", "db") == known
